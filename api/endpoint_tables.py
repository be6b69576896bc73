"""Endpoints: what a customer serves behind one URL, and what its router last said of it."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(name: str) -> Any:
    return name


class EndpointRow(SQLModel, table=True):
    """`request` is the RunRequest of its runs, each of which holds the replicas from one start from zero to the next.

    `methods` are the object's public ones; `report` is the router's newest word: replicas, load, the last fault.
    """

    __tablename__ = _named("endpoints")
    __table_args__ = (Index("endpoints_of_customer", "customer", "created_ms"), Index("endpoints_in_state", "state"))

    id: str = Field(primary_key=True)
    customer: str = Field(foreign_key="customers.id")
    name: str
    state: str
    request: dict[str, Any] = Field(sa_type=JSON)
    methods: list[str] = Field(sa_type=JSON)
    code: str
    min_replicas: int
    max_replicas: int
    at_once: int
    budget_dc: int | None = Field(default=None, sa_type=BigInteger, nullable=True)
    created_ms: int = Field(sa_type=BigInteger)
    stopped_ms: int | None = Field(default=None, sa_type=BigInteger, nullable=True)
    runs: list[str] = Field(default_factory=list, sa_type=JSON)
    report: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    reported_ms: int = Field(default=0, sa_type=BigInteger)


def endpoint_tables() -> list[Table]:
    """All tables of this module."""
    return [table_of(EndpointRow)]
