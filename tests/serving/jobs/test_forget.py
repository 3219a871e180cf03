"""A tenant is erased: from tables, files, and the bytes that deletion leaves behind, on either database."""

import json
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import make_url, text
from tests.byte_search import bytes_of, where
from tests.trust.ledgers import column, verified

from safelight.assets.store import AssetStore
from safelight.database.connect import Database
from safelight.errors import InvalidRequest, NotReady
from safelight.serving.jobs.attempts import Attempts
from safelight.serving.jobs.forget import Forgetting, find_tenant
from safelight.serving.jobs.holders import hold
from safelight.serving.jobs.keys import Keys
from safelight.serving.jobs.queue import JobQueue, NewJob, Terms
from safelight.settings import ORIGINS, Settings
from safelight.trust.entry import Entry, actor_of
from safelight.trust.ingredients import Kept
from safelight.trust.ledger import Ledger
from safelight.trust.origins import Origins

SECRET = "a portrait of aunt Wilhelmina"
IDEMPOTENCY = "wilhelmina-at-home-1"


class Workshop:
    """Two tenants' jobs and pictures, as a server leaves them."""

    def __init__(self, database: Database, home: Path) -> None:
        self.database = database
        self.home = home
        self.queue = JobQueue(database)
        self.assets = AssetStore(home / "blobs")
        self.ledger = Ledger(Settings(home=home), database)
        self.keys = Keys(database)
        self.tenants = {name: self.keys.create(name).split("-")[1] for name in ("wilhelmina", "ann")}

    def upload(self, owner: str, shade: int) -> str:
        asset_id = self.assets.put(picture(shade), ".png").id
        self.database.write(lambda session: hold(session, [asset_id], self.tenants[owner]))
        return asset_id

    def draw(self, owner: str, prompt: str, shade: int, **changes: Any) -> str:
        """A job that is done; returns its asset."""
        tenant = self.tenants[owner]
        self.put(owner, prompt, **changes)
        attempts = Attempts(self.queue)
        [job] = attempts.claim(limit=1)
        asset = self.assets.put(picture(shade), ".png")
        words = {"prompt": prompt, "key": owner}
        likeness = b"likeness of " + prompt.encode()
        self.ledger.append(
            Entry(action="drawn", asset_id=asset.id, actor=actor_of(tenant), words=words, likeness=likeness)
        )
        attempts.finish(job, asset_id=asset.id, seconds=1.0)
        return asset.id

    def put(self, owner: str, prompt: str, **changes: Any) -> str:
        spec = {"task": "text_to_image", "prompt": prompt, "seed": 7} | changes
        pictures = [spec[name] for name in ("init", "mask") if name in spec]
        key = f"{IDEMPOTENCY}-{prompt}" if owner == "wilhelmina" else None
        terms = Terms(tenant=self.tenants[owner], idempotency_key=key)
        [job] = self.queue.put([NewJob(spec=spec, encoding={}, pictures=pictures)], terms)
        return job.id

    def forgetting(self, owner: str = "wilhelmina", **changes: Any) -> Forgetting:
        values: dict[str, Any] = {"home": self.home, "sleep": lambda _s: None} | changes
        return Forgetting(self.tenants[owner], self.queue, self.assets, self.ledger, **values)


@pytest.fixture
def workshop(database: Database, home: Path) -> Workshop:
    return Workshop(database, home)


def picture(shade: int) -> bytes:
    file = BytesIO()
    Image.frombytes("L", (64, 64), Random(shade).randbytes(64 * 64)).save(file, "PNG")
    return file.getvalue()


def files_of(database: Database) -> Path:
    """The folder of the database's own files."""
    url = make_url(str(database.engine.url))
    if url.drivername == "sqlite":
        assert url.database
        return Path(url.database).parent
    database.write(lambda session: session.execute(text("CHECKPOINT")))  # what is in memory goes to its files
    return Path(str(url.query["host"])) / "data" / "base"


def test_nothing_of_a_tenant_is_left_in_any_byte(workshop: Workshop) -> None:
    kept = workshop.draw("ann", "a red apple", 1)
    upload = workshop.upload("wilhelmina", 2)
    made = [workshop.draw("wilhelmina", f"{SECRET} {number}", 10 + number, init=upload) for number in range(40)]
    Origins(workshop.home / ORIGINS, workshop.home, max_pixels=10**6, max_file_bytes=10**6).write(
        Kept(archive=b"made by Wilhelmina's camera" * 9, signature="untrusted", reasons=(), source_type=""), upload
    )
    workshop.put("wilhelmina", f"{SECRET} that was still queued")
    if workshop.database.engine.dialect.name == "postgresql":
        workshop.database.write(lambda session: session.execute(text("ANALYZE")))
    needles = {
        "prompt": b"Wilhelmina",
        "idempotency key": IDEMPOTENCY.encode(),
        "name": b"wilhelmina",
        "picture": workshop.assets.read(made[0])[100:200],
        "what the upload said": b64encode(b"made by Wilhelmina's camera" * 9)[36:72],
        "upload": workshop.assets.read(upload)[100:200],
    }
    folders = workshop.home, files_of(workshop.database)
    assert {name for name, _ in where(needles, *folders)} == needles.keys(), "the search itself finds them before"

    forgetting = workshop.forgetting()
    counts = forgetting.count()
    assert (counts.jobs, counts.live_jobs, counts.pictures, counts.usage) == (41, 1, 41, 41)
    assert (counts.ledger_rows, counts.ledger_bodies) == (40, 80)
    forgotten = forgetting.erase()

    assert sorted([*made, upload]) == forgotten.asset_ids
    assert where(needles, workshop.home, files_of(workshop.database)) == []
    assert SECRET not in json.dumps(forgotten.report(now=0.0))
    found = verified(workshop.ledger)
    assert (found.problems, found.pictures, found.erased) == ([], 41, 80)
    assert workshop.assets.read(kept)
    assert column(workshop.database, "SELECT name FROM keys") == ["ann"]
    assert column(workshop.database, "SELECT tenant FROM jobs") == [workshop.tenants["ann"]]
    assert [one.likeness for one in workshop.ledger.find_asset(kept)] == [b"likeness of a red apple"]


