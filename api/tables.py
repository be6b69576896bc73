"""The control plane's tables: who is known, what is offered, what runs, what was metered.

Shapes and what the database itself refuses: a GPU sold beyond 1000 milli, two accepted results of one task, a receipt
number used twice. Money is in the ledger's tables. Times are Unix ms by the control plane's clock, unless a name says
otherwise. No table is read or written outside this package's shells.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Integer, Table, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from ledger.tables import table_of

_BIG_KEY = BigInteger().with_variant(Integer(), "sqlite")


def _named(name: str) -> Any:
    """SQLModel declares table names as attributes of a type of its own; a plain string is what it means."""
    return name


def _big(**options: Any) -> Any:
    return Field(sa_type=BigInteger, **options)


def _maybe_ms(**options: Any) -> Any:
    return Field(default=None, sa_type=BigInteger, nullable=True, **options)


def _json(**options: Any) -> Any:
    return Field(sa_type=JSON, **options)


class FactRow(SQLModel, table=True):
    """What is fixed for the life of this fabric: its id, and the secret that signs agents' blob tokens."""

    __tablename__ = _named("facts")

    name: str = Field(primary_key=True)
    value: str


class UptimeRow(SQLModel, table=True):
    """One life of a control plane process: while it was up, receipts had somewhere to go."""

    __tablename__ = _named("uptimes")

    id: str = Field(primary_key=True)
    started_ms: int = _big()
    last_seen_ms: int = _big(index=True)


class LockRow(SQLModel, table=True):
    """Who may run a job of which there is only one; `fence` grows with each new owner."""

    __tablename__ = _named("locks")

    name: str = Field(primary_key=True)
    owner: str
    fence: int = _big()
    until_ms: int = _big()


class CustomerRow(SQLModel, table=True):
    __tablename__ = _named("customers")

    id: str = Field(primary_key=True)
    name: str
    test: bool
    created_ms: int = _big()


class ApiKeyRow(SQLModel, table=True):
    """A key is 256 random bits, so its plain SHA-256 is enough; the key itself is nowhere."""

    __tablename__ = _named("api_keys")

    sha256: str = Field(primary_key=True)
    customer: str = Field(foreign_key="customers.id", index=True)
    admin: bool
    created_ms: int = _big()
    revoked_ms: int | None = _maybe_ms()


class OperatorRow(SQLModel, table=True):
    """`payout` is the 0x-address that earns for a GPU without an NFT."""

    __tablename__ = _named("operators")

    id: str = Field(primary_key=True)
    name: str
    payout: str
    reputation: int
    created_ms: int = _big()


class SessionKeyRow(SQLModel, table=True):
    """An Ed25519 public key (hex) that signs an operator's receipts."""

    __tablename__ = _named("session_keys")

    public_key: str = Field(primary_key=True)
    operator: str = Field(foreign_key="operators.id", index=True)
    created_ms: int = _big()
    revoked_ms: int | None = _maybe_ms()


class ClusterRow(SQLModel, table=True):
    """One Ray cluster of an operator. `connection` names the agent's newest connection; an older one may not write."""

    __tablename__ = _named("clusters")

    id: str = Field(primary_key=True)
    operator: str = Field(foreign_key="operators.id", index=True)
    name: str
    gateway: str
    version: str
    connection: str
    connected: bool
    last_heard_ms: int = _big()


class NodeRow(SQLModel, table=True):
    """`present`: in the newest inventory; `lost`: its node actor is gone."""

    __tablename__ = _named("nodes")

    cluster: str = Field(primary_key=True, foreign_key="clusters.id")
    name: str = Field(primary_key=True)
    address: str
    region: str
    cpu_milli: int = _big()
    memory_bytes: int = _big()
    disk_bytes: int = _big()
    python: str
    cloudpickle: str
    present: bool
    lost: bool
    interconnects: list[str] = _json(default_factory=list)


