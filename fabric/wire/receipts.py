r"""Receipts: an operator's signed, chained statements of how long a lease used its GPUs.

A lease's receipts are numbered from 0 (OPEN), each names the hash of the one before it and states *cumulative* GPU
time, so a receipt that arrives twice, late or out of order can change no bill. The tasks that finished since the
previous receipt travel beside the signed body, bound to it by the root of a Merkle tree.

A receipt names only the runs whose part of the lease changed since the one before, each cumulatively, and the rest as
one sum: a lease that serves thousands of runs has small receipts.

Canonical form: msgpack of a fixed list of fields; the signature (Ed25519, the agent's session key) covers
`b"fabric-receipt-v1\0"` and those bytes, the hash is Keccak-256 of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, cast

import msgpack
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from fabric.wire import merkle
from fabric.wire.hashing import keccak256

MAX_TASKS = 4096
"""Tasks in one receipt; more go into the next one."""

MAX_NUMBER = 2**44
"""Of any number in a receipt: 550 years in ms. Larger ones add up to more than a database's integer holds."""

MAX_TASK, MAX_ATTEMPT = 10**9, 2**31 - 1
"""What a task may be numbered with at most, and its attempt; the records of finished tasks hold no more."""

GENESIS_HASH = bytes(32)
"""`previous` of the receipt with seq 0."""

_DOMAIN = b"fabric-receipt-v1\0"
_TASK_TAG = merkle.tag("fabric.task.v1")


class ReceiptError(ValueError):
    """A receipt that cannot be what it claims: malformed, wrongly signed, or with another task list."""


