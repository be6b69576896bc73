"""Whether a receipt is accepted and how much of its claim is billed: values in, answers out.

It does not check signatures (`SignedReceipt.verify` does) and books nothing (`api.metering` does).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from fabric.wire.ids import is_name
from fabric.wire.reasons import Reason
from fabric.wire.receipts import (
    GENESIS_HASH,
    MAX_ATTEMPT,
    MAX_TASK,
    GpuLine,
    Receipt,
    ReceiptKind,
    TaskLine,
)

TOO_LATE_MS = 600_000
"""A receipt older than this by its nonce is refused, if the control plane was up that long."""

GRACE_AFTER_RELEASE_MS = 5_000
"""The most that is billed after a release or cancel."""

MINIMUM_MS = 1_000
"""The least that an opened lease costs, per GPU."""

EVICTING_LEAST_MS = 600_000
"""The least that a lease costs, per GPU, for which spot leases had to leave, if its customer ends it."""

NOT_THE_CUSTOMERS = frozenset(
    {
        Reason.OPERATOR_DRAIN,
        Reason.OPERATOR_LOST,
        Reason.GPU_UNHEALTHY,
        Reason.INTERNAL_ERROR,
        Reason.PREEMPTED,
        Reason.SLOT_ENDED,
        Reason.STARTUP_TIMEOUT,
        Reason.VERIFICATION_FAILED,
    }
)
"""Ends that no customer chose: a lease that evicts then costs no more than any other."""

_AGENTS_WORDS = NOT_THE_CUSTOMERS | {Reason.DEPS_INSTALL}
_PROCESS_ENDS = frozenset({Reason.CRASHED, Reason.OOM, Reason.TIMEOUT, Reason.USER_ERROR})


class Verdict(StrEnum):
    ACCEPT = "accept"
    DUPLICATE = "duplicate"  # the same body again: acknowledge, change nothing
    EARLY = "early"  # a gap before it: answer with the last seq, the agent sends from there
    REJECT = "reject"  # never acceptable
    EQUIVOCATION = "equivocation"  # another body for an accepted number: rejected and kept as proof


@dataclass(frozen=True, slots=True)
class Chain:
    """What is accepted of a lease so far. `shares` are (UUID, milli) of its GPUs, `simulated` whether they are."""

    fabric_id: str
    operator: str
    lease: str
    generation: int
    last_seq: int
    last_hash: bytes
    closed: bool
    shares: frozenset[tuple[str, int]]
    simulated: bool
    gpu_ms: dict[str, int]


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    reason: str = ""


def judge(chain: Chain, receipt: Receipt, accepted_hash: bytes | None, age_ms: int | None) -> Judgement:
    """Whether `receipt` is the next one of `chain`.

    Args:
        chain: as it stands.
        receipt: with a verified signature.
        accepted_hash: hash of the accepted receipt with the same number, None when there is none.
        age_ms: how long the control plane was up since its nonce was issued; None for a nonce it never issued here.
    """
    if receipt.generation != chain.generation:
        return _no(f"generation {receipt.generation} of this lease is fenced; it is at {chain.generation}")
    if accepted_hash is not None:
        same = accepted_hash == receipt.hash
        return Judgement(Verdict.DUPLICATE) if same else Judgement(Verdict.EQUIVOCATION, "another body for this number")
    if chain.closed:
        return _no("the lease is closed")
    if receipt.seq > chain.last_seq + 1:
        return Judgement(Verdict.EARLY)
    problem = _identity(chain, receipt) or _link(chain, receipt) or _numbers(chain, receipt) or _age(age_ms)
    return _no(problem) if problem else Judgement(Verdict.ACCEPT)


def unfit(receipt: Receipt, tasks: Sequence[TaskLine]) -> str:
    """What in it no record can hold, and no honest agent writes; "" for nothing."""
    for run in {line.run for line in (*receipt.runs, *tasks)}:
        if not is_name(run):
            return f"{run!r:.100} is not the id of a run"
    for line in tasks:
        if line.task > MAX_TASK or line.attempt > MAX_ATTEMPT:
            return f"task {line.task}, attempt {line.attempt} of {line.run}: there are no such numbers"
        if "\0" in line.reason or any("\0" in gpu for gpu in line.gpus):
            return f"a text of task {line.task} of {line.run} holds the character NUL"
    return ""


def window_ms(
    *,
    start_ms: int,
    next_nonce_ms: int | None,
    arrival_ms: int,
    release_ms: int | None,
) -> int:
    """The control plane's own upper bound of a lease's time, by its own clock alone.

    Args:
        start_ms: when the nonce in OPEN was issued, not before the grant.
        next_nonce_ms: when the nonce after the last one echoed was issued; None when there is none yet.
        arrival_ms: of this receipt; stands in for the next nonce.
        release_ms: when a release or cancel was received; None when there was none.
    """
    end = arrival_ms if next_nonce_ms is None else min(next_nonce_ms, arrival_ms)
    if release_ms is not None:
        end = min(end, release_ms + GRACE_AFTER_RELEASE_MS)
    return max(0, end - start_ms)


def billable_ms(claim_ms: int, window: int, billed_ms: int, kind: ReceiptKind) -> int:
    """Cumulative ms to bill: the smaller of claim and window, never less than before, at CLOSE at least a second."""
    floor = MINIMUM_MS if kind is ReceiptKind.CLOSE else 0
    return max(min(claim_ms, window), billed_ms, floor)


def least_ms(least: int, kind: ReceiptKind, reason: str) -> int:
    """The least to bill with this receipt, whatever was used: at the CLOSE of a lease that its customer ended.

    Args:
        least: what the lease costs at least, per GPU; ten minutes for one that evicts.
        kind: of the receipt.
        reason: why the lease ended.
    """
    return least if kind is ReceiptKind.CLOSE and reason not in _AGENTS_WORDS else 0


def agents_word(reason: str) -> Reason:
    """What an agent's word counts as for the end of a lease that nobody here decided and no notice announced.

    That a customer ended it, or what they ran, is not for an agent to say: it would strand the run, or bill the least.
    """
    return Reason(reason) if reason in _AGENTS_WORDS else Reason.INTERNAL_ERROR


def closing_word(reason: str) -> Reason:
    """The same for its CLOSE receipt, which may also say what became of the process there."""
    return Reason(reason) if reason in _PROCESS_ENDS else agents_word(reason)


def _no(reason: str) -> Judgement:
    return Judgement(Verdict.REJECT, reason)


def _identity(chain: Chain, receipt: Receipt) -> str:
    if receipt.fabric_id != chain.fabric_id:
        return f"it is for fabric {receipt.fabric_id}, this is {chain.fabric_id}"
    if receipt.operator != chain.operator:
        return f"it is signed for operator {receipt.operator}, the lease is {chain.operator}'s"
    if receipt.simulated != chain.simulated:
        return "its simulated flag is not that of the lease's GPUs"
    return ""


def _link(chain: Chain, receipt: Receipt) -> str:
    if receipt.previous != (chain.last_hash or GENESIS_HASH):
        return "it does not name the hash of the receipt before it"
    if (receipt.seq == 0) != (receipt.kind is ReceiptKind.OPEN):
        return f"receipt {receipt.seq} is a {receipt.kind}; OPEN is the first and only the first"
    return ""


def _numbers(chain: Chain, receipt: Receipt) -> str:
    if _shares(receipt.gpus) != chain.shares or len(receipt.gpus) != len(chain.shares):
        return "its GPUs and shares are not the lease's"
    for line in receipt.gpus:
        if line.gpu_ms < chain.gpu_ms.get(line.uuid, 0):
            return f"its cumulative time of GPU {line.uuid} went back"
    return ""


def _age(age_ms: int | None) -> str:
    if age_ms is None:
        return "its nonce was never issued to this cluster"
    if age_ms > TOO_LATE_MS:
        return f"it comes {age_ms // 1000} s after its nonce; at most {TOO_LATE_MS // 1000} s are allowed"
    return ""


def _shares(lines: Sequence[GpuLine]) -> frozenset[tuple[str, int]]:
    return frozenset((line.uuid, line.share_milli) for line in lines)
