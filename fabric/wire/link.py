"""What agent and control plane say to each other over the agent's WebSocket (`/v1/agent`).

One WebSocket message is one msgpack map with its `kind`. The agent dials out; the control plane speaks first:
`challenge`, `hello`, then `welcome` or `refuse`. Unknown fields and kinds are refused: both sides speak `PROTOCOL`.
"""

from typing import Annotated, Any, Literal, cast

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fabric.wire.surroundings import EnvSpec, Gang

PROTOCOL = 4
"""Raised on any change that an older side would misread."""

MAX_MESSAGE_BYTES = 16 << 20

CONTROL = "control"
"""The control plane among the places whose round trips are measured; the others are clusters' gateways."""

MAX_RTT_US = 60_000_000


class LinkError(ValueError):
    """A message that is not one of the protocol's."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class GpuInfo(_Model):
    """One GPU as the node's probe saw it. `model` is the market name (`H100`), `name` the device's own."""

    uuid: str
    vendor: str
    model: str
    name: str
    memory_bytes: int
    simulated: bool = False
    healthy: bool = True
    problem: str = ""
    driver: str = ""
    pcie: str = ""
    share_sizes_milli: list[int] = [1000]


class NodeInfo(_Model):
    """One node of the operator's cluster. `python` is the minor version, for example `3.11`.

    `interconnects` is what joins its GPUs, or it to its neighbours: `nvlink`, `infiniband`.
    `isolation` is what stands between a run and the node, `none` for only the operator's own account's runs.
    `capabilities` are what a run may need beside GPUs: `network:open`, `network:hosts`, `network:gang`, `env`, and
    `python:3.12` for a further interpreter that a `command` may use.
    """

    node: str
    address: str
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    python: str
    cloudpickle: str
    region: str = ""
    interconnects: list[str] = []
    gpus: list[GpuInfo]
    isolation: str = "bubblewrap"
    capabilities: list[Annotated[str, Field(max_length=80)]] = Field(default=[], max_length=64)


class GpuShare(_Model):
    uuid: str
    share_milli: int = Field(ge=1, le=1000)


class LeaseRef(_Model):
    lease: str
    generation: int


class Challenge(_Model):
    """Control plane → agent, first of all: 32 random bytes to sign."""

    kind: Literal["challenge"] = "challenge"
    protocol: int
    fabric_id: str
    value: bytes


class Hello(_Model):
    """Agent → control plane. `proof` signs `hello_payload(challenge, operator, cluster)` with the session key.

    `prices` is {model: {tier: DC per GPU-hour}}; `leases` are those the agent still holds; `location` is where the
    cluster stands, "latitude,longitude" in degrees, or "". `gateway` is "" where customers reach it through the relay
    alone; `fingerprint` is the SHA-256 (hexadecimal) of its certificate, or "" where it makes none of its own.
    """

    kind: Literal["hello"] = "hello"
    protocol: int
    version: str
    operator: str
    cluster: str
    session_key: bytes
    proof: bytes
    gateway: str
    nodes: list[NodeInfo]
    prices: dict[str, dict[str, int]]
    leases: list[LeaseRef] = []
    location: str = ""
    fingerprint: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


class Refuse(_Model):
    """Control plane → agent: the reason, then the connection is closed. `final`: do not try again as you are."""

    kind: Literal["refuse"] = "refuse"
    reason: str
    final: bool


class Nonce(_Model):
    """Control plane → agent, every second and with each grant and release: the newest nonce."""

    kind: Literal["nonce"] = "nonce"
    seq: int
    value: bytes


class GpuProcess(_Model):
    """A process that computes on a GPU."""

    pid: int
    memory_bytes: int | None


class GpuCondition(_Model):
    """How a GPU is beside its health; None for what the device does not tell."""

    uuid: str
    temperature_c: int | None = None
    power_mw: int | None = None
    power_limit_mw: int | None = None
    utilisation_pct: int | None = None
    memory_used_bytes: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvlinks: int = 0
    processes: list[GpuProcess] = Field(default=[], max_length=64)


class NodeCondition(_Model):
    """Of all GPUs of one node."""

    node: str
    gpus: list[GpuCondition] = Field(max_length=64)


class Heartbeat(_Model):
    """Agent → control plane, in answer to each nonce. `lost_nodes` are nodes whose node actor is gone.

    `conditions` are those that are new since the heartbeat before, every ten seconds or so.
    """

    kind: Literal["heartbeat"] = "heartbeat"
    nonce_seq: int
    lost_nodes: list[str] = []
    conditions: list[NodeCondition] = Field(default=[], max_length=4096)


class Inventory(_Model):
    """Agent → control plane: the whole inventory, whenever it changed."""

    kind: Literal["inventory"] = "inventory"
    nodes: list[NodeInfo]


class Grant(_Model):
    """Control plane → agent: open this lease on these GPUs. The run that opens it pays setup and first idle time.

    `env` is to be installed after OPEN; `network` is a word of `surroundings.NETWORKS`, with the `hosts` that it names
    or the `gang` whose other members the lease may reach.
    """

    kind: Literal["grant"] = "grant"
    lease: str
    generation: int
    session: str
    run: str
    node: str
    gpus: list[GpuShare]
    cpu_milli: int
    memory_bytes: int
    startup_timeout_ms: int
    notice_ms: int
    nonce: Nonce
    env: EnvSpec | None = None
    network: str = "none"
    hosts: list[str] = []
    gang: Gang | None = None


class Opened(_Model):
    """Agent → control plane: the node is ready to take code; the meter runs from here."""

    kind: Literal["opened"] = "opened"
    lease: str
    generation: int


class Release(_Model):
    """Control plane → agent: end this lease now, for this reason; CLOSE is signed and sent."""

    kind: Literal["release"] = "release"
    lease: str
    generation: int
    reason: str
    nonce: Nonce


class Notice(_Model):
    """Control plane → agent: this lease will end for this reason, `notice_ms` from now; the node ends it by itself.

    Sent again after a reconnect, with the time that is left; a deadline only ever moves nearer.
    """

    kind: Literal["notice"] = "notice"
    lease: str
    generation: int
    reason: str
    notice_ms: int = Field(ge=0)


class Ended(_Model):
    """Agent → control plane: the lease is over on the node (refused, released, or lost) for this reason."""

    kind: Literal["ended"] = "ended"
    lease: str
    generation: int
    reason: str
    detail: str = ""


class Receipts(_Model):
    """Agent → control plane: `SignedReceipt.to_bytes()` each, in order per lease."""

    kind: Literal["receipts"] = "receipts"
    receipts: list[bytes]


class Ack(_Model):
    """Control plane → agent: the last seq of this lease that is durable here; -1 for none. Send on from there."""

    kind: Literal["ack"] = "ack"
    lease: str
    generation: int
    seq: int


class RejectReceipt(_Model):
    """Control plane → agent: this receipt will never be accepted, and why; the lease is closed at the last good one."""

    kind: Literal["reject"] = "reject"
    lease: str
    generation: int
    seq: int
    reason: str


class Welcome(_Model):
    """Control plane → agent: `leases` are the active ones with the last durable seq; all others are over.

    `token_key` verifies lease tokens (Ed25519 public key); `blob_token` is the bearer for `/v1/agent/blobs`.
    """

    kind: Literal["welcome"] = "welcome"
    nonce: Nonce
    leases: list[Ack]
    token_key: bytes
    blob_token: str


class Work(_Model):
    """Control plane → agent: run this task in that lease; code and arguments are blobs (SHA-256).

    It is the one task of a detached run, or a rank's of a `gang`, whose leases may be others than at the grant.
    """

    kind: Literal["work"] = "work"
    lease: str
    generation: int
    run: str
    task: int
    attempt: int
    code: str
    args: str
    timeout_ms: int = 0
    gang: Gang | None = None


class StopWork(_Model):
    """Control plane → agent: another rank of the gang failed; end this attempt of this rank, its lease stays."""

    kind: Literal["stop_work"] = "stop_work"
    lease: str
    generation: int
    run: str
    task: int
    attempt: int


class WorkDone(_Model):
    """Agent → control plane: how a detached task ended. `result` is the blob of its result frame, or empty."""

    kind: Literal["work_done"] = "work_done"
    lease: str
    generation: int
    run: str
    task: int
    attempt: int
    reason: str
    message: str = ""
    exit_code: int | None = None
    result: str = ""


class LogLine(_Model):
    """One line of a task's output. `stream` is 1 (stdout) or 2 (stderr); `at_ms` since the lease's OPEN."""

    task: int
    stream: int
    at_ms: int
    text: str


class Logs(_Model):
    """Agent → control plane: lines to keep with the run."""

    kind: Literal["logs"] = "logs"
    run: str
    lines: list[LogLine]


class Target(_Model):
    """A place to measure: a cluster, by the address of its gateway."""

    place: str
    gateway: str


class Measure(_Model):
    """Control plane → agent: measure the round trips to these gateways and to the control plane, once."""

    kind: Literal["measure"] = "measure"
    targets: list[Target]


class Rtt(_Model):
    """The least of a few round trips to a place, in microseconds."""

    place: str
    rtt_us: int = Field(ge=1, le=MAX_RTT_US)


class Rtts(_Model):
    """Agent → control plane: what was measured; places that did not answer are left out."""

    kind: Literal["rtts"] = "rtts"
    rtts: list[Rtt] = Field(max_length=256)


class Relay(_Model):
    """Control plane → agent: a customer waits at the relay; dial `url` with `secret` and join it to your gateway.

    `url` is relative to the agent's own control plane where that control plane has no public address of its own.
    """

    kind: Literal["relay"] = "relay"
    url: str
    secret: str


class ChallengePlan(_Model):
    """`fabric.wire.challenge.Plan`, without the times, which are not the prover's business."""

    edge: int
    blocks: int


