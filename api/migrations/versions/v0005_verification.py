"""Verification of GPUs: challenges, standings, and when the next are due; what joins a node to its neighbours."""

import sqlalchemy as sa
from alembic import op
from sqlmodel import SQLModel

from api.verification_tables import verification_tables

revision = "verification"
down_revision = "0004"


def upgrade() -> None:
    connection = op.get_bind()
    SQLModel.metadata.create_all(connection, tables=verification_tables())
    if "interconnects" not in {column["name"] for column in sa.inspect(connection).get_columns("nodes")}:
        op.add_column("nodes", sa.Column("interconnects", sa.JSON(), nullable=False, server_default="[]"))
