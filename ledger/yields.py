"""What a subject's GPUs earned by epoch, what that was worth, and what it makes of a given outlay in a year.

From rewards and closed epochs, beside the uptime in the epoch's time. Reads only. What an epoch pays was used up to ten
minutes before it began, so a line's uptime and its usage are of spans that are shifted by that much.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import Session

from ledger.closing import EPOCH, REWARD
from ledger.epoch import EpochClock
from ledger.subjects import FOR_EVER, Subject
from ledger.uptime import overlap_ms
from ledger.utilisation import Utilisation

YEAR_MS = 365 * 86_400_000
_HOUR_MS = 3_600_000
_BPS = 10_000
_WEI_PRICE_PER_DC = 10**31
"""wei × USD per BCT × 10^18, in a DC of USD 10^-5."""


@dataclass(frozen=True, slots=True)
class Earned:
    """One closed epoch. ``value_dc``: the wei at the epoch's price, in USD 0.00001, rounded down."""

    epoch: int
    start_ms: int
    end_ms: int
    gpus: int
    up_ms: int
    gpu_ms: int
    dc: int
    wei: int
    price_usd_e18: int
    value_dc: int


@dataclass(frozen=True, slots=True)
class Yield:
    """All epochs of a window together."""

    epochs: int
    span_ms: int
    up_ms: int
    gpu_ms: int
    dc: int
    wei: int
    value_dc: int

    @property
    def value_dc_per_gpu_hour(self) -> int | None:
        """For each hour that a GPU was there, rounded down; none when none was."""
        return self.value_dc * _HOUR_MS // self.up_ms if self.up_ms else None

    def yearly_bps(self, cost_dc: int) -> int | None:
        """What the outlay would bring in 365 days at this rate, not compounded, rounded down; none without epochs."""
        return self.value_dc * YEAR_MS * _BPS // (cost_dc * self.span_ms) if self.span_ms and cost_dc else None


def earned(
    session: Session,
    subject: Subject,
    *,
    epochs: EpochClock,
    payees: Mapping[str, str],
    start_ms: int = 0,
    end_ms: int = FOR_EVER,
) -> list[Earned]:
    """Every closed epoch that lies in [start, end), newest first, from the first on in which the subject had a GPU."""
    utilisation = Utilisation(session, subject, epochs=epochs, payees=payees, start_ms=start_ms, end_ms=end_ms)
    spans = [(one.from_ms, one.until_ms) for one in utilisation.stretches()]
    sums = _sums(session, subject)
    closed = session.execute(
        select(EPOCH.c.n, EPOCH.c.start_ms, EPOCH.c.end_ms, EPOCH.c.price_usd_e18)
        .where(EPOCH.c.start_ms >= start_ms, EPOCH.c.end_ms <= end_ms)
        .order_by(EPOCH.c.n)
    )
    lines: list[Earned] = []
    for n, start, end, price in closed:
        gpus, gpu_ms, dc, wei = sums.get(n, (0, 0, 0, 0))
        up_ms = overlap_ms(spans, start, end)
        if lines or gpus or up_ms:
            value = wei * price // _WEI_PRICE_PER_DC
            lines.append(Earned(n, start, end, gpus, up_ms, gpu_ms, dc, wei, price, value))
    return lines[::-1]


def together(lines: Iterable[Earned]) -> Yield:
    """Their sum; a span counts once however many GPUs there were."""
    found = list(lines)
    return Yield(
        epochs=len(found),
        span_ms=sum(one.end_ms - one.start_ms for one in found),
        up_ms=sum(one.up_ms for one in found),
        gpu_ms=sum(one.gpu_ms for one in found),
        dc=sum(one.dc for one in found),
        wei=sum(one.wei for one in found),
        value_dc=sum(one.value_dc for one in found),
    )


def _sums(session: Session, subject: Subject) -> dict[int, tuple[int, int, int, int]]:
    """By epoch: GPUs, GPU-ms, DC, wei."""
    columns = (REWARD.c.epoch, func.count(REWARD.c.gpu_id.distinct()), func.sum(REWARD.c.gpu_ms), func.sum(REWARD.c.dc))
    mine = subject.rewards()
    wei: dict[int, int] = {}
    for epoch, amount in session.execute(select(REWARD.c.epoch, REWARD.c.wei).where(mine)):
        wei[epoch] = wei.get(epoch, 0) + amount  # exact: wei do not fit what SQLite can sum
    rows = session.execute(select(*columns).where(mine).group_by(REWARD.c.epoch))
    return {epoch: (gpus, int(gpu_ms), int(dc), wei[epoch]) for epoch, gpus, gpu_ms, dc in rows}
