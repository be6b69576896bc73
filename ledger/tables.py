"""The ledger's tables, and the triggers that make the database itself refuse to change a booked row.

Only shapes and what the database enforces; reading and writing is in `ledger.book`, `ledger.store` and the other
shells. DC are BIGINT. Wei are NUMERIC(78, 0) on PostgreSQL and 32 bytes, big-endian two's complement, on SQLite.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Connection,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    Table,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.schema import DDL
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel import Field, SQLModel

_BIG_KEY = BigInteger().with_variant(Integer(), "sqlite")
_WEI_BYTES = 32


class Wei(TypeDecorator[int]):
    """A signed 256-bit integer, exact on both databases."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        kind = Numeric(78, 0) if dialect.name == "postgresql" else LargeBinary(_WEI_BYTES)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return value.to_bytes(_WEI_BYTES, "big", signed=True)

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        if value is None or dialect.name == "postgresql":
            return None if value is None else int(value)
        return int.from_bytes(value, "big", signed=True)


def _key() -> Any:
    return Field(default=None, primary_key=True, sa_type=_BIG_KEY)


def _named(table: str) -> Any:
    """The base class types a table's name as something it computes; a plain name needs this."""
    return table


def _big(**options: Any) -> Any:
    return Field(sa_type=BigInteger, **options)


PENDING = "kind = 'usage_pending'"
"""Of which accounts there is an index of its own: one for each GPU, among those of every lease."""


class AccountRow(SQLModel, table=True):
    """An account that has been used; never changes."""

    __tablename__ = _named("ledger_account")
    __table_args__ = (
        Index("ledger_account_owner", "owner", "kind"),
        Index("ledger_account_pending", "kind", sqlite_where=text(PENDING), postgresql_where=text(PENDING)),
    )

    id: int | None = _key()
    name: str = Field(unique=True)
    kind: str
    owner: str
    sub: str


NO_CHARGE = "kind <> 'charge'"
"""Of which entries there is an index of its own: a lease has many charges and few others."""


class EntryRow(SQLModel, table=True):
    __tablename__ = _named("ledger_entry")
    __table_args__ = (
        Index("ledger_entry_of_lease", "lease_id", "id"),
        Index("ledger_entry_no_charge", "lease_id", sqlite_where=text(NO_CHARGE), postgresql_where=text(NO_CHARGE)),
        Index("ledger_entry_customer", "customer", "id"),
    )

    id: int | None = _key()
    source_id: str = Field(unique=True)
    kind: str
    at_ms: int = _big()
    lease_id: str | None = None
    customer: str | None = None
    reverses_id: int | None = _big(default=None, unique=True, nullable=True, foreign_key="ledger_entry.id")


class DcPostingRow(SQLModel, table=True):
    """One leg in DC. It carries the fold: ``balance`` is the account's after it, ``nth`` its place in the account."""

    __tablename__ = _named("ledger_dc_posting")
    __table_args__ = (
        UniqueConstraint("account_id", "nth"),
        CheckConstraint("amount <> 0", name="ledger_dc_posting_moves"),
        CheckConstraint("is_source OR balance >= 0", name="ledger_dc_posting_solvent"),
    )

    entry_id: int = _big(primary_key=True, foreign_key="ledger_entry.id")
    line: int = Field(primary_key=True)
    account_id: int = _big(foreign_key="ledger_account.id")
    nth: int = _big()
    amount: int = _big()
    balance: int = _big()
    is_source: bool


class BctPostingRow(SQLModel, table=True):
    """One leg in wei; as `DcPostingRow`, in a table of its own because wei do not fit 64 bits."""

    __tablename__ = _named("ledger_bct_posting")
    __table_args__ = (
        UniqueConstraint("account_id", "nth"),
        CheckConstraint("is_source OR balance < x'80'", name="ledger_bct_posting_solvent").ddl_if(dialect="sqlite"),
        CheckConstraint("is_source OR balance >= 0", name="ledger_bct_posting_solvent").ddl_if(dialect="postgresql"),
    )

    entry_id: int = _big(primary_key=True, foreign_key="ledger_entry.id")
    line: int = Field(primary_key=True)
    account_id: int = _big(foreign_key="ledger_account.id")
    nth: int = _big()
    amount: int = Field(sa_type=Wei)
    balance: int = Field(sa_type=Wei)
    is_source: bool


