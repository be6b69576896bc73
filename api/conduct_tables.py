"""Tables of how operators conduct themselves: what customers' processes measured, and the facts of each day."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(name: str) -> Any:
    return name


def _big(**options: Any) -> Any:
    return Field(sa_type=BigInteger, **options)


class TimeReportRow(SQLModel, table=True):
    """The newest report of a customer's process about a lease: for how long it has had it, by its own clock.

    `claimed_ms` is what the operator claimed per GPU when the report came; with `final`, what it claims at last counts.
    """

    __tablename__ = _named("time_reports")
    __table_args__ = (CheckConstraint("observed_ms >= 0", name="time_reports_not_negative"),)

    lease: str = Field(primary_key=True, foreign_key="leases.id")
    observed_ms: int = _big()
    claimed_ms: int = _big()
    final: bool
    at_ms: int = _big()


class OperatorDayRow(SQLModel, table=True):
    """`api.reputation.DayFacts` of an operator; a day that is over does not change any more."""

    __tablename__ = _named("operator_days")

    operator: str = Field(primary_key=True, foreign_key="operators.id")
    day: int = Field(primary_key=True, index=True)
    kept: int = _big()
    broken: int = _big()
    reported: int = _big()
    disputed: int = _big()
    kept_milli: int = _big()
    broken_milli: int = _big()
    agreed_milli: int = _big()
    disputed_milli: int = _big()
    there_ms: int = _big()
    missed_ms: int = _big()
    passed: int = _big()
    failed: int = _big()
    notices_kept: int = _big()
    notices_broken: int = _big()
    lies: int = _big()


def conduct_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in (TimeReportRow, OperatorDayRow)]
