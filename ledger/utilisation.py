"""How much a subject's GPUs were there, how much of that they were leased, and at what prices; with the rows behind it.

From rows of uptime and of usage alone. Reads only. A row of usage counts where it ends, so a window's edge may be off
by one receipt.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlmodel import Session

from ledger.epoch import EpochClock
from ledger.meters import METER, USAGE, standing
from ledger.queries import MAX_LIMIT, Page
from ledger.subjects import FOR_EVER, Span, Subject, Tenures, length_ms, tenures, within
from ledger.uptime import Stretch, Uptime

_BPS = 10_000
_MILLI_MS_PER_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Line:
    """What a GPU was for the subject in a window.

    Attributes:
        gpu_id: public id.
        known_ms: how long it was the subject's, as far as anybody looked.
        up_ms: how long of that it was there.
        gpu_ms: metered time on it.
        share_milli_ms: the same × the share of the GPU that was leased.
        utilised_gpu_ms: how long the device itself says that it was busy.
        energy_mj: used.
        dc: charged.
        receipts: how many rows of usage these sums are of.
    """

    gpu_id: str
    known_ms: int
    up_ms: int
    gpu_ms: int
    share_milli_ms: int
    utilised_gpu_ms: int
    energy_mj: int
    dc: int
    receipts: int

    @property
    def uptime_bps(self) -> int | None:
        """Of the time known; none when nothing is."""
        return self.up_ms * _BPS // self.known_ms if self.known_ms else None

    @property
    def utilisation_bps(self) -> int | None:
        """Leased of the time it was there, by share; none when it never was."""
        return self.share_milli_ms * _BPS // (1000 * self.up_ms) if self.up_ms else None

    @property
    def paid_dc_per_gpu_hour(self) -> int | None:
        """What a whole GPU's hour brought on average, rounded down; none when it was not leased."""
        return self.dc * _MILLI_MS_PER_HOUR // self.share_milli_ms if self.share_milli_ms else None


@dataclass(frozen=True, slots=True)
class Use:
    """One row of usage. ``meter`` numbers a lease on the GPU without naming it.

    ``charged_dc`` is what the meter had cost with this row: the price of ``cumulative_gpu_ms``, rounded up once.
    """

    entry: int
    meter: int
    seq: int
    part: int
    at_ms: int
    accepted_ms: int
    operator: str
    pool: str
    holder: str
    model: str
    share_milli: int
    price_dc_per_gpu_hour: int
    cumulative_gpu_ms: int
    gpu_ms: int
    dc: int
    charged_dc: int
    short_dc: int
    utilised_gpu_ms: int
    energy_mj: int
    receipt_hash: bytes


@dataclass(frozen=True, slots=True)
class Price:
    """An operator asked this much for a model on demand, and GPUs of it were there, at any time of the span."""

    operator: str
    model: str
    price_dc_per_gpu_hour: int
    from_ms: int
    until_ms: int
    gpus: int
    up_ms: int


