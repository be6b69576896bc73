"""Looks which GPUs are there: healthy, on a node that is up, of an agent that answers heartbeats; at what price.

Called every second or so; it looks each `LOOK_MS`, sooner where epochs are short, and where one ends.
"""

from sqlalchemy import and_, select
from sqlmodel import Session, col

from api.plane import Plane
from api.tables import ClusterRow, GpuRow, NodeRow, PriceRow
from ledger.chain import standing_in
from ledger.epoch import EpochClock
from ledger.uptime import There, Uptime

LOOK_MS = 10_000
HEARD_WITHIN_MS = 15_000
"""Agents answer a heartbeat each second; one that was not heard for so long is not there."""
_LOOKS_PER_EPOCH = 50


def look(plane: Plane, session: Session) -> None:
    """Note who is there now, and who stands in for whom since, if it is time to look."""
    settings, now = plane.ledger_settings, plane.now_ms()
    uptime, epochs = Uptime(session), EpochClock(settings.genesis_ms, settings.epoch_ms)
    mark = uptime.through_ms()
    over = mark >= settings.genesis_ms and now >= epochs.end(epochs.at(mark))
    if over or now - mark >= min(LOOK_MS, settings.epoch_ms // _LOOKS_PER_EPOCH):
        moved = uptime.observe(there(session, now), now)
        if plane.chain is not None:
            standing_in.look(session, plane.ledger(session), moved, now)


def there(session: Session, now_ms: int) -> dict[str, There]:
    """By public id: every GPU that could serve somebody now."""
    priced = and_(
        col(PriceRow.cluster) == col(GpuRow.cluster),
        col(PriceRow.model) == col(GpuRow.model),
        col(PriceRow.tier) == "on_demand",
    )
    rows = session.execute(
        select(GpuRow.id, GpuRow.operator, GpuRow.model, PriceRow.price_dc_per_gpu_hour)  # type: ignore[call-overload]
        .join(ClusterRow, col(ClusterRow.id) == col(GpuRow.cluster))
        .join(NodeRow, and_(col(NodeRow.cluster) == col(GpuRow.cluster), col(NodeRow.name) == col(GpuRow.node)))
        .join(PriceRow, priced, isouter=True)
        .where(
            col(GpuRow.present),
            col(GpuRow.healthy),
            col(NodeRow.present),
            ~col(NodeRow.lost),
            col(ClusterRow.connected),
            col(ClusterRow.last_heard_ms) > now_ms - HEARD_WITHIN_MS,
        )
    )
    return {gpu_id: There(operator, model, price or 0) for gpu_id, operator, model, price in rows}