class GpuRow(SQLModel, table=True):
    """A physical device. `used_milli` is what active leases hold of it: the database refuses to sell more than all.

    `disputed_by` names an operator that claimed the same UUID later and was refused; both are to be challenged.
    """

    __tablename__ = _named("gpus")
    __table_args__ = (
        CheckConstraint("used_milli >= 0 AND used_milli <= 1000", name="gpus_never_oversold"),
        Index("gpus_node", "cluster", "node"),
    )

    uuid: str = Field(primary_key=True)
    id: str = Field(unique=True)
    operator: str = Field(foreign_key="operators.id")
    cluster: str = Field(foreign_key="clusters.id")
    node: str
    vendor: str
    model: str
    name: str
    memory_bytes: int = _big()
    simulated: bool
    healthy: bool
    present: bool
    problem: str
    driver: str
    pcie: str
    share_sizes_milli: list[int] = _json()
    used_milli: int
    disputed_by: str = ""
    first_seen_ms: int = _big()


class PriceRow(SQLModel, table=True):
    """What an operator's cluster asks for a model and tier."""

    __tablename__ = _named("prices")

    cluster: str = Field(primary_key=True, foreign_key="clusters.id")
    model: str = Field(primary_key=True)
    tier: str = Field(primary_key=True)
    price_dc_per_gpu_hour: int = _big()
    since_ms: int = _big()


class SessionRow(SQLModel, table=True):
    """One process of a customer; silent for three minutes it is lost and its leases are released."""

    __tablename__ = _named("sessions")

    id: str = Field(primary_key=True)
    customer: str = Field(foreign_key="customers.id", index=True)
    created_ms: int = _big()
    last_heard_ms: int = _big()
    ended_ms: int | None = _maybe_ms()


class RunRow(SQLModel, table=True):
    """One submission. `request` is the RunRequest as it was sent; `placements` counts how often it was placed."""

    __tablename__ = _named("runs")
    __table_args__ = (
        Index("runs_of_customer", "customer", "created_ms", "id"),
        Index("runs_in_state", "state", "created_ms"),
        Index("runs_of_session", "session"),
    )

    id: str = Field(primary_key=True)
    customer: str = Field(foreign_key="customers.id")
    session: str = Field(foreign_key="sessions.id")
    kind: str
    name: str
    state: str
    reason: str = ""
    message: str = ""
    tier: str
    detached: bool
    request: dict[str, Any] = _json()
    budget_dc: int | None = _big(default=None, nullable=True)
    own_lease: bool
    created_ms: int = _big()
    started_ms: int | None = _maybe_ms()
    ended_ms: int | None = _maybe_ms()
    queued_until_ms: int = _big()
    retry_at_ms: int = _big(default=0)
    placements: int = 0
    tasks_total: int = _big(default=0)
    explain: dict[str, Any] = _json(default_factory=dict)
    excluded_nodes: list[str] = _json(default_factory=list)
    evicted_gpus: list[str] = _json(default_factory=list)
    code: str = Field(default="", index=True)
    args: str = Field(default="", index=True)
    result_blob: str = ""
    result_message: str = ""


