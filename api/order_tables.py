"""Tables of what operators order and of how their GPUs are: prices set after the agent's own, the nodes' conditions."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(name: str) -> Any:
    return name


class PriceOrderRow(SQLModel, table=True):
    """A price that the operator ordered, in DC per GPU-hour; 0: not offered.

    `instead_of_dc` is what its agent said then (0: nothing). While the agent still says that, the order counts; an
    agent that comes with another price was configured since, and the order is forgotten.
    """

    __tablename__ = _named("price_orders")

    cluster: str = Field(primary_key=True, foreign_key="clusters.id")
    model: str = Field(primary_key=True)
    tier: str = Field(primary_key=True)
    price_dc_per_gpu_hour: int = Field(sa_type=BigInteger)
    instead_of_dc: int = Field(sa_type=BigInteger)
    issued_ms: int = Field(sa_type=BigInteger)


class NodeConditionRow(SQLModel, table=True):
    """How the GPUs of a node are, as its agent said last: `link.GpuCondition` by UUID. For its operator's eyes."""

    __tablename__ = _named("node_conditions")

    cluster: str = Field(primary_key=True, foreign_key="clusters.id")
    node: str = Field(primary_key=True)
    gpus: dict[str, dict[str, Any]] = Field(sa_type=JSON)
    at_ms: int = Field(sa_type=BigInteger)


def order_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in (PriceOrderRow, NodeConditionRow)]
