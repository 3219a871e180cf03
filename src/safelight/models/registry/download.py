"""A safetensors file from a URL: public addresses only, resumed where it was cut off, refused as early as can be."""

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
from safelight.models.registry.storage import require_room, writing
from safelight.models.weights.safetensors_file import not_safetensors
from safelight.public_http import public_client

SILENCE_S = 30.0
"""Longest wait for the next bytes; a download as a whole takes as long as it takes."""
MAX_REDIRECTS = 5
PAUSES_S = (0.5, 2.0, 8.0)
"""Between tries of one that was cut off; each goes on where the last ended."""
BROKEN = (httpx.HTTPError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


class DownloadFailed(SafelightError):
    status, code = 502, "download_failed"


class CutOff(Exception):
    """The rest may come at another try."""


@dataclass(slots=True)
class PartialDownload:
    """What has arrived so far, and of which state of the file on the server."""

    path: Path
    url: str

    @property
    def note(self) -> Path:
        return self.path.with_suffix(".state")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def validator(self) -> str:
        """The server's mark for that state; empty where nothing can be resumed."""
        try:
            return self.note.read_text(encoding="utf-8") if self.size else ""
        except (OSError, ValueError):
            return ""

    def begin(self, validator: str) -> None:
        self.path.write_bytes(b"")
        self.note.write_text(validator, encoding="utf-8")

    def forget(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)


async def download(url: str, target: Path, *, partials: Path, private: bool, max_bytes: int) -> None:
    """
    Raises:
        InvalidRequest: the server has no such file, or lies where we do not go. TooLarge: it is beyond `max_bytes`.
        UnsafeFile, CorruptModel: it is no safetensors file, as its first bytes show.
        DownloadFailed: cut off again and again; what arrived is kept, and the next try goes on from there.
    """
    # Under a hash of the URL, since it may hold a token. The lock's file stays: who removed it could let two hold it.
    key = hashlib.sha256(url.encode()).hexdigest()[:24]
    partial = PartialDownload(partials / f".download-{key}.part", url)
    try:
        with FileLock(partials / f".download-{key}.lock", timeout=0), writing(partials):
            await tried_again(partial, private=private, max_bytes=max_bytes)
            partial.path.replace(target)
            partial.forget()
    except Timeout:
        raise InvalidRequest(f"{host_of(url)}: another process is downloading this file now; wait for it") from None


async def tried_again(partial: PartialDownload, *, private: bool, max_bytes: int) -> None:
    for pause_s in (*PAUSES_S, None):
        try:
            async with answer_to(partial, private=private) as answer:
                await receive(answer, partial, max_bytes=max_bytes)
            return
        except (CutOff, *BROKEN) as error:
            if pause_s is None:
                raise DownloadFailed(
                    f"{host_of(partial.url)}: cut off after {partial.size:,} bytes ({error or type(error).__name__}); "
                    "the same command goes on from there"
                ) from error
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"{partial.url[:200]}: {error}") from None
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def answer_to(partial: PartialDownload, *, private: bool) -> AsyncGenerator[httpx.Response, None]:
    """The answer after all redirects, each of which is a new address to check."""
    url, headers = partial.url, {"Accept-Encoding": "identity"}
    if validator := partial.validator():
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": validator}
    client = httpx.AsyncClient(timeout=SILENCE_S) if private else public_client(timeout_s=SILENCE_S)
    async with client:
        for _ in range(MAX_REDIRECTS + 1):
            async with client.stream("GET", url, headers=headers) as answer:
                if not answer.is_redirect:
                    yield answer
                    return
                url = urljoin(url, answer.headers["location"])
                if urlsplit(url).scheme not in ("http", "https"):
                    raise InvalidRequest(
                        f"{host_of(partial.url)} leads to {url[:100]}; only http and https are fetched"
                    )
    raise InvalidRequest(f"{host_of(partial.url)}: more than {MAX_REDIRECTS} redirects")


async def receive(answer: httpx.Response, partial: PartialDownload, *, max_bytes: int) -> None:
    match answer.status_code:
        case 206 if (total := resumed_total(answer, at=partial.size)) is not None:
            pass
        case 200:
            total = int(length) if (length := answer.headers.get("content-length", "")).isdecimal() else None
            partial.begin(validator_of(answer))
        case 206 | 416:
            partial.forget()
            raise CutOff("the server has another file by now")
        case 429 | 500 | 502 | 503 | 504:
            raise CutOff(f"answered {answer.status_code}")
        case status:
            raise InvalidRequest(f"{host_of(partial.url)}: answered {status} {answer.reason_phrase}")
    if total is not None and total > max_bytes:
        partial.forget()
        raise TooLarge(f"{host_of(partial.url)}: {total:,} bytes; the limit is {max_bytes:,}")
    require_room(partial.path.parent, (total or 0) - partial.size)
    with partial.path.open("ab") as file:
        async for part in answer.aiter_bytes():
            file.write(part)
            if file.tell() > max_bytes:
                partial.forget()
                raise TooLarge(f"{host_of(partial.url)}: more than {max_bytes:,} bytes, the limit")
            if file.tell() - len(part) < 8 <= file.tell():
                file.flush()
                refuse_what_is_no_model(partial, total)
    if total is not None and partial.size != total:
        raise CutOff(f"{partial.size:,} of {total:,} bytes came")


def refuse_what_is_no_model(partial: PartialDownload, total: int | None) -> None:
    """Told by the first bytes: a page that asks for a password, or a pickle, need not come whole."""
    head = partial.path.read_bytes()[:8]
    (length,) = struct.unpack("<Q", head)
    size = total if total is not None else length + 8
    if not 2 <= length <= size - 8 or length > 2**40:
        partial.forget()
        raise not_safetensors(Path(urlsplit(partial.url).path), head, size)


def resumed_total(answer: httpx.Response, *, at: int) -> int | None:
    """The whole length, if what comes is the rest of what is here."""
    unit, _, said = answer.headers.get("content-range", "").partition(" ")
    span, _, total = said.partition("/")
    return int(total) if unit == "bytes" and span.startswith(f"{at}-") and total.isdecimal() else None


def validator_of(answer: httpx.Response) -> str:
    """A strong etag or a date; a weak etag does not promise the same bytes."""
    etag = answer.headers.get("etag", "")
    return etag if etag.startswith('"') else answer.headers.get("last-modified", "")


def host_of(url: str) -> str:
    """For messages: the rest of a URL may hold a token."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}{parts.path}"
    except ValueError:
        return url[:100]
