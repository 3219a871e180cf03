"""who may see which picture"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    holders = op.create_table(
        "holders",
        sa.Column("asset_id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("asset_id", "tenant"),
    )
    jobs = sa.table("jobs", sa.column("asset_id"), sa.column("tenant"), sa.column("spec", sa.JSON))
    held = {
        (asset_id, tenant)
        for made, tenant, spec in op.get_bind().execute(sa.select(jobs.c.asset_id, jobs.c.tenant, jobs.c.spec))
        for asset_id in (made, *named_in(spec))
        if asset_id
    }
    if held:
        op.bulk_insert(holders, [{"asset_id": asset_id, "tenant": tenant} for asset_id, tenant in sorted(held)])


def named_in(spec: dict[str, Any]) -> list[str | None]:
    leads = [*(spec.get("controls") or ()), *(spec.get("picture_prompts") or ())]
    return [spec.get("init"), spec.get("mask"), *(lead.get(name) for lead in leads for name in ("image", "hint"))]


def downgrade() -> None:
    op.drop_table("holders")
