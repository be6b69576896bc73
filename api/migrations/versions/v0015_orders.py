"""Prices that operators order, and the condition of their GPUs."""

from alembic import op
from sqlmodel import SQLModel

from api.order_tables import order_tables

revision = "orders"
down_revision = "least"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=order_tables())