class HoldRow(SQLModel, table=True):
    """A lease's hold. The only change it ever sees is its end."""

    __tablename__ = _named("ledger_hold")
    __table_args__ = (
        Index("ledger_hold_run", "run_id"),
        Index("ledger_hold_open", "customer", sqlite_where=text("closed_ms IS NULL"),
              postgresql_where=text("closed_ms IS NULL")),
    )  # fmt: skip

    lease_id: str = Field(primary_key=True)
    run_id: str
    customer: str
    opened_ms: int = _big()
    closed_ms: int | None = _big(default=None, nullable=True)


class MeterRow(SQLModel, table=True):
    """What is fixed for the life of a (lease, generation, GPU)."""

    __tablename__ = _named("ledger_meter")
    __table_args__ = (
        UniqueConstraint("lease_id", "generation", "gpu_id"),
        Index("ledger_meter_of_gpu", "gpu_id", "id"),
    )

    id: int | None = _key()
    lease_id: str
    generation: int = _big()
    gpu_id: str
    customer: str
    operator: str
    model: str
    share_milli: int
    price_dc_per_gpu_hour: int = _big()
    simulated: bool


class UsageRow(SQLModel, table=True):
    """The usage that a charge is for: one row for each entry of kind `charge`."""

    __tablename__ = _named("ledger_usage")
    __table_args__ = (
        Index("ledger_usage_meter", "meter_id", "entry_id"),
        Index("ledger_usage_meter_accepted", "meter_id", "accepted_ms"),
        Index("ledger_usage_accepted", "accepted_ms"),
    )

    entry_id: int = _big(primary_key=True, foreign_key="ledger_entry.id")
    meter_id: int = _big(foreign_key="ledger_meter.id")
    seq: int = _big()
    part: int
    run_id: str
    pool: str
    holder: str
    cumulative_gpu_ms: int = _big()
    gpu_ms: int = _big()
    dc: int = _big()
    charged_dc: int = _big()
    short_dc: int = _big()
    at_ms: int = _big()
    accepted_ms: int = _big()
    receipt_hash: bytes
    utilised_gpu_ms: int = _big()
    energy_mj: int = _big()


class FinalityRow(SQLModel, table=True):
    """Usage accepted before ``through_ms`` (and not before the row above) is final, in ``epoch``."""

    __tablename__ = _named("ledger_finality")
    __table_args__ = (Index("ledger_finality_of_epoch", "epoch", "through_ms"),)

    through_ms: int = _big(primary_key=True)
    epoch: int = _big()


class GpuTotalRow(SQLModel, table=True):
    """All usage of a GPU that is final with the step of finality ``through_ms``, which made some of it final.

    Usage accepted later is of meters from ``meter_id`` on: those before it belong to leases that had ended.
    """

    __tablename__ = _named("ledger_gpu_total")

    gpu_id: str = Field(primary_key=True)
    through_ms: int = _big(primary_key=True)
    gpu_ms: int = _big()
    share_milli_ms: int = _big()
    dc: int = _big()
    utilised_gpu_ms: int = _big()
    energy_mj: int = _big()
    first_ms: int = _big()
    last_ms: int = _big()
    meter_id: int = _big()


class EpochRow(SQLModel, table=True):
    """A closed epoch; its row appears at the close and never changes."""

    __tablename__ = _named("ledger_epoch")

    n: int = _big(primary_key=True)
    start_ms: int = _big()
    end_ms: int = _big()
    closed_ms: int = _big()
    gpu_ms: int = _big()
    burned_dc: int = _big()
    price_usd_e18: int = Field(sa_type=Wei)
    price_source: str
    value_wei: int = Field(sa_type=Wei)
    emission_wei: int = Field(sa_type=Wei)
    remintable_wei: int = Field(sa_type=Wei)
    paid_wei: int = Field(sa_type=Wei)
    staking_wei: int = Field(sa_type=Wei)
    stake_bps: int
    payout_root: bytes
    usage_root: bytes
    file_hash: bytes
    head: bytes
    settlement: str


class EpochUsageRow(SQLModel, table=True):
    """What one GPU did in a closed epoch: a usage leaf and what is shown beside it."""

    __tablename__ = _named("ledger_epoch_usage")
    __table_args__ = (Index("ledger_epoch_usage_gpu", "gpu_id", "epoch"),)

    epoch: int = _big(primary_key=True, foreign_key="ledger_epoch.n")
    gpu_id: str = Field(primary_key=True)
    gpu_ms: int = _big()
    dc: int = _big()
    leases_root: bytes
    payers: int
    largest_payer_bps: int


