"""Pools: what wallets signed about them, and when GPUs were there."""

from alembic import op
from sqlmodel import SQLModel

from ledger.pool_tables import pool_tables

revision = "pools"
down_revision = "endpoints"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=pool_tables())
