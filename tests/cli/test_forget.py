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
