"""Ways to clusters' gateways, beside their address: which certificate they have, and whose relay leads there."""

from typing import Any

from sqlalchemy import Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(name: str) -> Any:
    return name


class GatewayRow(SQLModel, table=True):
    """`fingerprint` is the SHA-256 (hex) of the gateway's own certificate; `plane` the public URL of the control plane
    that the agent is connected to, "" where it has none of its own.
    """

    __tablename__ = _named("gateways")

    cluster: str = Field(primary_key=True, foreign_key="clusters.id")
    fingerprint: str
    plane: str


def gateway_tables() -> list[Table]:
    """All tables of this module."""
    return [table_of(GatewayRow)]