class LeaseRow(SQLModel, table=True):
    """The right of one session to some GPUs, under one generation; receipts of another generation bill nothing.

    `billing_nonce_ms` is when the nonce of the accepted OPEN was issued, not before the grant: the window's start.
    `release_ms` is when the control plane decided to end it. After `lost_at_ms` it is lost unless a receipt came.
    `set_aside_dc` is its hold and all top-ups; minus `charged_dc` it is what is held. `least_ms` is the least that it
    costs when its customer ends it; `given_back`: its customer said so, and the reason is the customer's word.
    """

    __tablename__ = _named("leases")
    __table_args__ = (
        Index("leases_of_cluster", "cluster", "state"),
        Index("leases_of_session", "session", "state"),
        Index("leases_of_customer", "customer", "state"),
        Index("leases_closed", "closed_ms"),
    )

    id: str = Field(primary_key=True)
    generation: int = _big()
    customer: str = Field(foreign_key="customers.id")
    session: str = Field(foreign_key="sessions.id")
    run: str = Field(foreign_key="runs.id", index=True)
    operator: str = Field(foreign_key="operators.id")
    cluster: str = Field(foreign_key="clusters.id")
    node: str
    region: str
    tier: str
    state: str
    reason: str = ""
    price_dc_per_gpu_hour: int = _big()
    notice_ms: int = _big()
    cpu_milli: int = _big()
    memory_bytes: int = _big()
    disk_bytes: int = _big()
    startup_timeout_ms: int = _big()
    grant_nonce: int = _big()
    release_nonce: int | None = _big(default=None, nullable=True)
    granted_ms: int = _big()
    opened_ms: int | None = _maybe_ms()
    release_ms: int | None = _maybe_ms()
    closed_ms: int | None = _maybe_ms()
    lost_at_ms: int | None = _maybe_ms()
    topped_up_ms: int = _big()
    top_ups: int = 0
    set_aside_dc: int = _big(default=0)
    least_ms: int = _big(default=1_000)
    given_back: bool = False
    billing_nonce_ms: int | None = _maybe_ms()
    last_seq: int = _big(default=-1)
    last_hash: bytes = b""
    last_task_end_ms: int = _big(default=0)
    charged_dc: int = _big(default=0)


class LeaseGpuRow(SQLModel, table=True):
    """One GPU of a lease and what its meter says: claimed by the operator, billed after the window."""

    __tablename__ = _named("lease_gpus")
    __table_args__ = (
        CheckConstraint("share_milli >= 1 AND share_milli <= 1000", name="lease_gpus_share"),
        Index("lease_gpus_gpu", "gpu"),
    )

    lease: str = Field(primary_key=True, foreign_key="leases.id")
    gpu: str = Field(primary_key=True, foreign_key="gpus.uuid")
    position: int
    share_milli: int
    active: bool
    claimed_ms: int = _big(default=0)
    billed_ms: int = _big(default=0)
    window_ms: int = _big(default=0)
    setup_ms: int = _big(default=0)
    utilised_ms: int = _big(default=0)
    energy_mj: int = _big(default=0)
    charged_dc: int = _big(default=0)


class LeaseRunRow(SQLModel, table=True):
    """A run that uses a lease, and its part of the lease's GPU time."""

    __tablename__ = _named("lease_runs")
    __table_args__ = (Index("lease_runs_run", "run"),)

    lease: str = Field(primary_key=True, foreign_key="leases.id")
    run: str = Field(primary_key=True, foreign_key="runs.id")
    joined_ms: int = _big()
    gpu_ms: int = _big(default=0)
    idle_ms: int = _big(default=0)
    setup_ms: int = _big(default=0)


class UntoldRunRow(SQLModel, table=True):
    """A run's part of a lease that a receipt named before its session told of the run."""

    __tablename__ = _named("untold_runs")

    lease: str = Field(primary_key=True, foreign_key="leases.id")
    run: str = Field(primary_key=True)
    gpu_ms: int = _big(default=0)
    idle_ms: int = _big(default=0)
    setup_ms: int = _big(default=0)


class AttemptRow(SQLModel, table=True):
    """One try of a task of a detached run, which the agent runs for us."""

    __tablename__ = _named("attempts")
    __table_args__ = (Index("attempts_lease", "lease", "state"),)

    run: str = Field(primary_key=True, foreign_key="runs.id")
    task: int = Field(primary_key=True)
    attempt: int = Field(primary_key=True)
    lease: str = Field(foreign_key="leases.id")
    generation: int = _big()
    state: str
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    started_ms: int = _big()
    ended_ms: int | None = _maybe_ms()


