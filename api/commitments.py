"""What the fleet must know beside leases: who has had a notice, what is kept for an evicting run, what is drained."""

from collections.abc import Collection, Iterator

from sqlalchemy import func, select
from sqlmodel import Session, col

from api.notice_tables import CheckpointRow, DrainRow, EvictionRow, NoticeRow
from fabric.placement.fleet import Fleet
from fabric.placement.inventory import Assignment, GpuShare, Held

_KEPT = "kept"
_MANY = 1_200  # more leases than this are looked up by reading all notices, which are few


def noticed(session: Session, leases: Collection[str]) -> set[str]:
    """Those of the leases that will end by a notice."""
    if len(leases) > _MANY:
        return set(session.scalars(select(col(NoticeRow.lease)))).intersection(leases)
    found: set[str] = set()
    names = sorted(leases)
    for at in range(0, len(names), 400):
        query = select(col(NoticeRow.lease)).where(col(NoticeRow.lease).in_(names[at : at + 400]))
        found.update(session.scalars(query))
    return found


def last_stored(session: Session, runs: Collection[str]) -> dict[str, int]:
    """When each of the runs last stored a checkpoint; runs without one are left out."""
    found: dict[str, int] = {}
    names = sorted(set(runs))
    for at in range(0, len(names), 400):
        part = col(CheckpointRow.run).in_(names[at : at + 400])
        query = select(col(CheckpointRow.run), func.max(col(CheckpointRow.stored_ms))).where(part)
        found.update((run, stored_ms) for run, stored_ms in session.execute(query.group_by(col(CheckpointRow.run))))
    return found


def draining(session: Session) -> set[tuple[str, str]]:
    """(cluster, node) of every node that gets no new leases; of a whole cluster, (cluster, "")."""
    return {(row.cluster, row.node) for row in session.scalars(select(DrainRow).where(col(DrainRow.draining)))}


def is_draining(session: Session, cluster: str, node: str) -> bool:
    """Whether one node gets no new leases, by itself or with its whole cluster."""
    rows = (session.get(DrainRow, (cluster, name)) for name in (node, ""))
    return any(row is not None and row.draining for row in rows)


def keep_seats(session: Session, fleet: Fleet, nodes: Collection[str]) -> None:
    """Take what is free of the seats kept on these nodes of the fleet, so that nobody else is placed there."""
    for row in session.scalars(select(EvictionRow)):
        for part in seats_of(row):
            if part.node in nodes:
                fleet.take(Held(f"{_KEPT}/{row.run}/{part.node}", "on_demand", (_still_free(fleet, part),), 0))


def seats_of(row: EvictionRow) -> Iterator[Assignment]:
    """The seats as placement's words."""
    for seat in row.seats:
        gpus = tuple(GpuShare(uuid, milli) for uuid, milli in seat["gpus"])
        yield Assignment(seat["node"], gpus, seat["cpu_milli"], seat["memory_bytes"], seat["disk_bytes"])


def _still_free(fleet: Fleet, part: Assignment) -> Assignment:
    """The part of the seat that its former holder has left."""
    free: list[GpuShare] = []
    room: tuple[int, int, int] | None = None
    for share in part.gpus:
        seat = fleet.seat(share.uuid)
        if seat is None:
            continue
        row, column = seat
        here = tuple(int(left) for left in fleet.room[:, row])
        room = here if room is None else room  # type: ignore[assignment]
        if fleet.free[column, row] >= share.milli:
            free.append(share)
    left = room or (0, 0, 0)
    wanted = (part.cpu_milli, part.memory_bytes, part.disk_bytes)
    cpu, memory, disk = (max(0, min(have, want)) for have, want in zip(left, wanted, strict=True))
    return Assignment(part.node, tuple(free), cpu, memory, disk)
