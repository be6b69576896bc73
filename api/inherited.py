"""A run that begins with the newest checkpoints of an earlier run of the same account."""

from sqlmodel import Session, col, select

from api.errors import NotFound
from api.notice_tables import CheckpointRow
from api.plane import Plane
from api.tables import RunRow
from fabric.wire.errors import InvalidRequest


def begin_with(plane: Plane, session: Session, run: RunRow, earlier: str) -> None:
    """Make the earlier run's newest checkpoints the new one's, task by task; they are kept as long as new ones.

    Raises:
        NotFound: there is no such run of this account, or what it stored has expired.
        InvalidRequest: it stored none.
    """
    found = session.get(RunRow, earlier)
    if found is None or found.customer != run.customer:
        raise NotFound(f"there is no run {earlier} whose checkpoint could be taken")
    rows = session.exec(select(CheckpointRow).where(col(CheckpointRow.run) == earlier)).all()
    if not rows:
        raise InvalidRequest(f"run {earlier} stored no checkpoint: leave out `checkpoint` to begin anew")
    plane.blobs.renew(session, run.customer, {sha256 for row in rows for sha256 in (row.manifest, *row.pieces)})
    for row in rows:
        session.add(
            CheckpointRow(run=run.id, task=row.task, manifest=row.manifest, pieces=row.pieces, stored_ms=plane.now_ms())
        )
    session.flush()
