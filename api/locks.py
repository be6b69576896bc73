"""A lock in the database for jobs of which there may be only one, with a number that fences a slow owner."""

from sqlmodel import Session

from api.plane import Plane
from api.tables import LockRow

LEASE_MS = 10_000


def hold(plane: Plane, session: Session, name: str) -> int | None:
    """Take or keep a lock in the transaction that does the work; its fence, or None when another owner has it.

    The row is written in the same transaction as the work, so an owner whose time ran out cannot commit beside its
    successor: one of the two transactions sees the other's row.
    """
    now = plane.now_ms()
    row = session.get(LockRow, name, with_for_update=True)
    if row is None:
        row = LockRow(name=name, owner=plane.life, fence=1, until_ms=0)
    elif row.owner != plane.life:
        if row.until_ms > now and not _is_dead(plane, row):
            return None
        row.owner, row.fence = plane.life, row.fence + 1
    row.until_ms = now + LEASE_MS
    session.add(row)
    session.flush()
    return row.fence


def _is_dead(plane: Plane, row: LockRow) -> bool:
    """Where there is one process only, whoever held the lock before is gone."""
    return not plane.database.shared and row.owner != plane.life
