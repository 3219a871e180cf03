"""Webhooks: when a job has ended, send one signed POST, tried again until it is accepted or given up.

    safelight-delivery    the same at every try, so that a receiver recognises a repetition
    safelight-timestamp   seconds since the epoch, when this try was made
    safelight-signature   v1=HMAC-SHA256(secret, timestamp + "." + body), in hex

The job's row has the time of the next try. A try first moves that time into the future and then sends: of several
processes one sends, and if a process dies while it sends, the webhook is only delayed.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from safelight.database.connect import Database
from safelight.errors import InvalidRequest, StorageFailed
from safelight.public_http import is_public, public_client
from safelight.serving.jobs.loops import Loop
from safelight.serving.jobs.tables import JobRow
from safelight.version import __version__

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
POLL_S = 1.0
FIRST_DELAY_S = 30.0
MAX_TRIES = 8
"""With delays of 30 s, doubled each time, the last is made an hour after the first."""
MAX_AT_ONCE = 8
"""Concurrent tries, so that a slow receiver does not delay the others."""
Outcome = str
"""`sent`, `failed` (and to be tried again) or `given up`."""


class Webhooks:
    def __init__(
        self,
        database: Database,
        secret: bytes,
        *,
        private: bool = False,
        first_delay_s: float = FIRST_DELAY_S,
        clock: Callable[[], float] = time.time,
        on_event: Callable[[Outcome], None] = lambda _outcome: None,
    ) -> None:
        """With `private`, receivers may be inside a private network."""
        self.database = database
        self.secret = secret
        self.client = (
            httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False)
            if private
            else public_client(timeout_s=TIMEOUT_S)
        )
        self.first_delay_s = first_delay_s
        self.clock = clock
        self.on_event = on_event
        self.sending: set[asyncio.Task[None]] = set()
        self.loop = Loop("sending webhooks", self.send_due, every_s=POLL_S)

    async def run(self) -> None:
        """Run until cancelled; an interrupted try is made again later."""
        try:
            await self.loop.run()
        finally:
            for task in self.sending:
                task.cancel()
            await asyncio.gather(*self.sending, return_exceptions=True)
            await self.client.aclose()

    async def send_due(self) -> None:
        """Start to send the webhooks that are due now."""
        while len(self.sending) < MAX_AT_ONCE and (job := await self.database.run(self.take_due)):
            task = asyncio.create_task(self.send(job))
            self.sending.add(task)
            task.add_done_callback(self.sending.discard)

    def take_due(self) -> JobRow | None:
        """Take a due webhook, which no other process sends until its next try is due; None if there is none."""
        now = self.clock()
        due = select(JobRow).where(JobRow.webhook_state == "due", JobRow.webhook_due <= now).limit(1)
        # Reading blocks nobody; take SQLite's single write lock only if something is due.
        if self.database.read(lambda session: session.scalar(due)) is None:
            return None

        def work(session: Session) -> JobRow | None:
            job = session.scalar(due.order_by(JobRow.webhook_due).with_for_update(skip_locked=True))
            if job:
                job.webhook_due = now + self.first_delay_s * 2**job.webhook_attempts
                job.webhook_attempts += 1
            return job

        return self.database.write(work)

    async def send(self, job: JobRow) -> None:
        """Make one try and record its outcome."""
        assert job.webhook_url is not None
        try:
            status = await self.post(job.webhook_url, body_of(job), delivery=job.id)
            problem = "" if 200 <= status < 300 else f"answered {status}"
        except Exception as error:  # noqa: BLE001  whatever a receiver does, the try has failed
            problem = str(error) or type(error).__name__
        last = job.webhook_attempts >= MAX_TRIES
        outcome = "sent" if not problem else "given up" if last else "failed"
        fields = {"job_id": job.id, "host": urlsplit(job.webhook_url).hostname, "attempt": job.webhook_attempts}
        if problem:
            log.warning("webhook %s: %s", outcome, problem, extra=fields)
        else:
            log.info("webhook sent", extra=fields)
        if outcome != "failed":
            with suppress(StorageFailed):  # it is then sent again, which receivers recognise
                await self.database.run(self.save_state, job.id, outcome)
        self.on_event(outcome)

    async def post(self, url: str, body: bytes, *, delivery: str) -> int:
        """Send the request; returns the status of the answer, whose body is not read."""
        timestamp = str(int(self.clock()))
        headers = {
            "content-type": "application/json",
            "user-agent": f"safelight/{__version__}",
            "safelight-delivery": delivery,
            "safelight-timestamp": timestamp,
            "safelight-signature": sign(self.secret, timestamp, body),
        }
        async with (
            asyncio.timeout(TIMEOUT_S),
            self.client.stream("POST", url, content=body, headers=headers) as answer,
        ):
            return answer.status_code

    def save_state(self, job_id: str, state: str) -> None:
        def work(session: Session) -> None:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(webhook_state=state))

        self.database.write(work)


def body_of(job: JobRow) -> bytes:
    """The JSON body about a job, without its prompt and without links that open without a key."""
    fields = {
        "object": "job",
        "id": job.id,
        "request": job.request,
        "state": job.state,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "attempts": job.attempts,
        "asset_id": job.asset_id,
        "error": {name: job.error[name] for name in ("code", "message")} if job.error else None,
        "seconds": job.seconds,
        "compute_s": job.compute_s,
    }
    return json.dumps(fields).encode()


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    return f"v1={hmac.new(secret, timestamp.encode() + b'.' + body, hashlib.sha256).hexdigest()}"


def require_webhook_url(url: str, *, private: bool) -> None:
    """Check a webhook URL before its name is resolved; the address is checked when it is sent to.

    Raises:
        InvalidRequest: nothing can be sent there.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"webhook_url: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidRequest("webhook_url: expected https://HOST/... or http://HOST/...")
    if parts.username is not None:
        raise InvalidRequest("webhook_url: leave out user and password; receivers check the signature instead")
    try:
        public = is_public(str(ipaddress.ip_address(host)))
    except ValueError:
        public = host != "localhost" and not host.endswith(".localhost")
    if not public and not private:
        raise InvalidRequest(f"webhook_url: {host} is inside a private network, where this server sends no webhooks")