def test_a_picture_that_others_hold_stays(workshop: Workshop) -> None:
    shared, local = workshop.upload("wilhelmina", 1), workshop.upload("wilhelmina", 2)
    assert workshop.upload("ann", 1) == shared
    workshop.ledger.append(Entry(action="drawn", asset_id=local))
    alone = workshop.upload("wilhelmina", 3)
    counts = workshop.forgetting().count()
    assert (counts.pictures, counts.pictures_kept) == (1, 2)
    assert workshop.forgetting().erase().asset_ids == [alone]
    assert [workshop.assets.has(asset_id) for asset_id in (shared, local, alone)] == [True, True, False]
    assert column(workshop.database, "SELECT tenant FROM holders") == [workshop.tenants["ann"]]


def test_counting_changes_nothing(workshop: Workshop) -> None:
    workshop.draw("wilhelmina", SECRET, 1)
    workshop.put("wilhelmina", f"{SECRET}, queued")
    before = sorted((path, data) for path, data in bytes_of(workshop.home / "blobs"))
    assert workshop.forgetting().count() == workshop.forgetting().count()
    assert sorted(bytes_of(workshop.home / "blobs")) == before
    assert column(workshop.database, "SELECT state FROM jobs ORDER BY state") == ["done", "queued"]
    assert workshop.keys.exist()


def test_entries_that_wait_for_the_database_are_erased_too(workshop: Workshop) -> None:
    entry = Entry(
        action="drawn", asset_id="a" * 64, actor=actor_of(workshop.tenants["wilhelmina"]), words={"p": SECRET}
    )
    workshop.ledger.pending.put(entry)
    assert where({"prompt": SECRET.encode()}, workshop.home)
    workshop.forgetting().erase()
    assert where({"prompt": SECRET.encode()}, workshop.home, files_of(workshop.database)) == []


def test_training_runs_are_erased(workshop: Workshop) -> None:
    job_id = workshop.put("wilhelmina", SECRET)
    run = workshop.home / "runs" / job_id
    run.mkdir(parents=True)
    (run / "order.yaml").write_text(SECRET)
    assert workshop.forgetting().count().runs == 1
    workshop.forgetting().erase()
    assert not run.exists()


def test_while_jobs_run_it_refuses_and_the_key_is_stopped(workshop: Workshop) -> None:
    workshop.put("wilhelmina", SECRET)
    attempts = Attempts(workshop.queue)
    [job] = attempts.claim(limit=1)

    def beat(_s: float) -> None:
        attempts.heartbeat(patience_s=5)

    with pytest.raises(NotReady, match="1 jobs of this key still run"):
        workshop.forgetting(wait_s=0.3, sleep=beat).erase()
    assert column(workshop.database, "SELECT id FROM keys WHERE revoked IS NULL") == [workshop.tenants["ann"]]
    assert workshop.queue.get(job.id).cancel_asked
    attempts.cancelled(job)
    workshop.forgetting().erase()
    assert column(workshop.database, "SELECT id FROM jobs") == []


def test_a_running_job_whose_process_died_is_erased(workshop: Workshop) -> None:
    workshop.put("wilhelmina", SECRET)
    Attempts(workshop.queue).claim(limit=1)
    workshop.forgetting(wait_s=0).erase()
    assert column(workshop.database, "SELECT id FROM jobs") == []


@pytest.mark.parametrize("at", ["erase_pictures", "erase_rows"])
def test_an_interrupted_run_can_be_started_again(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    workshop.draw("wilhelmina", SECRET, 1)
    done = getattr(Forgetting, at)

    def crash(self: Forgetting, *arguments: Any) -> None:
        done(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Forgetting, at, crash)
    with pytest.raises(KeyboardInterrupt):
        workshop.forgetting().erase()
    monkeypatch.undo()
    assert find_tenant(workshop.database, "wilhelmina")
    workshop.forgetting().erase()
    assert where({"prompt": SECRET.encode()}, workshop.home, files_of(workshop.database)) == []
    assert verified(workshop.ledger).whole


def test_a_key_is_found_by_name_and_id(workshop: Workshop) -> None:
    tenant = workshop.tenants["ann"]
    assert find_tenant(workshop.database, "ann") == find_tenant(workshop.database, tenant) == tenant
    with pytest.raises(InvalidRequest, match="no key has the name or id 'anne'; did you mean 'ann'"):
        find_tenant(workshop.database, "anne")
    workshop.keys.revoke("ann")
    workshop.keys.create("ann")
    with pytest.raises(InvalidRequest, match="several keys had the name 'ann': give the id of one"):
        find_tenant(workshop.database, "ann")
    assert find_tenant(workshop.database, tenant) == tenant
