"""Tables of enrolment: join tokens, operators' wallets, and the delegations of session keys."""

from typing import Any

from sqlalchemy import BigInteger, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(table: str) -> Any:
    """The base class types a table's name as something it computes; a plain name needs this."""
    return table


class JoinTokenRow(SQLModel, table=True):
    """A one-time invitation of one operator; the token itself is nowhere, only its SHA-256.

    `used_by` is the session key (hex) that it enrolled, empty while it is unused.
    """

    __tablename__ = _named("join_tokens")

    sha256: str = Field(primary_key=True)
    operator: str = Field(foreign_key="operators.id", index=True)
    created_ms: int = Field(sa_type=BigInteger)
    expires_ms: int = Field(sa_type=BigInteger)
    used_by: str = ""


class OperatorWalletRow(SQLModel, table=True):
    """The wallet that speaks for an operator: 0x-address with its checksum."""

    __tablename__ = _named("operator_wallets")

    operator: str = Field(primary_key=True, foreign_key="operators.id")
    wallet: str


class DelegationRow(SQLModel, table=True):
    """The newest delegation of a session key (hex), as the wallet signed it."""

    __tablename__ = _named("delegations")

    session_key: str = Field(primary_key=True, foreign_key="session_keys.public_key")
    issued_ms: int = Field(sa_type=BigInteger)
    expires_ms: int = Field(sa_type=BigInteger)
    signature: bytes
    accepted_ms: int = Field(sa_type=BigInteger)


def enrolment_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in (JoinTokenRow, OperatorWalletRow, DelegationRow)]
