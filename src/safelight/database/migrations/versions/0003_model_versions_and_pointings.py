"""model versions and pointings"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("base", sa.String(length=16), nullable=False),
        sa.Column("prediction", sa.String(length=16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("entry", sa.String(length=255), nullable=False),
        sa.Column("place", sa.String(length=2048), nullable=False),
        sa.Column("source", sa.String(length=2048), nullable=False),
        sa.Column("revision", sa.String(length=64), nullable=False),
        sa.Column("licence", sa.JSON(), nullable=True),
        sa.Column("lineage", sa.JSON(), nullable=False),
        sa.Column("added", sa.Double(), nullable=False),
        sa.Column("added_by", sa.String(length=128), nullable=False),
        sa.Column("removed", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "number", name="numbered"),
    )
    op.create_index("by_digest", "versions", ["digest"], unique=False)
    op.create_table(
        "pointings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("follows", sa.String(length=165), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("by", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.String(length=2000), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("turns", "pointings", ["name", "label", "id"], unique=False)


def downgrade() -> None:
    op.drop_table("pointings")
    op.drop_table("versions")
