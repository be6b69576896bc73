"""Placement: measured round trips, where clusters stand, what changed in the fleet."""

from alembic import op
from sqlmodel import SQLModel

from api.placement_tables import placement_tables

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=placement_tables())
