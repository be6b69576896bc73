"""What a lease that evicts costs at least, and on which GPUs a run evicted."""

import sqlalchemy as sa
from alembic import op

revision = "least"
down_revision = "checkpoints"


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    there = {column["name"] for column in inspector.get_columns("leases")}
    if "least_ms" not in there:
        op.add_column("leases", sa.Column("least_ms", sa.BigInteger(), nullable=False, server_default="1000"))
    if "given_back" not in there:
        op.add_column("leases", sa.Column("given_back", sa.Boolean(), nullable=False, server_default=sa.false()))
    if "evicted_gpus" not in {column["name"] for column in inspector.get_columns("runs")}:
        op.add_column("runs", sa.Column("evicted_gpus", sa.JSON(), nullable=False, server_default="[]"))
