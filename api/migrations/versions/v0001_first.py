"""The first schema: the control plane's tables and the ledger's, with the triggers that protect booked rows."""

from alembic import op
from sqlmodel import SQLModel

from api.tables import api_tables
from ledger.tables import create_schema

revision = "0001"
down_revision = None


def upgrade() -> None:
    connection = op.get_bind()
    create_schema(connection)
    SQLModel.metadata.create_all(connection, tables=api_tables())
