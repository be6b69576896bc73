"""Running totals of GPUs: each step of finality adds what it made final, so a GPU's whole life is read from one row.

What is final never changes, so neither do these rows. Usage that is not final yet is not in them.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, bindparam, func, select
from sqlmodel import Session

from ledger import accounts
from ledger.book import ACCOUNT
from ledger.bulk import among_given, insert_tuples
from ledger.meters import METER, USAGE, standing
from ledger.tables import EpochRow, FinalityRow, GpuTotalRow, HoldRow, table_of

TOTAL, HOLD = table_of(GpuTotalRow), table_of(HoldRow)
FINALITY, EPOCH = table_of(FinalityRow), table_of(EpochRow)


class GpuTotal(NamedTuple):
    """A GPU's usage, summed; ``first_ms`` and ``last_ms`` are of its first and last use. See `GpuTotalRow`.

    Of the sums of one stretch of time, ``meter_id`` is the newest meter that was used in it.
    """

    gpu_id: str
    gpu_ms: int
    share_milli_ms: int
    dc: int
    utilised_gpu_ms: int
    energy_mj: int
    first_ms: int
    last_ms: int
    meter_id: int

    def plus(self, more: "GpuTotal") -> "GpuTotal":
        return GpuTotal(
            self.gpu_id,
            self.gpu_ms + more.gpu_ms,
            self.share_milli_ms + more.share_milli_ms,
            self.dc + more.dc,
            self.utilised_gpu_ms + more.utilised_gpu_ms,
            self.energy_mj + more.energy_mj,
            min(self.first_ms, more.first_ms),
            max(self.last_ms, more.last_ms),
            more.meter_id,
        )


_COLUMNS = [TOTAL.c[name] for name in GpuTotal._fields]


def gpus_used(session: Session, start_ms: int, end_ms: int) -> Sequence[str]:
    """The GPUs of which usage was accepted in [start, end), standing or not."""
    return session.execute(_used_between(), {"start": start_ms, "end": end_ms}).scalars().all()


def sums(session: Session, start_ms: int, end_ms: int) -> list[GpuTotal]:
    """By GPU the standing usage accepted in [start, end)."""
    rows = session.execute(_sums_between(), {"start": start_ms, "end": end_ms})
    return [_total(row) for row in rows]


def life(session: Session, gpu_id: str) -> GpuTotal | None:
    """All standing usage of a GPU; none when it has none."""
    final = session.execute(_last_of_gpu(), {"gpu": gpu_id}).one_or_none()
    since = {"meter": 0, "through": 0} if final is None else {"meter": final.meter_id, "through": final.through_ms}
    pending = session.execute(_sums_of_gpu(), {"gpu": gpu_id, **since}).one_or_none()
    parts = [_total(row[: len(GpuTotal._fields)]) for row in (final, pending) if row is not None]
    return parts[0].plus(parts[1]) if len(parts) > 1 else next(iter(parts), None)


def rewarded(session: Session, gpu_id: str) -> GpuTotal | None:
    """What of it counted in closed epochs."""
    row = session.execute(_last_in_closed_epoch(), {"gpu": gpu_id}).one_or_none()
    return None if row is None else GpuTotal(*row)


def keep(session: Session, through_ms: int, added: Sequence[GpuTotal]) -> None:
    """Keep the totals behind a step of finality that made ``added`` final."""
    before = _last(session, [one.gpu_id for one in added])
    rows = ((*one, through_ms) for one in totals(session, through_ms, added, before))
    insert_tuples(session, TOTAL, (*GpuTotal._fields, "through_ms"), rows)


def keep_all(session: Session) -> None:
    """Keep the totals behind every step that was taken before any were kept."""
    start = 0
    for through_ms in session.execute(select(FINALITY.c.through_ms).order_by(FINALITY.c.through_ms)).scalars().all():
        keep(session, through_ms, sums(session, start, through_ms))
        start = through_ms


def totals(
    session: Session, through_ms: int, added: Sequence[GpuTotal], before: Mapping[str, GpuTotal]
) -> list[GpuTotal]:
    """What was before and what a step added, each from the first meter on whose lease had not ended by then."""
    asked = {"names": _names([one.gpu_id for one in added]), "through": through_ms}
    first = dict(tuple(row) for row in session.execute(_first_open(), asked))
    whole = [before[one.gpu_id].plus(one) if one.gpu_id in before else one for one in added]
    return [
        one._replace(meter_id=first[one.gpu_id]) if first.get(one.gpu_id, one.meter_id) < one.meter_id else one
        for one in whole
    ]


def kept(session: Session, through_ms: int) -> dict[str, GpuTotal]:
    """The totals that were kept behind a step, by GPU."""
    rows = session.execute(select(*_COLUMNS).where(TOTAL.c.through_ms == through_ms))
    return {row.gpu_id: GpuTotal(*row) for row in rows}


def without_step(session: Session) -> list[tuple[str, int]]:
    """(GPU, moment) of totals kept behind no step of finality."""
    step = select(FINALITY.c.through_ms).where(FINALITY.c.through_ms == TOTAL.c.through_ms).exists()
    rows = session.execute(select(TOTAL.c.gpu_id, TOTAL.c.through_ms).where(~step).order_by(TOTAL.c.through_ms))
    return [(gpu_id, through_ms) for gpu_id, through_ms in rows]


def _last(session: Session, gpu_ids: Sequence[str]) -> dict[str, GpuTotal]:
    return {row.gpu_id: GpuTotal(*row) for row in session.execute(_last_of_many(), {"names": _names(gpu_ids)})}


def _names(gpu_ids: Sequence[str]) -> list[str]:
    """GPUs are found by their accounts of pending usage: every GPU that was used has one."""
    return [accounts.usage_pending(gpu_id).name for gpu_id in gpu_ids]


def _total(row: Row | Sequence[Any]) -> GpuTotal:
    gpu_id, *values = row
    return GpuTotal(gpu_id, *(int(value) for value in values))


def _usage_sums() -> Select:
    return (
        select(
            METER.c.gpu_id,
            func.sum(USAGE.c.gpu_ms),
            func.sum(USAGE.c.gpu_ms * METER.c.share_milli),
            func.sum(USAGE.c.dc),
            func.sum(USAGE.c.utilised_gpu_ms),
            func.sum(USAGE.c.energy_mj),
            func.min(USAGE.c.at_ms),
            func.max(USAGE.c.at_ms),
            func.max(METER.c.id),
        )
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .where(standing())
        .group_by(METER.c.gpu_id)
        .order_by(METER.c.gpu_id)
    )


@cache
def _used_between() -> Select:
    accepted = (USAGE.c.accepted_ms >= bindparam("start"), USAGE.c.accepted_ms < bindparam("end"))
    return select(METER.c.gpu_id).join(USAGE, USAGE.c.meter_id == METER.c.id).where(*accepted).distinct()


@cache
def _sums_between() -> Select:
    return _usage_sums().where(USAGE.c.accepted_ms >= bindparam("start"), USAGE.c.accepted_ms < bindparam("end"))


@cache
def _sums_of_gpu() -> Select:
    ours = (METER.c.gpu_id == bindparam("gpu"), METER.c.id >= bindparam("meter"))
    return _usage_sums().where(*ours, USAGE.c.accepted_ms >= bindparam("through"))


@cache
def _last_of_gpu() -> Select:
    ours = select(*_COLUMNS, TOTAL.c.through_ms).where(TOTAL.c.gpu_id == bindparam("gpu"))
    return ours.order_by(TOTAL.c.through_ms.desc()).limit(1)


@cache
def _last_in_closed_epoch() -> Select:
    through = (
        select(FINALITY.c.through_ms)
        .where(FINALITY.c.epoch <= select(func.max(EPOCH.c.n)).scalar_subquery())
        .order_by(FINALITY.c.epoch.desc(), FINALITY.c.through_ms.desc())
        .limit(1)
        .scalar_subquery()
    )
    ours = select(*_COLUMNS).where(TOTAL.c.gpu_id == bindparam("gpu"), TOTAL.c.through_ms <= through)
    return ours.order_by(TOTAL.c.through_ms.desc()).limit(1)


@cache
def _last_of_many() -> Select:
    newer = TOTAL.alias()
    last = select(func.max(newer.c.through_ms)).where(newer.c.gpu_id == ACCOUNT.c.owner).scalar_subquery()
    return (
        select(*_COLUMNS)
        .select_from(ACCOUNT)
        .join(TOTAL, (TOTAL.c.gpu_id == ACCOUNT.c.owner) & (TOTAL.c.through_ms == last))
        .where(among_given(ACCOUNT.c.name, "names"))
    )


@cache
def _first_open() -> Select:
    """By GPU its first meter, of those that were not done with already, whose hold had not ended by then."""
    done = (
        select(TOTAL.c.meter_id)
        .where(TOTAL.c.gpu_id == ACCOUNT.c.owner, TOTAL.c.through_ms < bindparam("through"))
        .order_by(TOTAL.c.through_ms.desc())
        .limit(1)
        .scalar_subquery()
    )
    still_open = HOLD.c.closed_ms.is_(None) | (HOLD.c.closed_ms >= bindparam("through"))
    return (
        select(METER.c.gpu_id, func.min(METER.c.id))
        .select_from(ACCOUNT)
        .join(METER, (METER.c.gpu_id == ACCOUNT.c.owner) & (METER.c.id >= func.coalesce(done, 0)))
        .join(HOLD, (HOLD.c.lease_id == METER.c.lease_id) & still_open)
        .where(among_given(ACCOUNT.c.name, "names"))
        .group_by(METER.c.gpu_id)
    )
