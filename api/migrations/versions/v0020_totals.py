"""Running totals of GPUs, and indexes by which a question reads no more the longer the history is."""

import sqlalchemy as sa
from alembic import op
from sqlmodel import Session, SQLModel

from ledger import totals
from ledger.tables import AccountRow, EntryRow, FinalityRow, GpuTotalRow, MeterRow, UsageRow, table_of

revision = "totals"
down_revision = "untold"

_GONE = ("ledger_entry_lease", "ledger_meter_gpu", "ledger_usage_run", "ledger_finality_epoch")


def upgrade() -> None:
    for name in _GONE:
        op.execute(sa.text(f"DROP INDEX IF EXISTS {name}"))
    for row in (AccountRow, EntryRow, MeterRow, UsageRow, FinalityRow):
        for index in table_of(row).indexes:
            index.create(op.get_bind(), checkfirst=True)
    if not sa.inspect(op.get_bind()).has_table(table_of(GpuTotalRow).name):
        SQLModel.metadata.create_all(op.get_bind(), tables=[table_of(GpuTotalRow)])
        with Session(op.get_bind()) as session:
            totals.keep_all(session)
            session.flush()
