"""The chain's tables: what the indexer read, whose wallets are whose, and what the settler sent.

Only shapes and what the database enforces. A row of the chain is never changed: it is inserted with its block and
deleted when a reorg takes the block away, which the database refuses for blocks that are final. So at any time these
rows are what a reading from the first block on would give. Amounts on chain are any 256-bit number, DC too.
"""

from typing import Any

from sqlalchemy import BigInteger, Connection, Dialect, Index, Integer, LargeBinary, Numeric, Table, UniqueConstraint
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel import JSON, Field, SQLModel

from ledger.tables import protect, table_of

_BIG_KEY = BigInteger().with_variant(Integer(), "sqlite")
_WORD = 32


class Uint256(TypeDecorator[int]):
    """An unsigned word of the EVM, exact on both databases, and in the order of numbers."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Numeric(78, 0) if dialect.name == "postgresql" else LargeBinary(_WORD))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return value.to_bytes(_WORD, "big")

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        if value is None or dialect.name == "postgresql":
            return None if value is None else int(value)
        return int.from_bytes(value, "big")


def _named(table: str) -> Any:
    """The base class types a table's name as something it computes; a plain name needs this."""
    return table


def _big(**options: Any) -> Any:
    return Field(sa_type=BigInteger, **options)


def _word(**options: Any) -> Any:
    return Field(sa_type=Uint256, **options)


class CursorRow(SQLModel, table=True):
    """How far the chain was read: one row, of one deployment on one chain.

    Attributes:
        settlement: address of the deployment's Settlement, lower case: another deployment needs another database.
        final_number, final_hash: the last block that can no longer be undone; all up to it is booked.
        halted: why the indexer stopped; empty while it runs.
    """

    __tablename__ = _named("chain_cursor")

    id: int = Field(default=1, primary_key=True, sa_column_kwargs={"autoincrement": False})
    chain_id: int = _big()
    settlement: str
    start_block: int = _big()
    final_number: int = _big()
    final_hash: bytes
    halted: str = ""
    halted_ms: int | None = _big(default=None, nullable=True)


class BlockRow(SQLModel, table=True):
    """A block that could still be undone, or the last one that could not; older ones are forgotten."""

    __tablename__ = _named("chain_block")

    number: int = _big(primary_key=True, sa_column_kwargs={"autoincrement": False})
    hash: bytes = Field(unique=True)
    parent: bytes
    time_s: int = _big()


class WalletRow(SQLModel, table=True):
    """Whose wallet it is; what the wallet deposits is that customer's. ``address`` is 0x-text in lower case."""

    __tablename__ = _named("chain_wallet")

    address: str = Field(primary_key=True)
    customer: str = Field(unique=True)
    linked_ms: int = _big()


class EventRow(SQLModel):
    """Where an event lies. Addresses are 0x-text in lower case, ids of GPUs 0x-hex, roots and hashes bytes."""

    block_number: int = _big(primary_key=True, sa_column_kwargs={"autoincrement": False})
    log_index: int = _big(primary_key=True, sa_column_kwargs={"autoincrement": False})
    tx_hash: bytes


class MintRow(EventRow, table=True):
    """BCT burned for DC, which are then in the account's own hand. ``price_usd_e18`` is USD × 10^-18 per BCT."""

    __tablename__ = _named("chain_mint")
    __table_args__ = (Index("chain_mint_account", "account"),)

    account: str
    bct_wei: int = _word()
    dc: int = _word()
    price_usd_e18: int = _word()


class DepositRow(EventRow, table=True):
    """DC moved into the deposits; ``total_dc`` is all that anybody ever deposited."""

    __tablename__ = _named("chain_deposit")
    __table_args__ = (Index("chain_deposit_account", "account"),)

    account: str
    dc: int = _word()
    total_dc: int = _word()


class ExitRequestRow(EventRow, table=True):
    """DC asked back; ``requested_dc`` is all that the account ever asked for."""

    __tablename__ = _named("chain_exit_request")
    __table_args__ = (Index("chain_exit_request_account", "account"),)

    account: str
    dc: int = _word()
    requested_dc: int = _word()


