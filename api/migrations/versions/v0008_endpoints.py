"""Endpoints: what customers serve behind one URL."""

from alembic import op
from sqlmodel import SQLModel

from api.endpoint_tables import endpoint_tables

revision = "endpoints"
down_revision = "gateways"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=endpoint_tables())
