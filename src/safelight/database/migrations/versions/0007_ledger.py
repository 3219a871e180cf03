"""ledger"""

import sqlalchemy as sa
from alembic import op

PERSONAL = {
    "ledger_bodies": ("body",),
    "jobs": ("idempotency_key", "webhook_url"),
    "keys": ("name",),
}
"""Columns whose values PostgreSQL would copy into its statistics, where nobody but its superuser erases them."""
revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ledger",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("asset_id", sa.String(length=64), nullable=True),
        sa.Column("uid", sa.String(length=16), nullable=True),
        sa.Column("once", sa.String(length=64), nullable=True),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("prev", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("once"),
    )
    op.create_index("ledger_by_time", "ledger", ["time"], unique=False)
    op.create_index("ledger_by_actor", "ledger", ["actor"], unique=False)
    op.create_index("ledger_by_action", "ledger", ["action", "seq"], unique=False)
    op.create_index("ledger_by_asset", "ledger", ["asset_id"], unique=False)
    op.create_index("ledger_by_uid", "ledger", ["uid"], unique=False)
    op.create_table(
        "ledger_bodies",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("erased_by", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("seq", "kind"),
    )
    op.create_index("ledger_bodies_erased", "ledger_bodies", ["erased_by", "seq", "kind"], unique=False)
    if op.get_bind().dialect.name == "postgresql":
        for table, columns in PERSONAL.items():
            for column in columns:
                op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")


def downgrade() -> None:
    op.drop_table("ledger_bodies")
    op.drop_table("ledger")
