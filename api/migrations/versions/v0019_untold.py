"""Parts of leases that receipts name before their runs are told of: a receipt no longer names every run."""

from alembic import op
from sqlmodel import SQLModel

from api.tables import UntoldRunRow
from ledger.tables import table_of

revision = "untold"
down_revision = "stand_ins"


def upgrade() -> None:
    SQLModel.metadata.create_all(op.get_bind(), tables=[table_of(UntoldRunRow)])