class RewardRow(SQLModel, table=True):
    """What a GPU earned for one holder in one pool in a closed epoch, beside the usage it came from."""

    __tablename__ = _named("ledger_reward")
    __table_args__ = (
        Index("ledger_reward_gpu", "gpu_id", "epoch"),
        Index("ledger_reward_holder", "holder", "epoch"),
        Index("ledger_reward_pool", "pool", "epoch"),
        Index("ledger_reward_operator", "operator", "epoch"),
    )

    epoch: int = _big(primary_key=True, foreign_key="ledger_epoch.n")
    gpu_id: str = Field(primary_key=True)
    holder: str = Field(primary_key=True)
    pool: str = Field(primary_key=True)
    operator: str
    gpu_ms: int = _big()
    dc: int = _big()
    wei: int = Field(sa_type=Wei)


class PayoutRow(SQLModel, table=True):
    """A payout leaf that this epoch changed: what a (GPU, holder) earned in it, and since the beginning."""

    __tablename__ = _named("ledger_payout")

    gpu_id: str = Field(primary_key=True)
    holder: str = Field(primary_key=True)
    epoch: int = _big(primary_key=True, foreign_key="ledger_epoch.n")
    wei: int = Field(sa_type=Wei)
    cumulative_wei: int = Field(sa_type=Wei)


class EpochFileRow(SQLModel, table=True):
    """The published file of a closed epoch, packed by zlib."""

    __tablename__ = _named("ledger_epoch_file")

    epoch: int = _big(primary_key=True, foreign_key="ledger_epoch.n")
    body: bytes


class PoolTermsRow(SQLModel, table=True):
    """Terms of a pool from an epoch on, as its operator signed them. ``terms`` is canonical JSON."""

    __tablename__ = _named("ledger_pool_terms")

    pool: str = Field(primary_key=True)
    from_epoch: int = _big(primary_key=True)
    entrance: str
    terms: str
    signer: str
    signature: bytes
    at_ms: int = _big()


class PoolMoveRow(SQLModel, table=True):
    """A GPU enters a pool, or is out of it, from an epoch on, as its owner or the operator signed it."""

    __tablename__ = _named("ledger_pool_move")
    __table_args__ = (Index("ledger_pool_move_pool", "pool"),)

    gpu_id: str = Field(primary_key=True)
    nth: int = Field(primary_key=True)
    pool: str
    enters: bool
    from_epoch: int = _big()
    signer: str
    signature: bytes
    at_ms: int = _big()


class LinkRow(SQLModel, table=True):
    """One entry's place in the sealed chain; ``hash`` covers the entry, its postings and every link before."""

    __tablename__ = _named("ledger_link")

    position: int = _big(primary_key=True, sa_column_kwargs={"autoincrement": False})
    entry_id: int = _big(unique=True, foreign_key="ledger_entry.id")
    hash: bytes
    sealed_ms: int = _big()


class HeadRow(SQLModel, table=True):
    """The chain's head when an epoch was closed."""

    __tablename__ = _named("ledger_head")

    epoch: int = _big(primary_key=True)
    position: int = _big()
    hash: bytes


APPEND_ONLY: tuple[type[SQLModel], ...] = (
    AccountRow,
    EntryRow,
    DcPostingRow,
    BctPostingRow,
    MeterRow,
    UsageRow,
    FinalityRow,
    GpuTotalRow,
    EpochRow,
    EpochUsageRow,
    RewardRow,
    PayoutRow,
    EpochFileRow,
    PoolTermsRow,
    PoolMoveRow,
    LinkRow,
    HeadRow,
)
"""Rows that no statement may change or delete."""

WHOLE: tuple[type[SQLModel], ...] = (DcPostingRow, BctPostingRow, UsageRow, LinkRow)
"""Rows whose foreign keys PostgreSQL checks for a whole statement at once: one by one costs more than writing them.

What they name can be neither changed nor deleted, so it is enough that it is there when they are written.
"""

_HOLD_FIXED = ("lease_id", "run_id", "customer", "opened_ms")

_POSTGRES_REFUSAL = """
CREATE OR REPLACE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'rows of % are immutable; correct by reversal', TG_TABLE_NAME; END $$
"""


def table_of(row: type[SQLModel]) -> Table:
    """The SQLAlchemy table of one of these classes."""
    return row.metadata.tables[str(row.__tablename__)]


def ledger_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in (*APPEND_ONLY[:4], HoldRow, *APPEND_ONLY[4:])]


def create_schema(connection: Connection) -> None:
    """Create the ledger's tables with their triggers; what a migration calls with its connection."""
    SQLModel.metadata.create_all(connection, tables=ledger_tables())