class ExitPaymentRow(EventRow, table=True):
    """DC given back; ``paid_dc`` is all that the account ever got back."""

    __tablename__ = _named("chain_exit_payment")
    __table_args__ = (Index("chain_exit_payment_account", "account"),)

    account: str
    dc: int = _word()
    paid_dc: int = _word()


class OwnerRow(EventRow, table=True):
    """From ``from_ms`` on, the block's time, ``holder`` has the GPU's NFT, until the GPU's next row begins."""

    __tablename__ = _named("chain_owner")
    __table_args__ = (
        Index("chain_owner_gpu", "gpu_id", "block_number", "log_index"),
        Index("chain_owner_holder", "holder"),
    )

    gpu_id: str
    holder: str
    from_ms: int = _big()


class StandInRow(SQLModel, table=True):
    """From ``from_ms`` on the GPU stands in the place of the one that has the NFT; empty: in nobody's any more.

    Not of the chain: the control plane decides it (`ledger.chain.standing_in`), and no row ever changes.
    """

    __tablename__ = _named("chain_stand_in")
    __table_args__ = (Index("chain_stand_in_nft", "nft_gpu_id"),)

    gpu_id: str = Field(primary_key=True)
    from_ms: int = _big(primary_key=True, sa_column_kwargs={"autoincrement": False})
    nft_gpu_id: str


class PostRow(EventRow, table=True):
    """A closing that was queued; the members of the contract's ``Closing``, its value and the end of its window."""

    __tablename__ = _named("chain_post")
    __table_args__ = (Index("chain_post_epoch", "epoch"),)

    epoch: int = _big()
    post_id: int = _big()
    value_wei: int = _word()
    ready_at_s: int = _big()
    burned_dc: int = _word()
    rewards_wei: int = _word()
    stake_wei: int = _word()
    exited_total_dc: int = _word()
    payout_root: bytes
    exit_root: bytes
    usage_root: bytes
    file: bytes


class RewindRow(EventRow, table=True):
    """The queue went back to ``to_epoch``: upheld dispute (``refusal`` 0), or a refusal of `finalise`."""

    __tablename__ = _named("chain_rewind")

    to_epoch: int = _big()
    refusal: int


class FinalisationRow(EventRow, table=True):
    """An epoch that the contract finalised; ``paid_wei`` includes the stakers' share."""

    __tablename__ = _named("chain_finalisation")
    __table_args__ = (Index("chain_finalisation_epoch", "epoch"),)

    epoch: int = _big()
    post_id: int = _big()
    paid_wei: int = _word()
    payout_root: bytes


class ClaimRow(EventRow, table=True):
    """BCT that a holder got for a GPU; ``cumulative_wei`` is all it ever got for it."""

    __tablename__ = _named("chain_claim")
    __table_args__ = (Index("chain_claim_gpu", "gpu_id", "holder"), Index("chain_claim_holder", "holder"))

    gpu_id: str
    holder: str
    wei: int = _word()
    cumulative_wei: int = _word()


class OutboxRow(SQLModel, table=True):
    """A transaction of ours: signed and stored before it leaves. ``purpose`` says what for, once (``post/3/1``).

    ``raw`` and ``hash`` are of the newest version; ``replaced`` has the hashes of those with a lower fee, any of which
    may be the one that is mined. Two purposes of one sender never share a nonce.
    """

    __tablename__ = _named("chain_outbox")
    __table_args__ = (UniqueConstraint("chain_id", "sender", "nonce"), Index("chain_outbox_state", "state"))

    id: int | None = Field(default=None, primary_key=True, sa_type=_BIG_KEY)
    purpose: str = Field(unique=True)
    chain_id: int = _big()
    sender: str
    nonce: int = _big()
    contract: str
    function: str
    hash: bytes = Field(index=True)
    raw: bytes
    replaced: list[str] = Field(sa_type=JSON, default_factory=list)
    state: str
    note: str = ""
    block_number: int | None = _big(default=None, nullable=True)
    gas_used: int | None = _big(default=None, nullable=True)
    created_ms: int = _big()
    changed_ms: int = _big()


