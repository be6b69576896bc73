"""What GPU time costs, how much is held for it, when a hold is topped up and when a lease must stop.

Integers only. Moves no money: ``ledger.booking`` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import add
from typing import NamedTuple

from ledger.money import mul_div_down, mul_div_up

MILLI_GPU_MS_PER_GPU_HOUR = 3_600_000_000
HOLD_MS = 600_000
TICK_MS = 1_000
STOP_MS = 5_000


class PricedShare(NamedTuple):
    """A part of one GPU at a price: what one line of a lease costs."""

    share_milli: int
    price_dc_per_gpu_hour: int


class StopReason(StrEnum):
    BUDGET_EXHAUSTED = "budget_exhausted"
    INSUFFICIENT_FUNDS = "insufficient_funds"


class Wanted(NamedTuple):
    """A lease that something is to be held for: what it costs, its notice, and the time that is paid at least."""

    shares: Sequence[PricedShare]
    notice_ms: int
    least_ms: int = 0


@dataclass(frozen=True, slots=True)
class HoldSizes:
    """What to hold now for each of some leases, all their reserves, and why nothing where not even those fit."""

    dc: tuple[int, ...]
    reserve_dc: int
    refused: StopReason | None


@dataclass(frozen=True, slots=True)
class TopUp:
    """``add_dc`` more to hold, and whether the lease has to get its notice now."""

    add_dc: int
    stop: StopReason | None


def charge_due_up(cumulative_gpu_ms: int, priced: PricedShare) -> int:
    """DC owed for all of a meter's time, rounded up once; what was charged before is taken off by the caller.

    Rounding the cumulative sum, and not each receipt, makes the bill the same however receipts cut the time.
    """
    return mul_div_up(cumulative_gpu_ms * priced.share_milli, priced.price_dc_per_gpu_hour, MILLI_GPU_MS_PER_GPU_HOUR)


def cost_up(shares: Sequence[PricedShare], ms: int) -> int:
    """An upper bound of what ``ms`` more milliseconds of a lease can add to its bill."""
    return sum(charge_due_up(ms, share) for share in shares)


def reserve_dc_up(shares: Sequence[PricedShare], notice_ms: int) -> int:
    """What the stop costs at most: notice, one tick and five seconds; held, so that it is paid and never debt."""
    return cost_up(shares, notice_ms + TICK_MS + STOP_MS)


def hold_sizes(leases: Sequence[Wanted], *, available_dc: int, budget_left_dc: int | None) -> HoldSizes:
    """Ten minutes at each lease's price, less if budget or balance are less, never without the reserve.

    The reserve contains what a lease costs at least: `least_ms` at its price. Of less money than for ten minutes of all
    each has its reserve and, for equally long, a part of the rest, rounded down.

    Returns ``refused`` when not even the reserves fit; the reason says whether budget or balance is short.
    """
    reserves = [max(reserve_dc_up(one.shares, one.notice_ms), cost_up(one.shares, one.least_ms)) for one in leases]
    more = [max(0, cost_up(one.shares, HOLD_MS) - reserve) for one, reserve in zip(leases, reserves, strict=True)]
    dc, short = _bounded(sum(reserves) + sum(more), available_dc, budget_left_dc)
    rest = dc - sum(reserves)
    if rest < 0:
        return HoldSizes((), sum(reserves), short)
    parts = (mul_div_down(rest, wish, max(1, sum(more))) for wish in more)
    return HoldSizes(tuple(map(add, reserves, parts)), sum(reserves), None)


def top_up(
    shares: Sequence[PricedShare], *, held_dc: int, notice_ms: int, available_dc: int, budget_left_dc: int | None
) -> TopUp:
    """Back to ten minutes if budget and balance allow; stop when only the reserve is left.

    ``budget_left_dc`` is the budget minus what was charged and is held for all leases of the run.
    """
    reserve = reserve_dc_up(shares, notice_ms)
    wanted = max(0, max(cost_up(shares, HOLD_MS), reserve) - held_dc)
    add, short = _bounded(wanted, available_dc, budget_left_dc)
    return TopUp(add, short if held_dc + add <= reserve else None)


def _bounded(wanted: int, available_dc: int, budget_left_dc: int | None) -> tuple[int, StopReason | None]:
    """``wanted`` within both limits, and which of them cut it."""
    if budget_left_dc is not None and budget_left_dc < min(wanted, available_dc + 1):
        return max(0, budget_left_dc), StopReason.BUDGET_EXHAUSTED
    if available_dc < wanted:
        return max(0, available_dc), StopReason.INSUFFICIENT_FUNDS
    return wanted, None
