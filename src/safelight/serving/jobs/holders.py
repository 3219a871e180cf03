"""May this caller see it: the one question, wherever the id of a stored picture enters.

Ids are digests of contents. Whoever brought a picture, had it drawn, or had a job accepted that names it, holds it.
"""

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from safelight.database.upsert import insert_into
from safelight.errors import UnknownAsset
from safelight.serving.jobs.tables import HolderRow
from safelight.spec import Denoised, Draft, Upscale


def hold(session: Session, asset_ids: Collection[str], tenant: str) -> None:
    """The tenant may see these from now on."""
    if asset_ids:
        rows = [{"asset_id": asset_id, "tenant": tenant} for asset_id in sorted(asset_ids)]
        session.execute(insert_into(session, HolderRow).values(rows).on_conflict_do_nothing())


def require_sight(session: Session, asset_ids: Collection[str], tenant: str | None) -> None:
    """
    Args:
        tenant: None sees everything.

    Raises:
        UnknownAsset: in the words of one that is not there.
    """
    if tenant is None or not asset_ids:
        return
    held = select(HolderRow.asset_id).where(HolderRow.tenant == tenant, HolderRow.asset_id.in_(asset_ids))
    if unseen := sorted(set(asset_ids) - set(session.scalars(held))):
        raise UnknownAsset(f"no picture {unseen[0]!r} is stored here; an id is the 64 hex digits a job reported")


def pictures_of(request: Draft | Denoised | Upscale) -> set[str]:
    """The ids of all pictures that it names."""
    leads = (*getattr(request, "controls", ()), *getattr(request, "picture_prompts", ()))
    named = [getattr(request, name, None) for name in ("init", "mask")]
    named += [getattr(lead, name, None) for lead in leads for name in ("image", "hint")]
    return {asset_id for asset_id in named if asset_id}
