"""The shapes of HTTP bodies (docs/protocol.md). Amounts are integers of DC, written as strings in answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from fabric.wire.link import MAX_RTT_US
from fabric.wire.reasons import RETRY_CLASSES

MAX_DC = 2**63 - 1
MAX_QUEUE_MS = 7 * 86_400_000
MAX_TIMEOUT_MS = 366 * 86_400_000
MAX_GPUS = 32
"""Alternatives in one request."""


def _integer(value: Any) -> Any:
    """A string of digits becomes the integer; a float never is one."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, float):
        raise ValueError("an amount is an integer of DC, or a string of digits")
    return value


Dc = Annotated[int, PlainSerializer(str, return_type=str)]
DcIn = Annotated[int, BeforeValidator(_integer), Field(ge=0, le=MAX_DC)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]
Names = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=256)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class RetryIn(_In):
    on: list[Literal["no_capacity", "error", "interruption"]] = ["interruption"]
    max: int = Field(default=3, ge=0, le=1000)
    backoff_ms: int = Field(default=0, ge=0, le=3_600_000)
    exit_codes: list[int] = Field(default=[], max_length=256)


class WorkIn(_In):
    """Blobs of a detached run: the packed function, and its pickled arguments as one CALL frame's body.

    `secret`: the arguments carry secrets, so their blob is deleted as soon as the run is over.
    """

    code: Sha256
    args: Sha256
    secret: bool = False


class EnvIn(_In):
    """What to install before the run: requirements as pip reads them, each a name with versions."""

    python: str = Field(default="", pattern=r"^(3\.\d{1,2})?$")
    pip: Names = []


class LeaseRefIn(_In):
    id: Name
    generation: int = Field(ge=1)


class RunRequest(_In):
    """What a customer submits. Everything that is left out allows everything."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "run_0123456789abcdefghjk",
                    "kind": "run",
                    "session": "ses_0123456789abcdefghjk",
                    "python": "3.11",
                    "gpu": ["H100:8", "A100:80GB:8"],
                    "max_price_dc": "250000",
                    "budget_dc": "4000000",
                }
            ]
        },
    )

    id: Name
    kind: Literal["run", "map", "submit", "actor", "serve"] = "run"
    name: str = Field(default="", max_length=200)
    session: Name
    python: str = Field(default="", pattern=r"^(3\.\d{1,2})?$")
    cloudpickle: str = Field(default="", max_length=40)
    gpu: list[str] = Field(default=[], max_length=MAX_GPUS, description="GPU grammar, in order of preference")
    gpu_any: bool = Field(default=False, description="the list is a set: the cheapest wins")
    nodes: int = Field(default=1, ge=1, le=1024, description="more than one: a gang, all or nothing")
    nodes_min: int = Field(default=0, ge=0, le=1024, description="of a gang that may be smaller; 0: it may not")
    cpu_milli: int = Field(default=0, ge=0, le=10**9)
    memory_bytes: int = Field(default=0, ge=0, le=2**60)
    disk_bytes: int = Field(default=0, ge=0, le=2**60)
    tier: Literal["spot", "on_demand", "reserved"] = "on_demand"
    slot: str = Field(default="", max_length=100, description="the own slot to run on; exactly for tier `reserved`")
    max_price_dc: DcIn | None = Field(default=None, description="DC per GPU-hour")
    budget_dc: DcIn | None = Field(default=None, description="DC for the whole run")
    region: Names = []
    near: str = Field(
        default="", max_length=200, description="a region, a gateway's host, or latitude,longitude; '': the caller"
    )
    max_rtt_ms: float | None = Field(default=None, gt=0, le=MAX_RTT_US / 1000, description="from `near` to the gateway")
    operators_allow: Names = []
    operators_deny: Names = []
    min_reputation: int = Field(default=0, ge=0, le=1000)
    min_verification: int = Field(default=0, ge=0, le=3, description="0 (nothing verified) to 3")
    interconnect: str = Field(default="", max_length=40, description="what must join the nodes, such as nvlink")
    queue_timeout_ms: int = Field(default=600_000, ge=0, le=MAX_QUEUE_MS, description="0: refuse rather than wait")
    startup_timeout_ms: int = Field(default=120_000, ge=1000, le=3_600_000)
    timeout_ms: int = Field(default=0, ge=0, le=MAX_TIMEOUT_MS, description="0: none")
    retry: RetryIn = RetryIn()
    objective: Literal["cost", "latency"] = "cost"
    network: Literal["none", "gang", "open"] | Names = "none"
    env: EnvIn | None = None
    leases: int = Field(default=1, ge=1, le=10_000, description="wanted in parallel; at least one is granted")
    tasks: int = Field(default=1, ge=0, le=10**9)
    checkpoint: str = Field(default="", max_length=100, description="the run whose newest checkpoints it begins with")
    tags: dict[str, str] = {}
    work: WorkIn | None = None
    lease: LeaseRefIn | None = Field(default=None, description="register on a lease that the session holds")
    dry_run: bool = False


class RttIn(_In):
    place: str = Field(max_length=200)
    rtt_us: int = Field(ge=1, le=MAX_RTT_US)


class RttsIn(_In):
    """What a customer's process measured, and the run for which it wants to know what else is worth measuring."""

    rtts: list[RttIn] = Field(default=[], max_length=64)
    request: RunRequest