class ReceiptKind(StrEnum):
    OPEN = "OPEN"
    TICK = "TICK"
    CLOSE = "CLOSE"


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One finished task as the node's meter saw it.

    Attributes:
        run: the run's id.
        task: the task's index in its run, 0 or more.
        attempt: 1 for the first.
        gpus: UUIDs of the GPUs it had.
        start_ms: since the lease's OPEN, by the node's monotonic clock.
        end_ms: likewise, not before `start_ms`.
        gpu_ms: its share of the lease's GPU time, all GPUs together; the lines of a lease add up exactly.
        energy_mj: from NVML, shown and never billed; 0 where the device does not count it.
        reason: how the attempt ended, a value of `Reason`.
        result_digest: SHA-256 of the encoded result, 32 bytes; empty when there is none.
        counters: optional named counts such as tokens, never billed.
    """

    run: str
    task: int
    attempt: int
    gpus: tuple[str, ...]
    start_ms: int
    end_ms: int
    gpu_ms: int
    energy_mj: int
    reason: str
    result_digest: bytes = b""
    counters: tuple[tuple[str, int], ...] = ()

    def to_list(self) -> list[Any]:
        return [
            self.run,
            self.task,
            self.attempt,
            list(self.gpus),
            self.start_ms,
            self.end_ms,
            self.gpu_ms,
            self.energy_mj,
            self.reason,
            self.result_digest,
            [list(pair) for pair in self.counters],
        ]

    @classmethod
    def from_list(cls, fields: Sequence[Any]) -> "TaskLine":
        """Raises ReceiptError when a field is missing, of another type, or out of range."""
        _check_types(fields, _TASK_TYPES, "a task line")
        for gpu in fields[3]:
            _check_types((gpu,), _GPU_NAME, "a task line's GPU")
        for pair in fields[10]:
            _check_types(pair, _COUNTER_TYPES, "a task line's counter")
        if not (0 <= fields[4] <= fields[5] and fields[1] >= 0 and fields[2] >= 1 and fields[6] >= 0):
            raise ReceiptError(f"a task line has impossible numbers: {fields[1:8]}")
        run, task, attempt, gpus, start, end, gpu_ms, energy, reason, digest, counters = fields
        pairs = tuple((name, count) for name, count in counters)
        return cls(run, task, attempt, tuple(gpus), start, end, gpu_ms, energy, reason, digest, pairs)

    def leaf(self) -> bytes:
        """The line's leaf in its receipt's task tree."""
        return merkle.leaf(_TASK_TAG, keccak256(_packb(self.to_list())))


@dataclass(frozen=True, slots=True)
class GpuLine:
    """Cumulative use of one GPU by the lease, in ms of wall time since OPEN (the share is applied by the charge).

    `gpu_ms` = `setup_ms` + time of tasks + idle, exactly; `setup_ms` is part of it.
    """

    uuid: str
    share_milli: int
    gpu_ms: int
    setup_ms: int = 0
    utilised_ms: int = 0
    energy_mj: int = 0

    def to_list(self) -> list[Any]:
        return [self.uuid, self.share_milli, self.gpu_ms, self.setup_ms, self.utilised_ms, self.energy_mj]

    @classmethod
    def from_list(cls, fields: Sequence[Any]) -> "GpuLine":
        """Raises ReceiptError when a field is missing, of another type, or out of range."""
        _check_types(fields, _GPU_TYPES, "a GPU line")
        if any(n < 0 for n in fields[2:]) or not 1 <= fields[1] <= 1000 or fields[3] > fields[2]:
            raise ReceiptError(f"a GPU line has impossible numbers: {fields}")
        return cls(*fields)


@dataclass(frozen=True, slots=True)
class RunLine:
    """How much of the lease's cumulative GPU time, all GPUs together, belongs to one run, in ms.

    At any moment the time belongs to the run whose task is running, else to the run that used the lease last. The
    `gpu_ms` of all runs add up to that of all GPUs; `idle_ms` and `setup_ms` are parts of it.
    """

    run: str
    gpu_ms: int
    idle_ms: int = 0
    setup_ms: int = 0

    def to_list(self) -> list[Any]:
        return [self.run, self.gpu_ms, self.idle_ms, self.setup_ms]

    @classmethod
    def from_list(cls, fields: Sequence[Any]) -> "RunLine":
        """Raises ReceiptError when a field is missing, of another type, or out of range."""
        _check_types(fields, _RUN_TYPES, "a run line")
        if min(fields[1:]) < 0 or fields[2] + fields[3] > fields[1]:
            raise ReceiptError(f"a run line has impossible numbers: {fields}")
        return cls(*fields)


@dataclass(frozen=True)
class Receipt:
    """The signed body. `nonce_seq` and `nonce` echo the last nonce the agent had from the control plane.

    `others_ms` is the cumulative GPU time, all GPUs together, of the runs that are not in `runs`.
    """

    fabric_id: str
    operator: str
    lease: str
    generation: int
    seq: int
    kind: ReceiptKind
    nonce_seq: int
    nonce: bytes
    previous: bytes
    gpus: tuple[GpuLine, ...]
    runs: tuple[RunLine, ...]
    task_count: int
    task_root: bytes
    reason: str = ""
    simulated: bool = False
    others_ms: int = 0

    @cached_property
    def body(self) -> bytes:
        """The canonical bytes."""
        others = [self.others_ms] if self.others_ms else []
        return _packb(
            [
                2 if others else 1,
                self.fabric_id,
                self.operator,
                self.lease,
                self.generation,
                self.seq,
                str(self.kind),
                self.nonce_seq,
                self.nonce,
                self.previous,
                [line.to_list() for line in self.gpus],
                [line.to_list() for line in self.runs],
                self.task_count,
                self.task_root,
                self.reason,
                self.simulated,
                *others,
            ]
        )

    @cached_property
    def hash(self) -> bytes:
        return keccak256(self.body)

    @classmethod
    def from_body(cls, body: bytes) -> "Receipt":
        """Raises ReceiptError unless `body` is exactly the canonical form of a receipt."""
        fields = _unpackb(body)
        version = fields[0] if isinstance(fields, list) and fields else None
        types = _RECEIPT_TYPES.get(version) if type(version) is int else None
        if types is None:
            raise ReceiptError(f"a receipt of version {version!r:.20}; versions 1 and 2 are understood")
        _check_types(fields, types, "a receipt")
        try:
            kind = ReceiptKind(fields[6])
        except ValueError:
            raise ReceiptError(f"a receipt of kind {fields[6]!r}; OPEN, TICK and CLOSE exist") from None
        _, fabric_id, operator, lease, generation, seq, _, nonce_seq, nonce, previous, lines, runs, *rest = fields
        gpus = tuple(map(GpuLine.from_list, lines))
        by_run = tuple(map(RunLine.from_list, runs))
        others_ms = rest[4] if len(rest) > 4 else 0
        if sum(line.gpu_ms for line in gpus) != others_ms + sum(line.gpu_ms for line in by_run) or others_ms < 0:
            raise ReceiptError("a receipt's GPU time by run does not add up to its GPU time by GPU")
        receipt = cls(
            fabric_id, operator, lease, generation, seq, kind, nonce_seq, nonce, previous, gpus, by_run, *rest
        )
        if receipt.body != body or receipt.seq < 0 or receipt.generation < 1 or not receipt.gpus:
            raise ReceiptError("a receipt's bytes are not its canonical form")
        return receipt


@dataclass(frozen=True)
class SignedReceipt:
    """A receipt as it travels: body, signature, and the tasks its root stands for."""

    body: bytes
    signature: bytes
    tasks: tuple[TaskLine, ...] = field(default=())

    def to_bytes(self) -> bytes:
        return _packb([self.body, self.signature, [line.to_list() for line in self.tasks]])

    @classmethod
    def from_bytes(cls, data: bytes) -> "SignedReceipt":
        """Raises ReceiptError on anything malformed; checks no signature."""
        fields = _unpackb(data)
        _check_types(fields, (bytes, bytes, list), "a signed receipt")
        if len(fields[2]) > MAX_TASKS:
            raise ReceiptError(f"{len(fields[2])} tasks in one receipt; at most {MAX_TASKS} are allowed")
        return cls(fields[0], fields[1], tuple(map(TaskLine.from_list, fields[2])))

    @cached_property
    def receipt(self) -> Receipt:
        return Receipt.from_body(self.body)

    def verify(self, session_key: bytes) -> Receipt:
        """The receipt, if `session_key` (Ed25519 public key, 32 bytes) signed it and the tasks are the ones it binds.

        Raises:
            ReceiptError: another key, another body, or another task list.
        """
        receipt = self.verify_body(session_key)
        if len(self.tasks) != receipt.task_count or task_root(self.tasks) != receipt.task_root:
            raise ReceiptError(f"the tasks beside receipt {receipt.seq} of {receipt.lease} are not the ones it signs")
        return receipt

    def verify_body(self, session_key: bytes) -> Receipt:
        """The signed body alone, whatever tasks are beside it.

        Raises:
            ReceiptError: another key, or another body.
        """
        try:
            VerifyKey(session_key).verify(_DOMAIN + self.body, self.signature)
        except (BadSignatureError, ValueError):
            raise ReceiptError("a receipt's signature is not by the operator's session key") from None
        return self.receipt


def sign(receipt: Receipt, tasks: Sequence[TaskLine], key: SigningKey) -> SignedReceipt:
    """Sign a receipt; its `task_count` and `task_root` must be those of `tasks`."""
    assert receipt.task_count == len(tasks) <= MAX_TASKS
    return SignedReceipt(receipt.body, key.sign(_DOMAIN + receipt.body).signature, tuple(tasks))


def named_in(data: bytes) -> tuple[str, int, int] | None:
    """Lease, generation and number of what is no receipt but almost one, so that it can be refused; None without them.

    Text that is none has U+FFFD in it.
    """
    try:
        body = msgpack.unpackb(data, raw=False, unicode_errors="replace")[0]
        _, _, _, lease, generation, seq, *_ = msgpack.unpackb(body, raw=False, unicode_errors="replace")
    except (ValueError, TypeError, LookupError, RecursionError, msgpack.exceptions.UnpackException):
        return None
    fine = type(lease) is str and type(generation) is int and type(seq) is int
    return (lease, generation, seq) if fine else None


def task_root(tasks: Sequence[TaskLine]) -> bytes:
    """Root of the task tree, in the order given; `merkle.EMPTY_ROOT` for none."""
    return merkle.root([line.leaf() for line in tasks])


_TASK_TYPES = (str, int, int, list, int, int, int, int, str, bytes, list)
_GPU_NAME = (str,)
_COUNTER_TYPES = (str, int)
_GPU_TYPES = (str, int, int, int, int, int)
_RUN_TYPES = (str, int, int, int)
_FIRST_TYPES = (int, str, str, str, int, int, str, int, bytes, bytes, list, list, int, bytes, str, bool)
_RECEIPT_TYPES: dict[int, tuple[type, ...]] = {1: _FIRST_TYPES, 2: (*_FIRST_TYPES, int)}
"""By version. The first has no `others_ms`: it is the form of a receipt that names all runs with a part."""


def _check_types(fields: Any, types: tuple[type, ...], what: str) -> None:
    if not isinstance(fields, (list, tuple)) or len(fields) != len(types):
        raise ReceiptError(f"{what} is not a list of {len(types)} fields")
    for at, (value, expected) in enumerate(zip(fields, types, strict=True)):
        if type(value) is not expected:
            raise ReceiptError(f"field {at} of {what} is a {type(value).__name__}, not a {expected.__name__}")
        if expected is int and not -MAX_NUMBER <= value <= MAX_NUMBER:
            raise ReceiptError(f"field {at} of {what} is {value}; numbers are at most {MAX_NUMBER}")


def _packb(value: Any) -> bytes:
    return cast("bytes", msgpack.packb(value, use_bin_type=True))


def _unpackb(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, use_list=True)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ReceiptError(f"not a receipt: {error}") from None
