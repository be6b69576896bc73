"""Pools: what wallets signed about them, when GPUs were there; and since when no epoch was finalised."""

from alembic import op
from sqlmodel import SQLModel

from ledger.chain.stalled import stalled_tables
from ledger.pool_tables import pool_tables

revision = "pools"
down_revision = "endpoints"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=[*pool_tables(), *stalled_tables()])
