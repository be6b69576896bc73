"""Customers' time reports, and the facts of each day that make an operator's reputation."""

from alembic import op
from sqlmodel import SQLModel

from api.conduct_tables import conduct_tables

revision = "conduct"
down_revision = "orders"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=conduct_tables())
    op.create_index("leases_closed", "leases", ["closed_ms"], if_not_exists=True)
    op.create_index("challenges_ended", "challenges", ["ended_ms"], if_not_exists=True)
