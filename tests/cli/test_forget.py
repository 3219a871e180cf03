"""`safelight forget`: beside a running server, with a signed report, and only if it is meant."""

import json
from pathlib import Path

import httpx
from tests.byte_search import where
from tests.cli.conftest import Call
from tests.serving.conftest import ended, serving, settings_in

from safelight.assets.store import AssetStore
from safelight.database.connect import open_database
from safelight.serving.jobs.keys import Keys
from safelight.trust.credentials import trusted_roots
from safelight.trust.statements import read_statement

SECRET = "a portrait of aunt Wilhelmina"
IDEMPOTENCY = "wilhelmina-at-home-1"


def test_a_tenant_of_a_running_server_is_forgotten(home: Path, safelight: Call) -> None:
    settings = settings_in(home, no_keys=False)
    database = open_database(settings.database)
    key = Keys(database).create("wilhelmina")
    database.close()
    with serving(settings) as url, httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as client:
        body = {"prompt": SECRET, "steps": 2, "width": 64, "height": 64}
        headers = {"idempotency-key": IDEMPOTENCY}
        job = client.post("/v1/jobs", json=body, headers=headers).raise_for_status().json()
        done = ended(client, job["id"])
        path = AssetStore(settings.blobs).path_of(done["asset_id"])
        needles = {"prompt": b"Wilhelmina", "key": IDEMPOTENCY.encode(), "picture": path.read_bytes()[-400:-300]}
        counted = safelight("forget", "wilhelmina", "--dry-run", "--json")
        assert json.loads(counted.stdout)["pictures"] == 1
        assert path.exists()
        forgotten = safelight("forget", "wilhelmina", "--yes")
        assert forgotten.exit_code == 0, forgotten.output
        assert "backups" in forgotten.stdout
        assert client.get("/v1/jobs").status_code == 401
        assert where(needles, home) == []
    [report] = (home / "reports").iterdir()
    signed = json.loads(report.read_text())
    statement = read_statement(signed["statement"], trusted_roots(settings.trust))
    assert (statement.payload, statement.trusted) == (signed["report"], True)
    assert signed["report"]["assets"] == [done["asset_id"]]
    assert signed["report"]["counts"]["jobs"] == 1
    assert where(needles | {"name": b"wilhelmina"}, home) == []
    assert safelight("trust", "ledger", "verify").exit_code == 0


def test_the_command_asks_and_takes_no_for_an_answer(home: Path, safelight: Call) -> None:
    safelight("keys", "create", "joe")
    refused = safelight("forget", "joe", input="n\n")
    assert refused.exit_code != 0
    assert "Erase all of it, for good?" in refused.output
    assert "joe" in safelight("keys", "list").stdout
    assert not (home / "reports").exists()


def test_with_a_key_service_that_is_away_nothing_is_erased(home: Path, safelight: Call) -> None:
    safelight("keys", "create", "joe")
    safelight("trust", "init")
    refused = safelight("forget", "joe", "--yes", env={"SAFELIGHT_TRUST_SIGNER": "tests.trust.test_verify_chain:away"})
    assert refused.exit_code == 1
    assert "SAFELIGHT_TRUST_SIGNER failed" in refused.stderr
    assert "joe" in safelight("keys", "list").stdout
    assert not (home / "reports").exists()


def test_a_report_is_written_to_a_new_file_or_nothing_is_erased(safelight: Call, tmp_path: Path) -> None:
    safelight("keys", "create", "joe")
    (tmp_path / "there.json").write_text("{}")
    refused = safelight("forget", "joe", "--yes", "--out", tmp_path / "there.json")
    assert refused.exit_code == 2
    assert "cannot be written" in refused.stderr
    said = json.loads(safelight("forget", "joe", "--yes", "--json", "--out", tmp_path / "new.json").stdout)
    assert said["counts"]["jobs"] == 0
    assert json.loads((tmp_path / "new.json").read_text())["statement"]
    assert "no key has the name or id" in safelight("forget", "joe", "--yes").stderr
