"""A webhook from the request that names it to the receiver that checks it."""

import hashlib
import hmac
import json
from pathlib import Path

import httpx
import pytest
from tests.patience import wait_until
from tests.serving.conftest import serving, settings_in
from tests.webhook_receiver import receiving
from typer.testing import CliRunner

from safelight.cli.main import app

SMALL = {"prompt": "a red apple", "seed": 7, "steps": 2, "width": 64, "height": 64}


def test_a_receiver_gets_a_webhook_and_can_verify_it(home: Path) -> None:
    settings = settings_in(home).model_copy(update={"allow_private_webhooks": True})
    with receiving() as receiver, serving(settings) as url:
        job = httpx.post(f"{url}/v1/jobs", json=SMALL | {"webhook_url": receiver.url}).raise_for_status().json()
        wait_until(lambda: receiver.got)
        counted = httpx.get(f"{url}/metrics").text
    [(headers, body)] = receiver.got
    said = json.loads(body)
    assert (said["id"], said["state"]) == (job["id"], "done")
    assert 'safelight_webhooks_total{outcome="sent"} 1.0' in counted
    secret = bytes.fromhex(CliRunner().invoke(app, ["keys", "webhook-secret"]).stdout.strip())
    signed = hmac.new(secret, headers["safelight-timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["safelight-signature"] == f"v1={signed}"


@pytest.mark.parametrize("to", ["http://127.0.0.1:9/hook", "http://169.254.169.254/", "file:///etc/passwd"])
def test_a_private_receiver_is_refused_with_the_request(server: str, to: str) -> None:
    refused = httpx.post(f"{server}/v1/jobs", json=SMALL | {"webhook_url": to})
    assert refused.status_code == 400
    assert "webhook_url" in refused.json()["error"]["message"]
