"""Tables of what was measured between places, and of where clusters stand; `api.distances` reads them.

A place is a cluster by its id, the control plane (`link.CONTROL`), or a customer's session.
"""

from typing import Any

from sqlalchemy import BigInteger, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(name: str) -> Any:
    return name


class RttRow(SQLModel, table=True):
    """The newest round trip that `place` measured to `other`."""

    __tablename__ = _named("rtts")

    place: str = Field(primary_key=True)
    other: str = Field(primary_key=True)
    rtt_us: int = Field(sa_type=BigInteger)
    measured_ms: int = Field(sa_type=BigInteger, index=True)


class LocationRow(SQLModel, table=True):
    """Where a cluster stands, in millionths of a degree, as its operator says."""

    __tablename__ = _named("locations")

    cluster: str = Field(primary_key=True, foreign_key="clusters.id")
    latitude_e6: int
    longitude_e6: int


def distance_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in (RttRow, LocationRow)]