EVENT_ROWS: tuple[type[EventRow], ...] = (
    MintRow,
    DepositRow,
    ExitRequestRow,
    ExitPaymentRow,
    OwnerRow,
    PostRow,
    RewindRow,
    FinalisationRow,
    ClaimRow,
)
"""What the chain said, by kind of event; any of them goes when its block goes."""

_ROWS: tuple[type[SQLModel], ...] = (CursorRow, BlockRow, WalletRow, *EVENT_ROWS, StandInRow, OutboxRow)

_FINAL_NUMBER = "(SELECT coalesce(max(final_number), -1) FROM chain_cursor)"
_FINAL = "blocks up to the cursor are final; their rows stay"
_BACK = "what is final stays final, and a database follows one deployment"

_STOOD = "who stood in for whom is a fact; a new row says what counts from then on"

_REFUSE = "BEGIN RAISE EXCEPTION '%', TG_ARGV[0]; END"
_KEEP_FINAL = (
    f"BEGIN IF OLD.block_number <= {_FINAL_NUMBER} THEN RAISE EXCEPTION '%', TG_ARGV[0]; END IF; RETURN OLD; END"
)
_POSTGRES_FUNCTIONS = [
    f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"
    for name, body in (("chain_refuse", _REFUSE), ("chain_keep_final", _KEEP_FINAL))
]


def chain_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in _ROWS]


def create_chain_schema(connection: Connection) -> None:
    """Create the tables with their triggers; what a migration calls with its connection."""
    SQLModel.metadata.create_all(connection, tables=chain_tables())


def _changed(table: str) -> str:
    return f"rows of {table} say what the chain said; they come and go with their block"


def _sqlite(table: str, verb: str, message: str, when: str = "") -> str:
    condition = f"WHEN {when}" if when else ""
    body = f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
    return f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} {condition} {body}"


def _postgres(table: str, verb: str, message: str, *, when: str = "", function: str = "chain_refuse") -> str:
    scope = "FOR EACH STATEMENT" if verb == "TRUNCATE" else "FOR EACH ROW"
    condition = f"WHEN ({when})" if when else ""
    does = f"EXECUTE FUNCTION {function}('{message}')"
    return f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} {scope} {condition} {does}"


def _protect_events(row: type[SQLModel]) -> None:
    table = table_of(row).name
    protect(
        row,
        sqlite=[
            _sqlite(table, "UPDATE", _changed(table)),
            _sqlite(table, "DELETE", _FINAL, f"OLD.block_number <= {_FINAL_NUMBER}"),
        ],
        postgresql=[
            *_POSTGRES_FUNCTIONS,
            _postgres(table, "UPDATE", _changed(table)),
            _postgres(table, "TRUNCATE", _changed(table)),
            _postgres(table, "DELETE", _FINAL, function="chain_keep_final"),
        ],
    )


def _protect_cursor() -> None:
    fixed = ("chain_id", "settlement", "start_block")
    changed = " OR ".join(f"NEW.{name} <> OLD.{name}" for name in fixed)
    when = f"NEW.final_number < OLD.final_number OR {changed}"
    verbs = (("UPDATE", when), ("DELETE", ""))
    protect(
        CursorRow,
        sqlite=[_sqlite("chain_cursor", verb, _BACK, condition) for verb, condition in verbs],
        postgresql=[
            *_POSTGRES_FUNCTIONS,
            *(_postgres("chain_cursor", verb, _BACK, when=condition) for verb, condition in verbs),
        ],
    )


def _protect_stand_ins() -> None:
    table, verbs = table_of(StandInRow).name, ("UPDATE", "DELETE")
    protect(
        StandInRow,
        sqlite=[_sqlite(table, verb, _STOOD) for verb in verbs],
        postgresql=[*_POSTGRES_FUNCTIONS, *(_postgres(table, verb, _STOOD) for verb in (*verbs, "TRUNCATE"))],
    )


for _row in EVENT_ROWS:
    _protect_events(_row)
_protect_stand_ins()
_protect_cursor()
