"""How far into a lease its work is kept by stored checkpoints, for what a lost operator is not paid."""

from sqlalchemy import func, select
from sqlmodel import Session, col

from api.notice_tables import CheckpointRow
from api.tables import AttemptRow, LeaseRow, LeaseRunRow


def checkpointed_ms(session: Session, lease: LeaseRow) -> int:
    """From the lease's OPEN, as heard here, to the newest checkpoint of its work that was stored here; 0 for none.

    A checkpoint says which task it is of, not which lease: it counts when this lease is the only one of its run, or
    had an attempt of that very task. By the control plane's clock alone.
    """
    if lease.opened_ms is None:
        return 0
    newest = 0
    for row in session.scalars(
        select(CheckpointRow)
        .join(LeaseRunRow, col(LeaseRunRow.run) == col(CheckpointRow.run))
        .where(col(LeaseRunRow.lease) == lease.id, col(CheckpointRow.stored_ms) > lease.opened_ms)
    ):
        if _is_of(session, lease.id, row):
            newest = max(newest, row.stored_ms - lease.opened_ms)
    return newest


def _is_of(session: Session, lease: str, row: CheckpointRow) -> bool:
    count = select(func.count()).select_from(LeaseRunRow).where(col(LeaseRunRow.run) == row.run)
    if session.scalar(count) == 1:
        return True
    attempt = select(col(AttemptRow.lease)).where(
        col(AttemptRow.run) == row.run, col(AttemptRow.task) == row.task, col(AttemptRow.lease) == lease
    )
    return session.scalar(attempt.limit(1)) is not None