class MoreLeases(_In):
    count: int = Field(ge=1, le=10_000)
    exclude_nodes: list[str] = Field(default=[], max_length=10_000)


class Finish(_In):
    state: Literal["SUCCEEDED", "FAILED"]
    reason: str = "done"
    message: str = Field(default="", max_length=20_000)


class ToldRun(_In):
    """A run that its process sent to a lease by itself; `state` is RUNNING, or how it ended."""

    request: RunRequest
    state: Literal["STARTING", "RUNNING", "SUCCEEDED", "FAILED"]
    reason: str = ""
    message: str = Field(default="", max_length=20_000)


class ToldRuns(_In):
    runs: list[ToldRun] = Field(max_length=256)


class ReleaseIn(_In):
    generation: int = Field(ge=1)
    reason: str = "done"


class Empty(_Out):
    pass


class ChainHealth(_Out):
    """How far the chain was read: `halted` says why it is no longer, and is empty while it is."""

    chain_id: int
    tip: int | None
    final: int
    halted: str


class Health(_Out):
    status: str
    fabric_id: str
    version: str
    chain: ChainHealth | None = None


class Account(_Out):
    id: str
    name: str
    test: bool
    available_dc: Dc
    held_dc: Dc
    exiting_dc: Dc


class WalletLink(_In):
    address: Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]
    signature: Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{130}$")]


class Wallet(_Out):
    address: str


class LeaseGpu(_Out):
    id: str
    uuid: str
    model: str
    memory_bytes: int
    share_milli: int
    simulated: bool


class Lease(_Out):
    id: str
    generation: int
    state: str
    reason: str
    operator: str
    operator_name: str
    cluster: str
    node: str
    region: str
    tier: str
    price_dc_per_gpu_hour: Dc
    gpus: list[LeaseGpu]
    granted_at_ms: int
    opened_at_ms: int | None
    closed_at_ms: int | None
    charged_dc: Dc
    gpu_ms: int


class Attempt(_Out):
    attempt: int
    task: int
    lease: str
    state: str
    reason: str
    message: str
    started_at_ms: int
    ended_at_ms: int | None
    exit_code: int | None = None


class TaskCounts(_Out):
    total: int
    done: int
    failed: int


class Cost(_Out):
    accrued_dc: Dc
    held_dc: Dc
    rate_dc_per_hour: Dc
    gpu_ms: int
    idle_ms: int
    setup_ms: int
    utilised_gpu_ms: int
    energy_mj: int
    budget_dc: Dc | None


class Explain(_Out):
    considered: int
    rejected: dict[str, int]
    chosen: dict[str, Any] | None
    next_best: dict[str, Any] | None
    text: str


class Result(_Out):
    blob: str
    message: str


