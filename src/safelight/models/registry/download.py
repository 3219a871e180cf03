"""Download a safetensors file from a URL: public addresses only, resumable, refused as early as possible."""

import asyncio
import hashlib
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx
from filelock import FileLock, Timeout

from safelight.errors import InvalidRequest, SafelightError, TooLarge
from safelight.models.registry.storage import require_space, writing
from safelight.models.weights.safetensors_file import not_safetensors
from safelight.public_http import public_client

READ_TIMEOUT_S = 30.0
"""Longest wait for the next bytes; there is no limit for the whole download."""
MAX_REDIRECTS = 5
PAUSES_S = (0.5, 2.0, 8.0)
"""Pauses between attempts at an interrupted download; each attempt resumes it."""
CONNECTION_ERRORS = (httpx.HTTPError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


class DownloadFailed(SafelightError):
    status, code = 502, "download_failed"


class Interrupted(Exception):
    """The download was interrupted and can be resumed."""


@dataclass(slots=True)
class PartialDownload:
    """The bytes received so far, and the validator (etag or date) of the server's file."""

    path: Path
    url: str

    @property
    def state_file(self) -> Path:
        return self.path.with_suffix(".state")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def validator(self) -> str:
        """Return the server's validator of the file; empty if nothing can be resumed."""
        try:
            return self.state_file.read_text(encoding="utf-8") if self.size else ""
        except (OSError, ValueError):
            return ""

    def begin(self, validator: str) -> None:
        self.path.write_bytes(b"")
        self.state_file.write_text(validator, encoding="utf-8")

    def forget(self) -> None:
        for path in (self.path, self.state_file):
            path.unlink(missing_ok=True)


async def download(url: str, target: Path, *, partials: Path, private: bool, max_bytes: int) -> None:
    """
    Raises:
        InvalidRequest: the server has no such file, or its address is not allowed. TooLarge: more than `max_bytes`.
        UnsafeFile, CorruptModel: the first bytes are not those of a safetensors file.
        DownloadFailed: interrupted at every attempt; the received bytes are stored, and the next call resumes.
    """
    # Named by a hash of the URL, which may hold a token. The lock file is never removed: else two could hold the lock.
    key = hashlib.sha256(url.encode()).hexdigest()[:24]
    partial = PartialDownload(partials / f".download-{key}.part", url)
    try:
        with FileLock(partials / f".download-{key}.lock", timeout=0), writing(partials):
            await download_with_retries(partial, private=private, max_bytes=max_bytes)
            partial.path.replace(target)
            partial.forget()
    except Timeout:
        raise InvalidRequest(f"{host_of(url)}: another process is downloading this file now; wait for it") from None


async def download_with_retries(partial: PartialDownload, *, private: bool, max_bytes: int) -> None:
    for pause_s in (*PAUSES_S, None):
        try:
            async with open_response(partial, private=private) as response:
                await receive(response, partial, max_bytes=max_bytes)
            return
        except (Interrupted, *CONNECTION_ERRORS) as error:
            if pause_s is None:
                raise DownloadFailed(
                    f"{host_of(partial.url)}: interrupted after {partial.size:,} bytes "
                    f"({error or type(error).__name__}); run the same command again to resume"
                ) from error
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"{partial.url[:200]}: {error}") from None
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def open_response(partial: PartialDownload, *, private: bool) -> AsyncGenerator[httpx.Response, None]:
    """Open the response after all redirects; the address of each redirect is checked."""
    url, headers = partial.url, {"Accept-Encoding": "identity"}
    if validator := partial.validator():
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": validator}
    client = httpx.AsyncClient(timeout=READ_TIMEOUT_S) if private else public_client(timeout_s=READ_TIMEOUT_S)
    async with client:
        for _ in range(MAX_REDIRECTS + 1):
            async with client.stream("GET", url, headers=headers) as response:
                if not response.is_redirect:
                    yield response
                    return
                url = urljoin(url, response.headers["location"])
                if urlsplit(url).scheme not in ("http", "https"):
                    raise InvalidRequest(
                        f"{host_of(partial.url)} redirects to {url[:100]}; only http and https are allowed"
                    )
    raise InvalidRequest(f"{host_of(partial.url)}: more than {MAX_REDIRECTS} redirects")


async def receive(response: httpx.Response, partial: PartialDownload, *, max_bytes: int) -> None:
    match response.status_code:
        case 206 if (total := resumed_total(response, at=partial.size)) is not None:
            pass
        case 200:
            total = int(length) if (length := response.headers.get("content-length", "")).isdecimal() else None
            partial.begin(validator_of(response))
        case 206 | 416:
            partial.forget()
            raise Interrupted("the file on the server has changed")
        case 429 | 500 | 502 | 503 | 504:
            raise Interrupted(f"answered {response.status_code}")
        case status:
            raise InvalidRequest(f"{host_of(partial.url)}: answered {status} {response.reason_phrase}")
    if total is not None and total > max_bytes:
        partial.forget()
        raise TooLarge(f"{host_of(partial.url)}: {total:,} bytes; the limit is {max_bytes:,}")
    require_space(partial.path.parent, (total or 0) - partial.size)
    with partial.path.open("ab") as file:
        async for part in response.aiter_bytes():
            file.write(part)
            if file.tell() > max_bytes:
                partial.forget()
                raise TooLarge(f"the file of {host_of(partial.url)} is larger than {max_bytes:,} bytes, the limit")
            if file.tell() - len(part) < 8 <= file.tell():
                file.flush()
                require_safetensors(partial, total)
    if total is not None and partial.size != total:
        raise Interrupted(f"received {partial.size:,} of {total:,} bytes")


def require_safetensors(partial: PartialDownload, total: int | None) -> None:
    """Raise if the first bytes are no safetensors header, so that a login page or a pickle is not downloaded whole."""
    head = partial.path.read_bytes()[:8]
    (length,) = struct.unpack("<Q", head)
    size = total if total is not None else length + 8
    if not 2 <= length <= size - 8 or length > 2**40:
        partial.forget()
        raise not_safetensors(Path(urlsplit(partial.url).path), head, size)


def resumed_total(response: httpx.Response, *, at: int) -> int | None:
    """Return the file's total length if the response continues at byte `at`."""
    unit, _, content_range = response.headers.get("content-range", "").partition(" ")
    span, _, total = content_range.partition("/")
    return int(total) if unit == "bytes" and span.startswith(f"{at}-") and total.isdecimal() else None


def validator_of(response: httpx.Response) -> str:
    """Return a strong etag, else the date; a weak etag does not guarantee identical bytes."""
    etag = response.headers.get("etag", "")
    return etag if etag.startswith('"') else response.headers.get("last-modified", "")


def host_of(url: str) -> str:
    """Return the URL without its query, for messages: the query may hold a token."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}{parts.path}"
    except ValueError:
        return url[:100]
