"""webhooks by when they are due"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("to_be_told", "jobs", ["webhook_state", "webhook_due"], unique=False)


def downgrade() -> None:
    op.drop_index("to_be_told", "jobs")
