"""The newest checkpoint of each task."""

from alembic import op
from sqlmodel import SQLModel

from api.notice_tables import CheckpointRow
from ledger.tables import table_of

revision = "checkpoints"
down_revision = "slots"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=[table_of(CheckpointRow)])
