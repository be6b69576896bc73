"""What customers download of their blobs in a day."""

from alembic import op
from sqlmodel import SQLModel

from api.egress import egress_tables

revision = "egress"
down_revision = "conduct"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=egress_tables())
