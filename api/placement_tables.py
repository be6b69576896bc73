"""Tables that placement reads: round trips between places, where clusters stand, and what changed in the fleet.

A place is a cluster by its id, the control plane (`link.CONTROL`), or a customer's session.
"""

from typing import Any

from sqlalchemy import BigInteger, Integer, Table
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


class FleetChangeRow(SQLModel, table=True):
    """That something of a cluster's node is another than before; an empty `node` means all of them.

    Every process that keeps a fleet in memory reads these and then the rows. `token` names a change, because `seq` is
    given again to another when a transaction is rolled back.
    """

    __tablename__ = _named("fleet_changes")

    seq: int | None = Field(default=None, primary_key=True, sa_type=BigInteger().with_variant(Integer(), "sqlite"))  # type: ignore[arg-type]
    token: str
    cluster: str
    node: str
    at_ms: int = Field(sa_type=BigInteger, index=True)


def placement_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in (RttRow, LocationRow, FleetChangeRow)]
