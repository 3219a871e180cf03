"""Webhooks: signed, tried again, sent once, and never into a private network."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.webhook_receiver import Receiver, receiving

from safelight.database.connect import Database
from safelight.errors import InvalidRequest
from safelight.serving.jobs import webhooks
from safelight.serving.jobs.attempts import Attempts, JobProgress
from safelight.serving.jobs.queue import JobQueue, NewJob, Terms
from safelight.serving.jobs.tables import JobRow
from safelight.serving.jobs.webhooks import MAX_TRIES, Webhooks, require_webhook_url

SECRET = bytes(range(32))
ORDER = NewJob(spec={"prompt": "a secret apple"}, encoding={})


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as told:
        yield told


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ended(database: Database, clock: Clock, url: str) -> str:
    """The id of a job that is done and whose webhook is due."""
    queue = JobQueue(database, clock=clock)
    me = Attempts(queue)
    queue.put([ORDER], Terms(webhook_url=url))
    [job] = me.claim(limit=1)
    assert me.finish(job, asset_id="a" * 64, seconds=1.5, progress=JobProgress(compute_s=0.5))
    return job.id


def tries(database: Database, clock: Clock, *, times: int = 1, private: bool = True) -> list[str]:
    """What became of so many tries, with the clock moved to when each is due."""
    outcomes: list[str] = []

    async def go() -> None:
        sender = Webhooks(database, SECRET, private=private, clock=clock, on_event=outcomes.append)
        for _ in range(times):
            await sender.send_due()
            await asyncio.gather(*sender.sending)
            clock.now += 4000
        await sender.client.aclose()

    asyncio.run(go())
    return outcomes


def row(database: Database, job_id: str) -> JobRow:
    return JobQueue(database).get(job_id)


def test_a_finished_job_sends_one_signed_webhook(database: Database, clock: Clock, receiver: Receiver) -> None:
    job_id = ended(database, clock, receiver.url)
    assert tries(database, clock, times=3) == ["sent"]
    [(headers, body)] = receiver.got
    said = json.loads(body)
    assert (said["id"], said["state"], said["asset_id"], said["error"]) == (job_id, "done", "a" * 64, None)
    assert "apple" not in body.decode()
    # As docs/server.md tells receivers to.
    expected = hmac.new(SECRET, headers["safelight-timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["safelight-signature"] == f"v1={expected}"
    assert headers["safelight-delivery"] == job_id
    assert row(database, job_id).webhook_state == "sent"


def test_a_failure_of_the_receiver_is_tried_again_later(database: Database, clock: Clock, receiver: Receiver) -> None:
    job_id = ended(database, clock, receiver.url)
    receiver.statuses = [500, 503]
    assert tries(database, clock, times=3) == ["failed", "failed", "sent"]
    assert {headers["safelight-delivery"] for headers, _ in receiver.got} == {job_id}
    assert len({headers["safelight-timestamp"] for headers, _ in receiver.got}) == 3


def test_a_receiver_that_is_down_is_given_up_after_an_hour(
    database: Database, clock: Clock, receiver: Receiver
) -> None:
    began = clock.now
    job_id = ended(database, clock, "http://127.0.0.1:1/nobody")
    due = []
    for _ in range(MAX_TRIES):
        due.append(clock.now - began)
        clock_before = clock.now
        tries(database, clock)
        clock.now = max(clock_before, row(database, job_id).webhook_due)
    assert row(database, job_id).webhook_state == "given up"
    assert due == [0, 30, 90, 210, 450, 930, 1890, 3810]
    assert tries(database, clock) == []


def test_a_slow_receiver_does_not_delay_the_others(
    database: Database, clock: Clock, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.3)
    ended(database, clock, receiver.url)
    receiver.slow = True
    assert tries(database, clock) == ["failed"]


def test_a_redirect_is_not_followed(database: Database, clock: Clock, receiver: Receiver) -> None:
    ended(database, clock, receiver.url)
    receiver.statuses, receiver.location = [307], receiver.url.replace("/hook", "/inside")
    assert tries(database, clock) == ["failed"]
    assert len(receiver.got) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433"])
def test_nothing_is_sent_into_a_private_network(
    database: Database, clock: Clock, receiver: Receiver, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended(database, clock, receiver.url.replace("127.0.0.1", host))
    assert tries(database, clock, private=False) == ["failed"]
    assert receiver.got == []
    assert "private network" in caplog.text


def test_only_one_of_several_processes_sends(database: Database, clock: Clock, receiver: Receiver) -> None:
    ids = {ended(database, clock, receiver.url) for _ in range(6)}
    senders = [Webhooks(database, SECRET, private=True, clock=clock) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        taken = [job.id for job in pool.map(lambda number: senders[number % 4].take_due(), range(12)) if job]
    assert len(taken) == len(set(taken))
    assert set(taken) <= ids
    while job := senders[0].take_due():
        taken.append(job.id)
    assert sorted(taken) == sorted(ids)

    async def close() -> None:
        for sender in senders:
            await sender.client.aclose()

    asyncio.run(close())


def test_an_interrupted_try_is_made_again(database: Database, clock: Clock, receiver: Receiver) -> None:
    ended(database, clock, receiver.url)
    dead = Webhooks(database, SECRET, private=True, clock=clock)
    assert dead.take_due(), "and then its process dies"
    asyncio.run(dead.client.aclose())
    assert tries(database, clock) == []
    clock.now += 31
    assert tries(database, clock) == ["sent"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://example.org/x", "expected https"),
        ("example.org", "expected https"),
        ("https:///x", "expected https"),
        ("https://user:word@example.org/", "leave out user"),
        ("https://example.org:99999/", "webhook_url"),
        ("http://127.0.0.1/x", "private network"),
        ("http://[::1]:8000/x", "private network"),
        ("http://localhost/x", "private network"),
        ("http://169.254.169.254/latest", "private network"),
    ],
)
def test_an_unreachable_webhook_url_is_refused_at_once(url: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        require_webhook_url(url, private=False)


def test_a_public_webhook_url_is_accepted() -> None:
    require_webhook_url("https://example.org:8443/hook?x=1", private=False)
    require_webhook_url("http://127.0.0.1:9000/hook", private=True)
