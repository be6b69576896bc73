"""Gangs: which leases make up a run on several nodes."""

from alembic import op
from sqlmodel import SQLModel

from api.gang_tables import gang_tables

revision = "gangs"
down_revision = "notices"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=gang_tables())
