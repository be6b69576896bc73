"""The table of which leases make up a run on several nodes, and which rank each has."""

from typing import Any

from sqlalchemy import Index, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(name: str) -> Any:
    return name


class GangMemberRow(SQLModel, table=True):
    """One lease's place in its run's gang.

    Attributes:
        rank: from 0, without a gap among those of a placement. A lease that replaces a lost one takes its rank.
        placement: the newest placement of the run that counts on this lease.
        stop_attempt: attempts on this lease up to this number must not go on; 0 for none. The agent hears of it.
    """

    __tablename__ = _named("gang_members")
    __table_args__ = (Index("gang_members_run", "run"),)

    lease: str = Field(primary_key=True, foreign_key="leases.id")
    run: str = Field(foreign_key="runs.id")
    rank: int
    placement: int
    stop_attempt: int = 0


def gang_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(GangMemberRow)]
