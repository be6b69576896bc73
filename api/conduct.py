"""Gathers what is known of operators day by day, and writes their reputations; `api.reputation` says what it means.

Once a minute, in one transaction, under a lock of the database. Facts belong to the day on which they became known (a
lease's end, a GPU's return), so a day that is over stays as it is: the sweep looks at today, and at yesterday for the
time in which reports may still come.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import BigInteger, and_, case, cast, func, or_, select
from sqlmodel import Session, col

from api import locks
from api.conduct_tables import OperatorDayRow, TimeReportRow
from api.lifecycle import OPEN_WITHIN_MS
from api.notice_tables import NoticeRow
from api.notices import OVERDUE_MS
from api.plane import Plane
from api.reputation import DAY_MS, REMEMBERED_DAYS, CustomerDay, DayFacts, Score, day_of, of_leases, score
from api.tables import EquivocationRow, FactRow, LeaseRow, OperatorRow, UptimeRow
from api.time_reports import TAKEN_AFTER_CLOSE_MS, claimed, claims_too_much
from api.verification_tables import ChallengeRow
from api.verified import PASSED
from fabric.wire.machines import LeaseState
from fabric.wire.reasons import Reason
from ledger.uptime import UPTIME, Uptime

SWEEP_MS = 60_000
_SWEPT = "reputations_ms"
_FAILED = "failed"
_FAULTS = (Reason.OPERATOR_LOST.value, Reason.GPU_UNHEALTHY.value, Reason.VERIFICATION_FAILED.value)
_NAMES = tuple(DayFacts.__dataclass_fields__)
_NOTICED = (Reason.PREEMPTED.value, Reason.OPERATOR_DRAIN.value, Reason.SLOT_ENDED.value)


def sweep(plane: Plane) -> None:
    """Bring the facts and reputations up to date, if it is time."""
    now = plane.now_ms()
    with plane.database.read() as session:
        if not _is_due(session, now):
            return
    with plane.database.write() as session:
        mark = session.get(FactRow, _SWEPT)
        if locks.hold(plane, session, "reputations") is None:
            return
        last = now if mark is None else int(mark.value)
        touched: set[str] = set()
        for day in range(day_of(last - TAKEN_AFTER_CLOSE_MS - SWEEP_MS), day_of(now) + 1):
            touched |= _write_day(session, plane, day)
        everyone = mark is None or day_of(now) != day_of(last)
        for operator in session.scalars(select(OperatorRow)):
            if everyone or operator.id in touched:
                _write_reputation(session, operator, day_of(now))
        mark = mark or FactRow(name=_SWEPT, value="")
        mark.value = str(now)
        session.add(mark)


def score_of(session: Session, operator: str, now_ms: int) -> Score:
    """An operator's reputation by the facts that are written, and what it is made of."""
    return score(days_of(session, operator, now_ms), day_of(now_ms))


def days_of(session: Session, operator: str, now_ms: int) -> list[DayFacts]:
    """The days that are remembered, oldest first."""
    first = day_of(now_ms) - REMEMBERED_DAYS
    rows = session.scalars(
        select(OperatorDayRow)
        .where(col(OperatorDayRow.operator) == operator, col(OperatorDayRow.day) >= first)
        .order_by(col(OperatorDayRow.day))
    )
    return [DayFacts(**{name: getattr(row, name) for name in _NAMES}) for row in rows]


def _is_due(session: Session, now_ms: int) -> bool:
    mark = session.get(FactRow, _SWEPT)
    return mark is None or now_ms - int(mark.value) >= SWEEP_MS


def _write_reputation(session: Session, operator: OperatorRow, today: int) -> None:
    value = score_of(session, operator.id, today * DAY_MS).value
    if operator.reputation != value:
        operator.reputation = value
        session.add(operator)


def _write_day(session: Session, plane: Plane, day: int) -> set[str]:
    """Write what is known of a day; returns the operators of whom it is something else than before."""
    found = _facts(session, plane, day)
    touched: set[str] = set()
    for operator, facts in found.items():
        row = session.get(OperatorDayRow, (operator, day))
        if row is not None and all(getattr(row, name) == getattr(facts, name) for name in _NAMES):
            continue
        session.merge(OperatorDayRow(operator=operator, **asdict(facts)))
        touched.add(operator)
    session.flush()
    return touched


def _facts(session: Session, plane: Plane, day: int) -> dict[str, DayFacts]:
    start, end = day * DAY_MS, (day + 1) * DAY_MS
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for source in (_leases, _notices, _challenges, _lies):
        for operator, members in source(session, start, end):
            found[operator].update(members)
    for operator, members in _uptime(session, plane, start, end):
        found[operator].update(members)
    return {operator: replace(DayFacts(day), **members) for operator, members in found.items()}


_Facts = Iterable[tuple[str, dict[str, int]]]


def broken() -> Any:
    """Leases that ended by the operator's fault, as the control plane or the agent saw it; no customer's word counts.

    One that was to open within less than everybody else's leases may be late without fault.
    """
    reason = col(LeaseRow.reason)
    return or_(
        col(LeaseRow.state) == LeaseState.LOST.value,
        and_(~col(LeaseRow.given_back), reason.in_(_FAULTS)),
        and_(
            ~col(LeaseRow.given_back),
            reason == Reason.STARTUP_TIMEOUT.value,
            col(LeaseRow.startup_timeout_ms) >= OPEN_WITHIN_MS,
        ),
    )


