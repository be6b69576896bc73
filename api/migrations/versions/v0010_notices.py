"""Notices to leases, room kept for runs that evicted, nodes that are drained."""

from alembic import op
from sqlmodel import SQLModel

from api.notice_tables import notice_tables

revision = "notices"
down_revision = "pools"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=notice_tables())
