"""Gateways: their certificates' fingerprints, and which control plane's relay leads there."""

from alembic import op
from sqlmodel import SQLModel

from api.gateway_tables import gateway_tables

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=gateway_tables())
