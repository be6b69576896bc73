"""Tables of what nodes let a run do, and of which account an operator's own work belongs to."""

from typing import Any

from sqlalchemy import JSON, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(name: str) -> Any:
    return name


class NodeTermsRow(SQLModel, table=True):
    """As the newest inventory says: `NodeInfo.isolation` and `NodeInfo.capabilities`."""

    __tablename__ = _named("node_terms")

    cluster: str = Field(primary_key=True, foreign_key="clusters.id")
    node: str = Field(primary_key=True)
    isolation: str
    capabilities: list[str] = Field(sa_type=JSON)


class OperatorAccountRow(SQLModel, table=True):
    """The account whose runs are the operator's own work; beside it counts the account of the operator's wallet."""

    __tablename__ = _named("operator_accounts")

    operator: str = Field(primary_key=True, foreign_key="operators.id")
    customer: str = Field(primary_key=True, foreign_key="customers.id")


def terms_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in (NodeTermsRow, OperatorAccountRow)]
