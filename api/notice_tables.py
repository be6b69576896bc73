"""Tables of what ends before its time and goes on: notices, room kept for who evicted, drained nodes, checkpoints."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(name: str) -> Any:
    return name


class NoticeRow(SQLModel, table=True):
    """A lease that will end at `until_ms` for `reason`: its agent tells the node, which keeps the deadline itself."""

    __tablename__ = _named("notices")

    lease: str = Field(primary_key=True, foreign_key="leases.id")
    reason: str
    given_ms: int = Field(sa_type=BigInteger)
    until_ms: int = Field(sa_type=BigInteger, index=True)


class EvictionRow(SQLModel, table=True):
    """A run that waits for leases that it evicted: `seats` are kept for it, and nobody else is placed there.

    `victims` are leases; `seats` are [{"node", "gpus": [[uuid, milli]], "cpu_milli", "memory_bytes", "disk_bytes"}].
    After `until_ms` the room is not kept any more.
    """

    __tablename__ = _named("evictions")

    run: str = Field(primary_key=True, foreign_key="runs.id")
    victims: list[str] = Field(sa_type=JSON)
    seats: list[dict[str, Any]] = Field(sa_type=JSON)
    until_ms: int = Field(sa_type=BigInteger)


class DrainRow(SQLModel, table=True):
    """Whether an operator takes a node out of service; `issued_ms` is the date of the newest order about it.

    The node "" is the whole cluster, whatever else is said of one node.
    """

    __tablename__ = _named("drains")

    cluster: str = Field(primary_key=True, foreign_key="clusters.id")
    node: str = Field(primary_key=True)
    draining: bool
    issued_ms: int = Field(sa_type=BigInteger)


class CheckpointRow(SQLModel, table=True):
    """The newest whole checkpoint of a task: digests of its manifest and pieces, which are the customer's blobs."""

    __tablename__ = _named("checkpoints")

    run: str = Field(primary_key=True, foreign_key="runs.id")
    task: int = Field(primary_key=True, sa_type=BigInteger)
    manifest: str
    pieces: list[str] = Field(sa_type=JSON)
    stored_ms: int = Field(sa_type=BigInteger)


def notice_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in (NoticeRow, EvictionRow, DrainRow)]