class Utilisation:
    """What is known of a subject in [start, end).

    Args:
        session: to read with.
        subject: of whom; None for everybody.
        epochs: the ledger's.
        payees: whom each operator is paid to for GPUs without an NFT.
        start_ms, end_ms: the window.
    """

    def __init__(
        self,
        session: Session,
        subject: Subject | None,
        *,
        epochs: EpochClock,
        payees: Mapping[str, str],
        start_ms: int = 0,
        end_ms: int = FOR_EVER,
    ) -> None:
        self._session, self._subject = session, subject
        self._start = start_ms
        self._end = min(end_ms, Uptime(session).through_ms())
        self._usage_end = end_ms
        self._tenures: Tenures = {} if subject is None else tenures(session, subject, epochs, payees)

    def lines(self) -> list[Line]:
        """By GPU: each that was the subject's in the window, or was used for it."""
        up: defaultdict[str, int] = defaultdict(int)
        for one in self.stretches():
            up[one.gpu_id] += one.until_ms - one.from_ms
        known = {gpu_id: length_ms(within(spans, self._start, self._end)) for gpu_id, spans in self._tenures.items()}
        used = self._used()
        gpu_ids = sorted({gpu_id for gpu_id, ms in known.items() if ms} | used.keys())
        return [Line(gpu_id, known.get(gpu_id, 0), up[gpu_id], *used.get(gpu_id, _NOTHING)) for gpu_id in gpu_ids]

    def stretches(self) -> list[Stretch]:
        """When the GPUs were there while they were the subject's, by GPU and time."""
        whose = None if self._subject is None else list(self._tenures)
        return [
            one._replace(from_ms=since, until_ms=until)
            for one in Uptime(self._session).stretches(self._start, self._end, whose)
            for since, until in within(self._spans_of(one.gpu_id), one.from_ms, one.until_ms)
        ]

    def prices(self, model: str | None = None) -> list[Price]:
        """What was asked on demand, by operator, model and time; spans of one price that touch are one."""
        asked: defaultdict[tuple[str, str, int], list[Stretch]] = defaultdict(list)
        for one in self.stretches():
            if one.price_dc and model in (None, one.model):
                asked[one.operator, one.model, one.price_dc].append(one)
        found = [price for key, stretches in asked.items() for price in _merged(key, stretches)]
        return sorted(found, key=lambda one: (one.operator, one.model, one.from_ms, one.price_dc_per_gpu_hour))

    def uses(self, *, before: int | None = None, limit: int = 100) -> Page[Use]:
        """The rows of usage that `lines` sums, newest first."""
        size = max(1, min(limit, MAX_LIMIT))
        columns = (
            USAGE.c.entry_id, USAGE.c.meter_id, USAGE.c.seq, USAGE.c.part, USAGE.c.at_ms, USAGE.c.accepted_ms,
            METER.c.operator, USAGE.c.pool, USAGE.c.holder, METER.c.model, METER.c.share_milli,
            METER.c.price_dc_per_gpu_hour, USAGE.c.cumulative_gpu_ms, USAGE.c.gpu_ms, USAGE.c.dc, USAGE.c.charged_dc,
            USAGE.c.short_dc, USAGE.c.utilised_gpu_ms, USAGE.c.energy_mj, USAGE.c.receipt_hash,
        )  # fmt: skip
        wanted = self._in_window(select(*columns)).order_by(USAGE.c.entry_id.desc()).limit(size + 1)
        if before is not None:
            wanted = wanted.where(USAGE.c.entry_id < before)
        rows = [Use(*row) for row in self._session.execute(wanted)]
        return Page(tuple(rows[:size]), rows[size - 1].entry if len(rows) > size else None)

    def _used(self) -> dict[str, tuple[int, ...]]:
        sums = (
            func.sum(USAGE.c.gpu_ms),
            func.sum(USAGE.c.gpu_ms * METER.c.share_milli),
            func.sum(USAGE.c.utilised_gpu_ms),
            func.sum(USAGE.c.energy_mj),
            func.sum(USAGE.c.dc),
            func.count(),
        )
        rows = self._session.execute(self._in_window(select(METER.c.gpu_id, *sums)).group_by(METER.c.gpu_id))
        return {gpu_id: tuple(int(value) for value in values) for gpu_id, *values in rows}

    def _in_window(self, wanted: Select) -> Select:
        wanted = wanted.select_from(USAGE).join(METER, METER.c.id == USAGE.c.meter_id).where(standing())
        if self._subject is not None:
            wanted = wanted.where(self._subject.uses())
        return wanted.where(USAGE.c.at_ms >= self._start, USAGE.c.at_ms < self._usage_end)

    def _spans_of(self, gpu_id: str) -> Sequence[Span]:
        return [(0, FOR_EVER)] if self._subject is None else self._tenures.get(gpu_id, ())


def total(lines: Iterable[Line]) -> Line:
    """All lines as one; its `gpu_id` is empty."""
    rows = [(one.known_ms, one.up_ms, one.gpu_ms, one.share_milli_ms, one.utilised_gpu_ms, one.energy_mj, one.dc,
             one.receipts) for one in lines]  # fmt: skip
    return Line("", *(sum(column) for column in zip(*rows, strict=True))) if rows else Line("", 0, 0, *_NOTHING)


_NOTHING = (0, 0, 0, 0, 0, 0)


def _merged(key: tuple[str, str, int], stretches: list[Stretch]) -> Iterator[Price]:
    stretches.sort(key=lambda one: one.from_ms)
    group: list[Stretch] = []
    end = 0
    for one in stretches:
        if group and one.from_ms > end:
            yield _price(key, group)
            group = []
        end = max(end, one.until_ms) if group else one.until_ms
        group.append(one)
    if group:
        yield _price(key, group)


def _price(key: tuple[str, str, int], group: Sequence[Stretch]) -> Price:
    return Price(
        *key,
        from_ms=group[0].from_ms,
        until_ms=max(one.until_ms for one in group),
        gpus=len({one.gpu_id for one in group}),
        up_ms=sum(one.until_ms - one.from_ms for one in group),
    )
