"""Tables beside the pools': what wallets signed about them, and when each GPU was there to be leased.

Only shapes and what the database enforces, as in `ledger.tables`.
"""

from typing import Any

from sqlalchemy import BigInteger, Index, Table
from sqlmodel import Field, SQLModel

from ledger.tables import protect, table_of


def _named(table: str) -> Any:
    """The base class types a table's name as something it computes; a plain name needs this."""
    return table


def _big(**options: Any) -> Any:
    return Field(sa_type=BigInteger, **options)


class PoolStatementRow(SQLModel, table=True):
    """What a wallet signed about a pool, whole: ``digest`` is what was signed, so that nothing is taken twice.

    ``body`` is the statement as canonical JSON; ``gpu_id`` is empty where it is about terms.
    """

    __tablename__ = _named("ledger_pool_statement")
    __table_args__ = (Index("ledger_pool_statement_pool", "pool", "at_ms"),)

    digest: str = Field(primary_key=True)
    action: str
    pool: str
    gpu_id: str
    body: str
    signer: str
    signature: bytes
    at_ms: int = _big()


class GpuUptimeRow(SQLModel, table=True):
    """From ``from_ms`` to before ``until_ms`` (none: still) the GPU was healthy and its agent answered heartbeats.

    ``price_dc`` is what it cost on demand meanwhile, per GPU-hour; 0 = it was not offered on demand.
    """

    __tablename__ = _named("ledger_gpu_uptime")
    __table_args__ = (
        Index("ledger_gpu_uptime_open", "until_ms"),
        Index("ledger_gpu_uptime_operator", "operator", "from_ms"),
    )

    gpu_id: str = Field(primary_key=True)
    from_ms: int = _big(primary_key=True, sa_column_kwargs={"autoincrement": False})
    until_ms: int | None = _big(default=None, nullable=True)
    operator: str
    model: str
    price_dc: int = _big()


class UptimeMarkRow(SQLModel, table=True):
    """Up to when it is known which GPUs were there: one row."""

    __tablename__ = _named("ledger_uptime_mark")

    id: int = Field(default=1, primary_key=True, sa_column_kwargs={"autoincrement": False})
    through_ms: int = _big()


_ROWS: tuple[type[SQLModel], ...] = (PoolStatementRow, GpuUptimeRow, UptimeMarkRow)

_STATED = "rows of ledger_pool_statement are what wallets signed; a new statement corrects an old one"
_SEEN = "a stretch of uptime changes only by its end"
_STRETCH_FIXED = ("gpu_id", "from_ms", "operator", "model", "price_dc")


def pool_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in _ROWS]


def _sqlite(table: str, verb: str, message: str, when: str = "") -> str:
    name = f"{table}_no_{verb.lower()}"
    return f"CREATE TRIGGER {name} BEFORE {verb} ON {table} {when} BEGIN SELECT RAISE(ABORT, '{message}'); END"


def _postgres(table: str, name: str, verbs: str, when: str = "") -> str:
    head = f"CREATE TRIGGER {table}_no_{name} BEFORE {verbs} ON {table} FOR EACH ROW {when}"
    return f"{head} EXECUTE FUNCTION ledger_refuse()"


def _attach() -> None:
    statement, uptime = "ledger_pool_statement", "ledger_gpu_uptime"
    protect(
        PoolStatementRow,
        sqlite=[_sqlite(statement, verb, _STATED) for verb in ("UPDATE", "DELETE")],
        postgresql=[_postgres(statement, "change", "UPDATE OR DELETE")],
    )
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in _STRETCH_FIXED)
    differs = " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in _STRETCH_FIXED)
    ended = "OLD.until_ms IS NOT NULL"
    protect(
        GpuUptimeRow,
        sqlite=[
            _sqlite(uptime, "UPDATE", _SEEN, f"WHEN {ended} OR {changed}"),
            _sqlite(uptime, "DELETE", _SEEN),
        ],
        postgresql=[
            _postgres(uptime, "change", "UPDATE", f"WHEN ({ended} OR {differs})"),
            _postgres(uptime, "delete", "DELETE"),
        ],
    )


_attach()
