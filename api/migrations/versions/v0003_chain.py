"""The chain: what the indexer read of it, whose wallets are whose, and what the settler sent."""

from alembic import op

from ledger.chain.tables import create_chain_schema

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_chain_schema(op.get_bind())
