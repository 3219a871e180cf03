"""what a pointing was decided by"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("pointings", sa.Column("gate", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("pointings", "gate")
