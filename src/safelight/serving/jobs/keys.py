"""API keys: `sl-<id>-<secret>`. The secret is shown once; the database holds its sha256."""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from safelight.database.connect import Database
from safelight.database.upsert import insert_into
from safelight.errors import Forbidden, InvalidRequest, Unauthorized, nearest
from safelight.serving.jobs.tables import KeyRow, SecretRow

SCOPES = ("draw", "admin")
"""draw: make pictures and see one's own. admin: see and cancel the jobs of all keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The authenticated caller of a request; the defaults are for a server without keys."""

    tenant: str = ""
    name: str = "anyone"
    scopes: tuple[str, ...] = SCOPES
    per_minute: int | None = None
    pictures_per_day: int | None = None
    compute_s_per_day: float | None = None
    priority: int = 0
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def require(self, scope: str) -> None:
        if scope not in self.scopes:
            raise Forbidden(f"this key lacks the scope {scope!r}; it has {', '.join(self.scopes)}")

    @property
    def sees(self) -> str | None:
        """The tenant whose jobs it may see; None is all tenants."""
        return None if "admin" in self.scopes else self.tenant


class Keys:
    def __init__(self, database: Database) -> None:
        self.database = database

    def create(
        self,
        name: str,
        *,
        scopes: tuple[str, ...] = ("draw",),
        per_minute: int | None = None,
        pictures_per_day: int | None = None,
        compute_s_per_day: float | None = None,
        priority: int = 0,
    ) -> str:
        """Create a key and return it, to be shown once."""
        if not re.fullmatch(r"[\w.@-]{1,64}", name):
            raise InvalidRequest(f"name {name!r}: 1 to 64 letters, digits and . _ - @")
        for scope in scopes:
            if scope not in SCOPES:
                raise InvalidRequest(f"no scope {scope!r}{nearest(scope, list(SCOPES))}; known: {', '.join(SCOPES)}")
        key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        row = KeyRow(
            id=key_id,
            name=name,
            secret_sha256=sha256(secret),
            scopes=" ".join(scopes),
            created=time.time(),
            per_minute=per_minute,
            pictures_per_day=pictures_per_day,
            compute_s_per_day=compute_s_per_day,
            priority=priority,
            options={},
        )

        def work(session: Session) -> None:
            if session.scalar(select(KeyRow.id).where(KeyRow.name == name, KeyRow.revoked.is_(None))):
                raise InvalidRequest(f"a key named {name!r} is in use; revoke it, or choose another name")
            session.add(row)

        self.database.write(work)
        return f"sl-{key_id}-{secret}"

    def list(self) -> list[KeyRow]:
        return self.database.read(lambda session: [*session.scalars(select(KeyRow).order_by(KeyRow.created))])

    def revoke(self, name: str) -> None:
        """Revoke the key of that name; its jobs stay."""
        change = update(KeyRow).where(KeyRow.name == name, KeyRow.revoked.is_(None)).values(revoked=time.time())
        revoked = self.database.write(lambda session: session.execute(change.returning(KeyRow.id)).first())
        if revoked is None:
            known = [row.name for row in self.list() if row.revoked is None]
            raise InvalidRequest(f"no key named {name!r} is in use{nearest(name, known)}")

    def exist(self) -> bool:
        """Whether any key is in use."""
        query = select(KeyRow.id).where(KeyRow.revoked.is_(None)).limit(1)
        return self.database.read(lambda session: session.scalar(query)) is not None

    def caller(self, key: str) -> Caller:
        """The caller with this key.

        Raises:
            Unauthorized: the key is unknown or revoked.
        """
        parts = re.fullmatch(r"sl-([0-9a-f]{8})-([\w-]{20,100})", key)
        row = self.database.read(lambda session: session.get(KeyRow, parts[1])) if parts else None
        expected = row.secret_sha256 if row else ""
        given = sha256(parts[2]) if parts else sha256("")
        # Compared in the same time whether the id exists or not.
        if not hmac.compare_digest(given, expected) or row is None:
            raise Unauthorized("this API key is unknown here; `safelight keys create NAME` makes one")
        if row.revoked is not None:
            raise Unauthorized("this API key has been revoked")
        return Caller(
            tenant=row.id,
            name=row.name,
            scopes=tuple(row.scopes.split()),
            per_minute=row.per_minute,
            pictures_per_day=row.pictures_per_day,
            compute_s_per_day=row.compute_s_per_day,
            priority=row.priority,
            options=row.options,
        )

    def set_options(self, tenant: str, options: dict[str, Any]) -> None:
        self.database.write(
            lambda session: session.execute(update(KeyRow).where(KeyRow.id == tenant).values(options=options))
        )

    def secret(self, purpose: str) -> bytes:
        """The server's own secret for that purpose, created at its first use."""

        def work(session: Session) -> str:
            # Servers that start together on a new database all use the first one written.
            new = insert_into(session, SecretRow).values(purpose=purpose, value=secrets.token_hex(32))
            session.execute(new.on_conflict_do_nothing())
            return session.get_one(SecretRow, purpose).value

        return bytes.fromhex(self.database.write(work))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