class Prove(_Model):
    """Control plane → agent: one step of a challenge of one GPU (`fabric.wire.challenge`), answered by `proved`.

    `prepare` carries the plan and is answered when the memory is taken, `fill` both seeds, `digest` the key, `open` the
    indices of the blocks to show.
    """

    kind: Literal["prove"] = "prove"
    challenge: str
    node: str
    gpu: str
    step: Literal["prepare", "fill", "digest", "open"]
    plan: ChallengePlan
    seed: bytes = b""
    shared: bytes = b""
    key: bytes = b""
    indices: list[int] = []


class BlockOpening(_Model):
    """`fabric.wire.challenge.Opening`."""

    index: int
    block: bytes
    digests: bytes
    path: list[bytes]
    keyed: bytes
    keyed_path: list[bytes]


class Proved(_Model):
    """Agent → control plane: the answer to one step, or in `error` why there is none."""

    kind: Literal["proved"] = "proved"
    challenge: str
    step: Literal["prepare", "fill", "digest", "open"]
    error: str = Field(default="", max_length=1000)
    root: bytes = b""
    openings: list[BlockOpening] = Field(default=[], max_length=64)


Message = Annotated[
    Challenge
    | Hello
    | Refuse
    | Nonce
    | Heartbeat
    | Inventory
    | Grant
    | Opened
    | Release
    | Notice
    | Ended
    | Receipts
    | Ack
    | RejectReceipt
    | Welcome
    | Work
    | StopWork
    | WorkDone
    | Logs
    | Measure
    | Rtts
    | Relay
    | Prove
    | Proved,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Any] = TypeAdapter(Message)


def encode(message: BaseModel) -> bytes:
    """One message as it travels."""
    return cast("bytes", msgpack.packb(message.model_dump(), use_bin_type=True))


def decode(data: bytes) -> Any:
    """The message in `data`.

    Raises:
        LinkError: too long, not msgpack, of an unknown kind, or with fields that do not belong.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise LinkError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
    try:
        return _ADAPTER.validate_python(msgpack.unpackb(data, raw=False, strict_map_key=True))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LinkError(f"not a message of protocol {PROTOCOL}: {where or 'message'}: {first['msg']}") from None
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise LinkError(f"not a message: {error}") from None


def hello_payload(challenge: bytes, operator: str, cluster: str) -> bytes:
    """What an agent signs to prove that it holds the session key."""
    return b"\0".join((b"fabric-hello-v1", challenge, operator.encode(), cluster.encode()))
