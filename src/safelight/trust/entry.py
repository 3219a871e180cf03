"""What the ledger says of a picture, and how it is written down.

A row of the chain holds digests and marks, and stays. What is personal (`words`) or shows the picture (`likeness`) lies
beside it under a salt, and can be erased: the row then keeps a digest that nobody can try guesses on.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

Action = Literal["drawn", "upscaled", "erased", "rotated", "checkpoint"]
Kind = Literal["words", "likeness"]
"""Of what can be erased."""
LOCAL = "local"
"""The actor at the command line, and on a server without keys."""
GENESIS = "0" * 64
"""What the first row follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One picture that is stored. What is empty is left out of the ledger."""

    action: Literal["drawn", "upscaled"]
    asset_id: str
    """sha256 of the stored file, in hex."""
    actor: str = LOCAL
    """See `actor_of`."""
    time: float = field(default_factory=time.time)
    """When the picture was stored, in seconds since the epoch."""
    uid: str = ""
    """The 64-bit id in the watermark, as 16 hex digits."""
    pixels_before: str = ""
    """sha256 of the pixels before the watermark."""
    pixels_after: str = ""
    spec_digest: str = ""
    model: str = ""
    """Digest of the model's weights."""
    place: str = ""
    """The request and the picture's place in it, such as the id of its job: a request has one asset for each."""
    marks: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Signature and watermark: certificate, algorithm, key, outcome."""
    verdicts: Sequence[Mapping[str, Any]] = ()
    words: Mapping[str, str] = field(default_factory=dict[str, str])
    """Prompt, negative prompt, name of the key: erased with time, or when a person is forgotten."""
    likeness: bytes = b""
    """See `fingerprint.likeness`: erased when a person is forgotten."""

    @property
    def once(self) -> str:
        """What may be in the ledger once: a place of a request, or else a stored file for an actor."""
        return once(self.place, self.spec_digest) if self.place else digest(self.action, self.actor, self.asset_id)

    def record(self) -> dict[str, Any]:
        """What goes into the chain."""
        left_out = ("place", "words", "likeness")
        values = {name: value for name, value in self.items() if name not in left_out and value}
        return values | {"once": self.once}

    def bodies(self) -> dict[Kind, str]:
        """What lies beside the chain."""
        found: dict[Kind, str] = {"words": canonical(self.words) if self.words else "", "likeness": encode(self)}
        return {kind: body for kind, body in found.items() if body}

    def items(self) -> list[tuple[str, Any]]:
        return [(each.name, getattr(self, each.name)) for each in fields(self)]

    def to_json(self) -> str:
        return canonical(dict(self.items()) | {"likeness": encode(self)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, TypeError: it is not what `to_json` wrote."""
        values = json.loads(text)
        return cls(**(values | {"likeness": base64.b64decode(values["likeness"])}))


def encode(entry: Entry) -> str:
    return base64.b64encode(entry.likeness).decode()


def actor_of(tenant: str) -> str:
    """A digest for the id of an API key, the same for all of its rows."""
    return f"key:{digest('actor', tenant)[:32]}" if tenant else LOCAL


def once(place: str, spec_digest: str) -> str:
    """What may be in the ledger once for a place of a request."""
    return digest("place", place, spec_digest)


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def body_digest(salt: bytes, body: str) -> str:
    """What the chain keeps of a body. Without the salt, a guess at the body cannot be checked."""
    return hmac.digest(salt, body.encode(), "sha256").hex()


def link(key: bytes, prev: str, record: str) -> str:
    """The hash of a row: HMAC-SHA256 of the row before it and its own record."""
    return hmac.digest(key, bytes.fromhex(prev) + record.encode(), "sha256").hex()


def read_record(text: str) -> dict[str, Any] | None:
    """The record of a row, which somebody may have changed; None if it is no record."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]


def canonical(value: Any) -> str:
    """JSON with sorted keys, without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
