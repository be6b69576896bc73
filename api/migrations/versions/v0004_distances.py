"""Distances: measured round trips, and where clusters stand."""

from alembic import op
from sqlmodel import SQLModel

from api.distance_tables import distance_tables

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=distance_tables())
