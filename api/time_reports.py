"""What customers' processes report of the time they had their leases, beside what operators claim.

A report moves no money. A difference beyond the tolerance is shown on the bill, and counts in the operator's reputation
where the operator claims more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlmodel import Session, col

from api.conduct_tables import TimeReportRow
from api.tables import LeaseGpuRow, LeaseRow

LEAST_TOLERANCE_MS = 1000
TOLERANCE_PERCENT = 2
TAKEN_AFTER_CLOSE_MS = 600_000
"""As long as usage can be undone; later a report changes nothing, so that what is known of a day stays as it is."""


@dataclass(frozen=True, slots=True)
class Told:
    """For how long a process had a lease so far; `final`: it has given it back."""

    lease: str
    observed_ms: int
    final: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """The operator's claim and the customer's own time for the same stretch of a lease, per GPU."""

    claimed_ms: int
    observed_ms: int

    @property
    def over_ms(self) -> int:
        """How much more the operator claims; below zero = less."""
        return self.claimed_ms - self.observed_ms

    @property
    def flagged(self) -> bool:
        """Whether it is beyond the tolerance, in either direction."""
        return abs(self.over_ms) > tolerance_ms(self.observed_ms)


def tolerance_ms(observed_ms: int) -> int:
    """A second, or two percent, whichever is more."""
    return max(LEAST_TOLERANCE_MS, observed_ms * TOLERANCE_PERCENT // 100)


def claims_too_much(claimed_ms: Any, observed_ms: Any) -> Any:
    """The same of columns, in the direction that is held against an operator."""
    over = claimed_ms - observed_ms
    return (over > LEAST_TOLERANCE_MS) & (over * 100 > observed_ms * TOLERANCE_PERCENT)


def claimed() -> Any:
    """What the operator claims of a lease now, per GPU: the most of its GPUs'."""
    return (
        select(func.max(LeaseGpuRow.claimed_ms))  # type: ignore[arg-type]
        .where(col(LeaseGpuRow.lease) == col(LeaseRow.id))
        .correlate(LeaseRow)
        .scalar_subquery()
    )


def take(session: Session, customer: str, name: str, told: Sequence[Told], now_ms: int) -> list[str]:
    """Keep the newest report of each lease of this session; returns those that came too late to count.

    A process that reports of a lease that is not its own is told nothing of it: it is as late. After a final report
    only another final one counts.
    """
    late: list[str] = []
    for one in told:
        lease = session.get(LeaseRow, one.lease)
        if lease is None or (lease.customer, lease.session) != (customer, name) or _is_late(lease, now_ms):
            late.append(one.lease)
            continue
        row = session.get(TimeReportRow, one.lease)
        if row is not None and row.final and not one.final:
            continue
        row = row or TimeReportRow(lease=one.lease, observed_ms=0, claimed_ms=0, final=False, at_ms=now_ms)
        row.observed_ms, row.final, row.at_ms = one.observed_ms, one.final, now_ms
        row.claimed_ms = session.scalar(select(claimed()).where(col(LeaseRow.id) == one.lease)) or 0
        session.add(row)
    session.flush()
    return late


def difference(session: Session, lease: LeaseRow) -> Difference | None:
    """Claim and report of a lease, for the same stretch of it; None without a report."""
    row = session.get(TimeReportRow, lease.id)
    if row is None:
        return None
    now = session.scalar(select(claimed()).where(col(LeaseRow.id) == lease.id)) or 0
    return Difference(now if row.final else row.claimed_ms, row.observed_ms)


def _is_late(lease: LeaseRow, now_ms: int) -> bool:
    return lease.closed_ms is not None and now_ms - lease.closed_ms > TAKEN_AFTER_CLOSE_MS
