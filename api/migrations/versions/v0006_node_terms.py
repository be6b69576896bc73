"""What nodes let a run do, and operators' own accounts."""

from alembic import op
from sqlmodel import SQLModel

from api.terms_tables import terms_tables

revision = "node_terms"
down_revision = "verification"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=terms_tables())