def protect(row: type[SQLModel], *, sqlite: list[str], postgresql: list[str]) -> None:
    """Let ``create_all`` of a table create its triggers too, so that no database is made without them."""
    _listen(table_of(row), "sqlite", sqlite)
    _listen(table_of(row), "postgresql", postgresql)


def protection_ddl(dialect: str) -> list[str]:
    """The statements that make a database refuse changes, for ``sqlite`` or ``postgresql``."""
    tables = [str(row.__tablename__) for row in APPEND_ONLY]
    if dialect == "sqlite":
        return [*(sql for table in tables for sql in _sqlite_refusals(table)), *_sqlite_hold()]
    return [_POSTGRES_REFUSAL, *(sql for table in tables for sql in _postgres_refusals(table)), *_postgres_hold()]


def whole_ddl(row: type[SQLModel]) -> list[str]:
    """What makes PostgreSQL refuse rows that name what is not there; for a table of `WHOLE`.

    Without `enable_seqscan` a session's plan from when the named tables were small stays good when they have grown.
    """
    table = table_of(row)
    missing = " OR ".join(
        f"(SELECT {key.column.name} FROM {key.column.table.name} WHERE {key.column.name} = given.{name}) IS NULL"  # noqa: S608 - our names
        for name, key in sorted((key.parent.name, key) for key in table.foreign_keys)
    )
    function = f"""
CREATE OR REPLACE FUNCTION {table.name}_whole() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
  IF EXISTS (SELECT FROM given WHERE {missing}) THEN
    RAISE foreign_key_violation USING MESSAGE = 'a row of {table.name} names what is not there';
  END IF;
  RETURN NULL;
END $$
"""
    trigger = f"CREATE TRIGGER {table.name}_whole AFTER INSERT ON {table.name} REFERENCING NEW TABLE AS given "
    return [function, f"{trigger} FOR EACH STATEMENT EXECUTE FUNCTION {table.name}_whole()"]


def _sqlite_refusals(table: str) -> list[str]:
    message = f"rows of {table} are immutable; correct by reversal"
    return [_sqlite_trigger(table, verb, message) for verb in ("UPDATE", "DELETE")]


def _sqlite_hold() -> list[str]:
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in _HOLD_FIXED)
    message = "a hold changes only by its end; correct by reversal"
    return [
        _sqlite_trigger("ledger_hold", "UPDATE", message, f"WHEN OLD.closed_ms IS NOT NULL OR {changed}"),
        _sqlite_trigger("ledger_hold", "DELETE", message),
    ]


def _sqlite_trigger(table: str, verb: str, message: str, when: str = "") -> str:
    name = f"{table}_no_{verb.lower()}"
    return f"CREATE TRIGGER {name} BEFORE {verb} ON {table} {when} BEGIN SELECT RAISE(ABORT, '{message}'); END"


def _postgres_refusals(table: str) -> list[str]:
    return [
        _postgres_trigger(table, "change", "UPDATE OR DELETE", "FOR EACH ROW"),
        _postgres_trigger(table, "truncate", "TRUNCATE", "FOR EACH STATEMENT"),
    ]


def _postgres_hold() -> list[str]:
    changed = " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in _HOLD_FIXED)
    when = f"FOR EACH ROW WHEN (OLD.closed_ms IS NOT NULL OR {changed})"
    return [
        _postgres_trigger("ledger_hold", "change", "UPDATE", when),
        _postgres_trigger("ledger_hold", "delete", "DELETE", "FOR EACH ROW"),
    ]


def _postgres_trigger(table: str, name: str, verbs: str, scope: str) -> str:
    return f"CREATE TRIGGER {table}_no_{name} BEFORE {verbs} ON {table} {scope} EXECUTE FUNCTION ledger_refuse()"


def _attach() -> None:
    for row in APPEND_ONLY:
        name = str(row.__tablename__)
        protect(row, sqlite=_sqlite_refusals(name), postgresql=[_POSTGRES_REFUSAL, *_postgres_refusals(name)])
    protect(HoldRow, sqlite=_sqlite_hold(), postgresql=[_POSTGRES_REFUSAL, *_postgres_hold()])
    for row in WHOLE:
        protect(row, sqlite=[], postgresql=whole_ddl(row))
        for constraint in table_of(row).foreign_key_constraints:
            constraint.ddl_if(dialect="sqlite")


def _listen(table: Table, dialect: str, statements: list[str]) -> None:
    for sql in statements:
        event.listen(table, "after_create", DDL(sql.replace("%", "%%")).execute_if(dialect=dialect))


_attach()
