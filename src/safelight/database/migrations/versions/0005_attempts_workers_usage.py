"""attempts, workers, usage"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("began", sa.Double(), nullable=False),
        sa.Column("beat", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("token"),
    )
    op.create_table(
        "usage",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("asked", sa.Double(), nullable=False),
        sa.Column("pictures", sa.Integer(), nullable=False),
        sa.Column("compute_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("used_by", "usage", ["tenant", "asked"], unique=False)
    op.execute(
        "INSERT INTO usage (job_id, tenant, asked, pictures, compute_s) "
        "SELECT id, tenant, created, CASE WHEN state IN ('queued', 'running', 'done') THEN 1 ELSE 0 END, compute_s "
        "FROM jobs"
    )
    op.add_column("jobs", sa.Column("drawing", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("suspect", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("crashes", sa.Integer(), nullable=False, server_default="0"))
    op.drop_column("jobs", "lease_until")
    op.execute("UPDATE jobs SET not_before = created WHERE not_before < created")
    op.drop_index("in_line", "jobs")
    op.create_index("in_line", "jobs", ["state", "priority", "not_before"], unique=False)


def downgrade() -> None:
    op.drop_index("in_line", "jobs")
    op.create_index("in_line", "jobs", ["state", "priority", "created"], unique=False)
    op.add_column("jobs", sa.Column("lease_until", sa.Double(), nullable=False, server_default="0"))
    for name in ("crashes", "suspect", "drawing"):
        op.drop_column("jobs", name)
    op.drop_index("used_by", "usage")
    op.drop_table("usage")
    op.drop_table("workers")