class TaskRow(SQLModel, table=True):
    """A finished task as an accepted receipt shows it; at most one row per task is the accepted result.

    `start_ms` and `end_ms` count from the lease's OPEN.
    """

    __tablename__ = _named("tasks")
    __table_args__ = (
        Index(
            "tasks_one_result",
            "run",
            "task",
            unique=True,
            sqlite_where=text("accepted"),
            postgresql_where=text("accepted"),
        ),
        Index("tasks_receipt", "lease", "generation", "seq"),
    )

    run: str = Field(primary_key=True)
    task: int = _big(primary_key=True)
    attempt: int = Field(primary_key=True)
    lease: str = Field(primary_key=True)
    generation: int = _big()
    seq: int = _big()
    gpus: list[str] = _json()
    start_ms: int = _big()
    end_ms: int = _big()
    gpu_ms: int = _big()
    energy_mj: int = _big()
    reason: str
    result_digest: bytes = b""
    accepted: bool


class ReceiptRow(SQLModel, table=True):
    """An accepted receipt, whole, with the control plane's own window for it."""

    __tablename__ = _named("receipts")

    lease: str = Field(primary_key=True, foreign_key="leases.id")
    generation: int = _big(primary_key=True)
    seq: int = _big(primary_key=True)
    kind: str
    hash: bytes
    previous: bytes
    signed: bytes
    session_key: str
    nonce_seq: int = _big()
    window_ms: int = _big()
    accepted_ms: int = _big()


class EquivocationRow(SQLModel, table=True):
    """A second body that an operator signed for a number it had used: proof of a lie, never billed."""

    __tablename__ = _named("equivocations")
    __table_args__ = (UniqueConstraint("lease", "generation", "seq", "hash"),)

    id: int | None = Field(default=None, primary_key=True, sa_type=_BIG_KEY)
    lease: str
    generation: int = _big()
    seq: int = _big()
    hash: bytes
    signed: bytes
    at_ms: int = _big()


class NonceRow(SQLModel, table=True):
    """What the control plane said to an agent at a known time, so that echoing it proves "not before"."""

    __tablename__ = _named("nonces")
    __table_args__ = (Index("nonces_of_cluster", "cluster", "seq"), Index("nonces_issued", "issued_ms"))

    seq: int | None = Field(default=None, primary_key=True, sa_type=_BIG_KEY)
    cluster: str
    value: bytes
    issued_ms: int = _big()


class BlobRow(SQLModel, table=True):
    """A blob that a customer keeps; the bytes are a file named by digest in the customer's folder."""

    __tablename__ = _named("blobs")

    customer: str = Field(primary_key=True, foreign_key="customers.id")
    sha256: str = Field(primary_key=True)
    size_bytes: int = _big()
    created_ms: int = _big()
    expires_ms: int = _big(index=True)


class IdempotencyRow(SQLModel, table=True):
    """A request that named a key: its body, and once it is done the answer that is given again."""

    __tablename__ = _named("idempotency_keys")

    customer: str = Field(primary_key=True, foreign_key="customers.id")
    key: str = Field(primary_key=True)
    body_sha256: str
    owner: str
    status: int | None = None
    answer: dict[str, Any] | None = Field(default=None, sa_type=JSON, nullable=True)
    created_ms: int = _big()


class LogRow(SQLModel, table=True):
    """How much of a run's log is kept in its file."""

    __tablename__ = _named("logs")

    run: str = Field(primary_key=True, foreign_key="runs.id")
    lines: int = _big()
    size_bytes: int = _big()
    truncated: bool


_ROWS: tuple[type[SQLModel], ...] = (
    FactRow,
    UptimeRow,
    LockRow,
    CustomerRow,
    ApiKeyRow,
    OperatorRow,
    SessionKeyRow,
    ClusterRow,
    NodeRow,
    GpuRow,
    PriceRow,
    SessionRow,
    RunRow,
    LeaseRow,
    LeaseGpuRow,
    LeaseRunRow,
    UntoldRunRow,
    AttemptRow,
    TaskRow,
    ReceiptRow,
    EquivocationRow,
    NonceRow,
    BlobRow,
    IdempotencyRow,
    LogRow,
)


def api_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in _ROWS]