def _leases(session: Session, start: int, end: int) -> _Facts:
    reported = col(TimeReportRow.lease).is_not(None)
    claim = case((col(TimeReportRow.final), claimed()), else_=col(TimeReportRow.claimed_ms))
    kept = and_(~broken(), col(LeaseRow.opened_ms).is_not(None))
    rows = session.execute(
        select(
            LeaseRow.operator,  # type: ignore[arg-type]
            LeaseRow.customer,  # type: ignore[arg-type]
            _count(kept),
            _count(broken()),
            cast(func.coalesce(func.sum(case((kept, col(LeaseRow.charged_dc)), else_=0)), 0), BigInteger),
            _count(reported),
            _count(and_(reported, claims_too_much(claim, col(TimeReportRow.observed_ms)))),
        )
        .join(TimeReportRow, col(TimeReportRow.lease) == col(LeaseRow.id), isouter=True)
        .where(col(LeaseRow.closed_ms) >= start, col(LeaseRow.closed_ms) < end)
        .group_by(col(LeaseRow.operator), col(LeaseRow.customer))
    )
    by_operator: defaultdict[str, list[CustomerDay]] = defaultdict(list)
    for operator, _customer, *numbers in rows:
        by_operator[operator].append(CustomerDay(*map(int, numbers)))
    return ((operator, of_leases(days)) for operator, days in by_operator.items())


def _notices(session: Session, start: int, end: int) -> _Facts:
    """Whether leases that ended before their customers wanted had the notice that their offers promised, in time."""
    promised = col(LeaseRow.notice_ms)
    given = col(NoticeRow.until_ms) - col(NoticeRow.given_ms)
    late = func.coalesce(col(LeaseRow.release_ms), 0) >= col(NoticeRow.until_ms) + OVERDUE_MS
    bad = or_(col(NoticeRow.lease).is_(None), given < promised, late)
    rows = session.execute(
        select(LeaseRow.operator, _count(~bad), _count(bad))  # type: ignore[call-overload]
        .join(NoticeRow, col(NoticeRow.lease) == col(LeaseRow.id), isouter=True)
        .where(
            col(LeaseRow.closed_ms) >= start,
            col(LeaseRow.closed_ms) < end,
            col(LeaseRow.opened_ms).is_not(None),
            or_(
                col(NoticeRow.reason).in_(_NOTICED),
                and_(
                    col(NoticeRow.lease).is_(None),
                    col(LeaseRow.reason) == Reason.OPERATOR_DRAIN.value,
                    ~col(LeaseRow.given_back),
                ),
            ),
        )
        .group_by(col(LeaseRow.operator))
    )
    return ((operator, {"notices_kept": int(good), "notices_broken": int(no)}) for operator, good, no in rows)


def _challenges(session: Session, start: int, end: int) -> _Facts:
    stage = col(ChallengeRow.stage)
    rows = session.execute(
        select(ChallengeRow.operator, _count(stage == PASSED), _count(stage == _FAILED))  # type: ignore[call-overload]
        .where(col(ChallengeRow.ended_ms) >= start, col(ChallengeRow.ended_ms) < end)
        .group_by(col(ChallengeRow.operator))
    )
    return ((operator, {"passed": int(passed), "failed": int(failed)}) for operator, passed, failed in rows)


def _lies(session: Session, start: int, end: int) -> _Facts:
    rows = session.execute(
        select(LeaseRow.operator, func.count())  # type: ignore[call-overload]
        .join(EquivocationRow, col(EquivocationRow.lease) == col(LeaseRow.id))
        .where(col(EquivocationRow.at_ms) >= start, col(EquivocationRow.at_ms) < end)
        .group_by(col(LeaseRow.operator))
    )
    return ((operator, {"lies": int(lies)}) for operator, lies in rows)


def _uptime(session: Session, plane: Plane, start: int, end: int) -> _Facts:
    """For how long GPUs were there on a day, and how long those that came back on it had been away."""
    there: defaultdict[str, int] = defaultdict(int)
    for one in Uptime(session).stretches(start, end):
        there[one.operator] += one.until_ms - one.from_ms
    missed = _missed(session, plane, start, end)
    return (
        (operator, {"there_ms": there[operator], "missed_ms": missed.get(operator, 0)})
        for operator in sorted(there.keys() | missed.keys())
    )


def _missed(session: Session, plane: Plane, start: int, end: int) -> Mapping[str, int]:
    """A GPU that was away for more than a day had left; what nobody could have seen is not held against anybody."""
    earlier = UPTIME.alias()
    before = (
        select(func.max(earlier.c.until_ms))
        .where(earlier.c.gpu_id == UPTIME.c.gpu_id, earlier.c.from_ms < UPTIME.c.from_ms)
        .correlate(UPTIME)
        .scalar_subquery()
    )
    rows = session.execute(
        select(UPTIME.c.operator, UPTIME.c.from_ms, before).where(UPTIME.c.from_ms >= start, UPTIME.c.from_ms < end)
    ).all()
    gaps = [(operator, left, came) for operator, came, left in rows if left is not None and came - DAY_MS < left < came]
    lives = _lives(session, plane, min((left for _, left, _ in gaps), default=end), end)
    found: defaultdict[str, int] = defaultdict(int)
    for operator, left, came in gaps:
        found[operator] += sum(max(0, min(came, until) - max(left, since)) for since, until in lives)
    return found


def _lives(session: Session, plane: Plane, start: int, end: int) -> list[tuple[int, int]]:
    """When at least one control plane was up, in stretches that do not overlap."""
    rows = session.scalars(
        select(UptimeRow)
        .where(col(UptimeRow.last_seen_ms) >= start, col(UptimeRow.started_ms) < end)
        .order_by(col(UptimeRow.started_ms))
    )
    merged: list[tuple[int, int]] = []
    for row in rows:
        last = plane.now_ms() if row.id == plane.life else row.last_seen_ms
        if merged and row.started_ms <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((row.started_ms, last))
    return merged


def _count(condition: Any) -> Any:
    return cast(func.coalesce(func.sum(case((condition, 1), else_=0)), 0), BigInteger)
