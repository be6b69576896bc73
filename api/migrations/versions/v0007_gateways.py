"""Gateways: their certificates' fingerprints, and which control plane's relay leads there."""

from alembic import op
from sqlmodel import SQLModel

from api.gateway_tables import gateway_tables

revision = "gateways"
down_revision = "node_terms"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=gateway_tables())
