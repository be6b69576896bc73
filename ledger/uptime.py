"""When GPUs were there: stretches of time in which a GPU was healthy, priced and its agent answered.

`observe` is told which GPUs are there now and writes only what changed; between two looks a GPU counts as it was seen
at the first one. Works inside the caller's transaction.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import func, insert, or_, select, update
from sqlmodel import Session

from ledger.bulk import among
from ledger.pool_tables import GpuUptimeRow, UptimeMarkRow
from ledger.tables import table_of

UPTIME, MARK = table_of(GpuUptimeRow), table_of(UptimeMarkRow)

LOST_SIGHT_MS = 60_000
"""Looks further apart than this say nothing of the time between: nobody could have been heard."""


class There(NamedTuple):
    """What is known of a GPU that is there: whose, which model, and its price on demand (0: none)."""

    operator: str
    model: str
    price_dc: int


class Stretch(NamedTuple):
    """A GPU was there from ``from_ms`` to before ``until_ms``."""

    gpu_id: str
    from_ms: int
    until_ms: int
    operator: str
    model: str
    price_dc: int


def overlap_ms(spans: Iterable[tuple[int, int]], start_ms: int, end_ms: int) -> int:
    """How much of the spans, none of which overlap, lies in [start, end)."""
    return sum(max(0, min(until, end_ms) - max(since, start_ms)) for since, until in spans)


class Uptime:
    """The stretches of one ledger."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def through_ms(self) -> int:
        """Up to when it is known who was there; 0 before the first look."""
        return self._session.execute(select(func.coalesce(func.max(MARK.c.through_ms), 0))).scalar_one()

    def observe(self, there: Mapping[str, There], now_ms: int) -> frozenset[str]:
        """These GPUs are there now, and no others; returns the operators of whom stretches began or ended."""
        mark = self.through_ms()
        if now_ms <= mark:
            return frozenset()
        ends_ms = mark if now_ms - mark > LOST_SIGHT_MS else now_ms
        known = {
            row.gpu_id: There(row.operator, row.model, row.price_dc)
            for row in self._session.execute(select(UPTIME).where(UPTIME.c.until_ms.is_(None)))
        }
        over = [gpu_id for gpu_id, was in known.items() if ends_ms == mark or there.get(gpu_id) != was]
        if over:
            ending = update(UPTIME).where(among(UPTIME.c.gpu_id, over), UPTIME.c.until_ms.is_(None))
            self._session.execute(ending.values(until_ms=ends_ms))
        begun = sorted(there.keys() - (known.keys() - set(over)))
        if begun:
            values = [
                {"gpu_id": gpu_id, "from_ms": now_ms, "until_ms": None, **there[gpu_id]._asdict()} for gpu_id in begun
            ]
            self._session.execute(insert(UPTIME), values)
        self._move_mark(mark, now_ms)
        return frozenset({known[gpu_id].operator for gpu_id in over} | {there[gpu_id].operator for gpu_id in begun})

    def stretches(self, start_ms: int, end_ms: int, gpu_ids: Collection[str] | None = None) -> list[Stretch]:
        """The parts of stretches in [start, end), of these GPUs or of all, by GPU and time; what lasts ends now."""
        mark = self.through_ms()
        wanted = (
            select(UPTIME)
            .where(UPTIME.c.from_ms < end_ms, or_(UPTIME.c.until_ms.is_(None), UPTIME.c.until_ms > start_ms))
            .order_by(UPTIME.c.gpu_id, UPTIME.c.from_ms)
        )
        rows = (
            self._session.execute(wanted).all()
            if gpu_ids is None
            else self._session.execute(wanted.where(among(UPTIME.c.gpu_id, gpu_ids))).all()
        )
        cut = (
            Stretch(
                row.gpu_id,
                max(row.from_ms, start_ms),
                min(mark if row.until_ms is None else row.until_ms, end_ms),
                row.operator,
                row.model,
                row.price_dc,
            )
            for row in rows
        )
        return [one for one in cut if one.from_ms < one.until_ms]

    def up_ms(self, gpu_id: str, start_ms: int, end_ms: int) -> int:
        """For how much of [start, end) a GPU was there."""
        spans = ((one.from_ms, one.until_ms) for one in self.stretches(start_ms, end_ms, [gpu_id]))
        return overlap_ms(spans, start_ms, end_ms)

    def _move_mark(self, mark: int, now_ms: int) -> None:
        if mark:
            self._session.execute(update(MARK).values(through_ms=now_ms))
        else:
            self._session.execute(insert(MARK).values(id=1, through_ms=now_ms))
