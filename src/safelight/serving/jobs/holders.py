"""Access control for stored pictures, checked wherever a request names one by id.

Ids are digests of contents. A tenant holds a picture that it uploaded, had generated, or named in an accepted job.
"""

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from safelight.database.upsert import insert_into
from safelight.errors import UnknownAsset
from safelight.serving.jobs.tables import HolderRow
from safelight.spec import Denoised, Draft, Upscale
from safelight.spec.marks import Mark, marked


def hold(session: Session, asset_ids: Collection[str], tenant: str) -> None:
    """Let the tenant see these pictures from now on."""
    if asset_ids:
        rows = [{"asset_id": asset_id, "tenant": tenant} for asset_id in sorted(asset_ids)]
        session.execute(insert_into(session, HolderRow).values(rows).on_conflict_do_nothing())


def require_access(session: Session, asset_ids: Collection[str], tenant: str | None) -> None:
    """
    Args:
        tenant: None may see everything.

    Raises:
        UnknownAsset: the tenant does not hold one; same message as if it did not exist.
    """
    if tenant is None or not asset_ids:
        return
    held = select(HolderRow.asset_id).where(HolderRow.tenant == tenant, HolderRow.asset_id.in_(asset_ids))
    if missing := sorted(set(asset_ids) - set(session.scalars(held))):
        raise UnknownAsset(f"no picture {missing[0]!r} is stored here; an id is the 64 hex digits a job reported")


def pictures_of(request: Draft | Denoised | Upscale) -> set[str]:
    """The ids of all pictures that the request names."""
    return set(marked(request, Mark.PICTURE, Mark.SOURCE))
