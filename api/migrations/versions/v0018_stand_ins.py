"""GPUs that stand in the place of an NFT's GPU that left."""

from alembic import op
from sqlmodel import SQLModel

from ledger.chain.tables import StandInRow
from ledger.tables import table_of

revision = "stand_ins"
down_revision = "egress"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=[table_of(StandInRow)])