class Run(_Out):
    id: str
    kind: str
    name: str
    tags: dict[str, str]
    state: str
    reason: str
    message: str
    tier: str
    created_at_ms: int
    started_at_ms: int | None
    ended_at_ms: int | None
    leases: list[Lease]
    attempts: list[Attempt]
    tasks: TaskCounts
    cost: Cost
    explain: Explain
    result: Result | None


class Runs(_Out):
    runs: list[Run]
    next: str | None


class RunIds(_Out):
    runs: list[str]


class Route(_Out):
    lease: str
    generation: int
    gateway: str
    token: str
    expires_ms: int
    fingerprint: str
    relay: str


class Routes(_Out):
    state: str
    reason: str
    message: str
    routes: list[Route]


class Target(_Out):
    place: str
    gateway: str
    relay: str


class Probes(_Out):
    probe: list[Target]


class Offer(_Out):
    operator: str
    operator_name: str
    region: str
    vendor: str
    model: str
    memory_bytes: int
    count_free: int
    count_total: int
    per_node: int
    tier: str
    price_dc_per_gpu_hour: Dc
    reputation: int
    verification: int
    simulated: bool
    rtt_ms: float | None
    ends_at_ms: int | None = None


class Offers(_Out):
    offers: list[Offer]


class ReceiptOut(_Out):
    receipt: str


class OperatorKeys(_Out):
    session_keys: list[str]


class LeaseInEpoch(_Out):
    """The way of one lease on one GPU into a closed epoch: both leaves' values and paths, bottom up, in 0x-hex.

    With `bound` it is a slot's, and its `receipt_hash` the root over these (lease, hash of its last receipt).
    """

    epoch: int
    lease: str
    gpu: str
    gpu_ms: int
    dc: Dc
    receipt_hash: str
    lease_path: list[str]
    usage_gpu_ms: int
    usage_dc: Dc
    leases_root: str
    usage_path: list[str]
    usage_root: str
    file_hash: str
    settlement: str
    bound: list[tuple[str, str]] = []


class StatementOut(_Out):
    body: str
    signature: str
    session_key: str


class EquivocationOut(_Out):
    first: StatementOut
    second: StatementOut


class RunReceipts(_Out):
    fabric_id: str
    operators: dict[str, OperatorKeys]
    receipts: list[ReceiptOut]
    epochs: list[LeaseInEpoch]
    equivocations: list[EquivocationOut]


class Gpu(_Out):
    id: str
    operator: str
    operator_name: str
    region: str
    vendor: str
    model: str
    memory_bytes: int
    simulated: bool
    healthy: bool
    offered: bool
    used_milli: int
    verification: "Verification"
    condition: "Condition | None" = None


class GpuProcess(_Out):
    pid: int
    memory_bytes: int | None


class Condition(_Out):
    """How a GPU was at `at_ms`; only for its operator's and its owner's account. null: the device does not tell."""

    temperature_c: int | None
    power_mw: int | None
    power_limit_mw: int | None
    utilisation_pct: int | None
    memory_used_bytes: int | None
    pcie_generation: int | None
    pcie_width: int | None
    nvlinks: int
    processes: list[GpuProcess]
    at_ms: int


class Verification(_Out):
    """Where a GPU stands by its challenges: 0 (never passed, or failed since) to 3. The cost is the last one's."""

    level: int
    passed_at_ms: int | None
    failed_at_ms: int | None
    reason: str
    strikes: int
    cost_gpu_ms: int


class Gpus(_Out):
    gpus: list[Gpu]


class Operator(_Out):
    id: str
    name: str
    payout: str
    reputation: int
    connected: bool
    gpus: int
    session_keys: list[str]


class Operators(_Out):
    operators: list[Operator]


class BlobOut(_Out):
    sha256: str
    size_bytes: int
    expires_ms: int


class Check(_Out):
    name: str
    invariant: int
    ok: bool
    first_bad: str | None


class Audit(_Out):
    ok: bool
    checks: list[Check]


assert set(RETRY_CLASSES) == {"no_capacity", "error", "interruption"}
