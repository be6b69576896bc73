"""Enrolment: join tokens, operators' wallets, delegations of session keys."""

from alembic import op
from sqlmodel import SQLModel

from api.enrolment_tables import enrolment_tables

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=enrolment_tables())
