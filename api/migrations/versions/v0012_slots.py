"""Time slots."""

from alembic import op
from sqlmodel import SQLModel

from ledger.slot_tables import slot_tables

revision = "slots"
down_revision = "gangs"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=slot_tables())
