"""The control plane's own audit checks beside the ledger's: receipts, leases, holds, states, results.

Each reads rows only and yields what breaks an invariant, so that the first finding names the first bad row.
"""

from collections.abc import Iterator
from itertools import groupby

from sqlalchemy import func, select
from sqlmodel import Session, col

from api.acceptance import MINIMUM_MS
from api.evictions import HOLDS, hold_of
from api.notice_tables import EvictionRow
from api.plane import Plane
from api.pool_audit import pool_checks
from api.slot_audit import SLOT_CHECKS
from api.tables import (
    AttemptRow,
    GpuRow,
    IdempotencyRow,
    LeaseGpuRow,
    LeaseRow,
    ReceiptRow,
    RunRow,
    SessionKeyRow,
    TaskRow,
)
from fabric.wire.machines import ACTIVE_LEASE_STATES, RUN_EDGES, LeaseState, RunState, TaskState, is_terminal
from fabric.wire.receipts import GENESIS_HASH, ReceiptError, SignedReceipt
from ledger.audit import Check, CheckResult, Finding, run_audit
from ledger.chain.checks import CHAIN_CHECKS
from ledger.checks import LEDGER_CHECKS
from ledger.leaves import gpu_id_hex
from ledger.tables import EntryRow, HoldRow, MeterRow, UsageRow

_ACTIVE = [state.value for state in ACTIVE_LEASE_STATES]


def run(plane: Plane, session: Session) -> tuple[CheckResult, ...]:
    """All checks: the ledger's, those of what the chain said, ours. Writes nothing; takes minutes on large ones."""
    checks = (*LEDGER_CHECKS, *CHAIN_CHECKS, *API_CHECKS, *pool_checks(plane), *SLOT_CHECKS)
    return run_audit(session, checks, now_ms=plane.now_ms()).results


def receipts_are_a_chain(session: Session) -> Iterator[Finding]:
    """Numbers without a gap from 0, each naming the hash of the one before, signed by a key of the operator."""
    keys = {row.public_key: row.operator for row in session.scalars(select(SessionKeyRow))}
    operators = {row.id: row.operator for row in session.scalars(select(LeaseRow))}
    order = (col(ReceiptRow.lease), col(ReceiptRow.generation), col(ReceiptRow.seq))
    rows = session.scalars(select(ReceiptRow).order_by(*order).execution_options(yield_per=1000))
    for _, chain in groupby(rows, key=lambda row: (row.lease, row.generation)):
        previous = GENESIS_HASH
        for number, row in enumerate(chain):
            problem = _link_problem(row, number, previous) or _signature_problem(row, keys, operators)
            if problem:
                yield Finding("receipts", f"{row.lease}/{row.generation}/{row.seq}", problem)
            previous = row.hash


def bills_are_bounded(session: Session) -> Iterator[Finding]:
    """Billed is at most the operator's claim and the control plane's window; but the lease's least when it is over."""
    rows = session.execute(
        select(LeaseGpuRow, LeaseRow.least_ms, LeaseRow.state)  # type: ignore[call-overload]
        .join(LeaseRow, col(LeaseRow.id) == col(LeaseGpuRow.lease))
        .order_by(col(LeaseGpuRow.lease), col(LeaseGpuRow.gpu))
    )
    for row, least, state in rows:
        floor = MINIMUM_MS if state in _ACTIVE else max(least, MINIMUM_MS)
        bound = max(_used_ms(row), floor)
        if row.billed_ms > bound:
            yield Finding(
                "lease_gpus", f"{row.lease}/{row.gpu}", f"{row.billed_ms} ms are billed, at most {bound} may be"
            )


def _used_ms(row: LeaseGpuRow) -> int:
    return min(row.claimed_ms, row.window_ms)


def gpus_are_never_oversold(session: Session) -> Iterator[Finding]:
    """What active leases hold of a GPU is what its row says, and never more than all of it."""
    held = (
        select(LeaseGpuRow.gpu, func.sum(LeaseGpuRow.share_milli))  # type: ignore[call-overload]
        .join(LeaseRow, col(LeaseRow.id) == col(LeaseGpuRow.lease))
        .where(col(LeaseRow.state).in_(_ACTIVE))
        .group_by(LeaseGpuRow.gpu)
    )
    sums = {gpu: int(total) for gpu, total in session.execute(held)}
    for row in session.scalars(select(GpuRow).order_by(col(GpuRow.uuid))):
        total = sums.get(row.uuid, 0)
        if total != row.used_milli or total > 1000:
            yield Finding(
                "gpus", row.id, f"active leases hold {total} milli, the row says {row.used_milli}, 1000 is all"
            )


def leases_do_not_overlap_in_time(session: Session) -> Iterator[Finding]:
    """Billed time of a GPU, times its share, fits between the first grant and the last end of its leases.

    What a lease that evicted is billed beyond its time is nobody's use of the GPU and does not count.
    """
    rows = session.execute(
        select(LeaseGpuRow, LeaseRow)
        .join(LeaseRow, col(LeaseRow.id) == col(LeaseGpuRow.lease))
        .order_by(col(LeaseGpuRow.gpu), col(LeaseRow.granted_ms))
    )
    for gpu, parts in groupby(rows, key=lambda pair: pair[0].gpu):
        leases = list(parts)
        billed = sum(min(part.billed_ms, max(_used_ms(part), MINIMUM_MS)) * part.share_milli for part, _ in leases)
        start = min(lease.granted_ms for _, lease in leases)
        end = max(lease.closed_ms or lease.granted_ms + part.window_ms + MINIMUM_MS for part, lease in leases)
        slack = MINIMUM_MS * len(leases)
        if billed > (end - start + slack) * 1000:
            public = gpu_id_hex(gpu)
            yield Finding("lease_gpus", public, f"{billed // 1000} GPU-ms are billed in {end - start} ms")


def meters_agree_with_the_ledger(session: Session) -> Iterator[Finding]:
    """What a lease's rows say was charged is what the ledger's standing usage says."""
    charged: dict[tuple[str, str], int] = {}
    rows = session.execute(
        select(MeterRow.lease_id, MeterRow.gpu_id, func.sum(UsageRow.dc))  # type: ignore[call-overload]
        .join(UsageRow, col(UsageRow.meter_id) == col(MeterRow.id))
        .where(col(UsageRow.entry_id).not_in(_undone()))
        .group_by(MeterRow.lease_id, MeterRow.gpu_id)
    )
    for lease, gpu, dc in rows:
        charged[lease, gpu] = int(dc)
    for row in session.scalars(select(LeaseGpuRow).order_by(col(LeaseGpuRow.lease), col(LeaseGpuRow.gpu))):
        booked = charged.get((row.lease, gpu_id_hex(row.gpu)), 0)
        if booked != row.charged_dc:
            yield Finding(
                "lease_gpus", f"{row.lease}/{row.gpu}", f"{row.charged_dc} DC charged, the ledger booked {booked}"
            )


def leases_have_holds(session: Session) -> Iterator[Finding]:
    """Every lease has a hold; it is open while the lease is active and ended when it is over, as an eviction's is."""
    rows = session.execute(
        select(LeaseRow, HoldRow)
        .join(HoldRow, col(HoldRow.lease_id) == col(LeaseRow.id), isouter=True)
        .order_by(col(LeaseRow.granted_ms), col(LeaseRow.id))
    )
    for lease, hold in rows:
        active = LeaseState(lease.state) in ACTIVE_LEASE_STATES
        if hold is None:
            yield Finding("leases", lease.id, "it has no hold")
        elif active and hold.closed_ms is not None:
            yield Finding("leases", lease.id, "it is active and its hold has ended")
        elif not active and hold.closed_ms is None:
            yield Finding("leases", lease.id, f"it is {lease.state} and its hold is open")
    evicting = {hold_of(row) for row in session.scalars(select(EvictionRow))}
    kept = select(HoldRow).where(col(HoldRow.lease_id).startswith(HOLDS), col(HoldRow.closed_ms).is_(None))
    for hold in session.scalars(kept):
        if hold.lease_id not in evicting:
            yield Finding("evictions", hold.lease_id, "nobody waits for it any more and its hold is open")


def old_generations_bill_nothing(session: Session) -> Iterator[Finding]:
    """No receipt of a later generation than its lease, and none accepted after its lease was lost."""
    rows = session.execute(
        select(ReceiptRow.lease, ReceiptRow.generation, ReceiptRow.seq, LeaseRow.generation, LeaseRow.closed_ms)  # type: ignore[call-overload]
        .join(LeaseRow, col(LeaseRow.id) == col(ReceiptRow.lease))
        .where(
            (col(ReceiptRow.generation) > col(LeaseRow.generation))
            | (
                (col(ReceiptRow.generation) < col(LeaseRow.generation))
                & (col(ReceiptRow.accepted_ms) > col(LeaseRow.closed_ms))
            )
        )
        .order_by(col(ReceiptRow.lease), col(ReceiptRow.seq))
    )
    for lease, generation, seq, current, _ in rows:
        yield Finding("receipts", f"{lease}/{generation}/{seq}", f"the lease is at generation {current}")


def states_are_consistent(session: Session) -> Iterator[Finding]:
    """A row's times are those that its state implies."""
    for row in session.scalars(select(RunRow).order_by(col(RunRow.created_ms), col(RunRow.id))):
        if is_terminal(RUN_EDGES, RunState(row.state)) != (row.ended_ms is not None):
            yield Finding("runs", row.id, f"it is {row.state} and its end is {row.ended_ms}")
    for lease in session.scalars(select(LeaseRow).order_by(col(LeaseRow.granted_ms), col(LeaseRow.id))):
        state = LeaseState(lease.state)
        if (state not in ACTIVE_LEASE_STATES) != (lease.closed_ms is not None):
            yield Finding("leases", lease.id, f"it is {state} and its end is {lease.closed_ms}")
    ended = select(AttemptRow).where(
        col(AttemptRow.ended_ms).is_(None) != (col(AttemptRow.state) == TaskState.SENT.value)
    )
    for attempt in session.scalars(ended):
        yield Finding(
            "attempts", f"{attempt.run}/{attempt.task}/{attempt.attempt}", f"{attempt.state} at {attempt.ended_ms}"
        )


def tasks_have_one_result(session: Session) -> Iterator[Finding]:
    """No task has two accepted results."""
    twice = (
        select(TaskRow.run, TaskRow.task, func.count())  # type: ignore[call-overload]
        .where(col(TaskRow.accepted))
        .group_by(TaskRow.run, TaskRow.task)
        .having(func.count() > 1)
        .order_by(TaskRow.run, TaskRow.task)
    )
    for name, task, count in session.execute(twice):
        yield Finding("tasks", f"{name}/{task}", f"it has {count} accepted results")


def keys_have_one_effect(session: Session) -> Iterator[Finding]:
    """A key that was answered names the run that it made."""
    for row in session.scalars(select(IdempotencyRow).order_by(col(IdempotencyRow.created_ms))):
        if row.answer is not None and session.get(RunRow, row.answer.get("id")) is None:
            yield Finding("idempotency_keys", f"{row.customer}/{row.key}", "its answer names a run that is not there")


API_CHECKS = (
    Check("one effect per idempotency key", 5, keys_have_one_effect),
    Check("receipts are in order, chained and signed", 6, receipts_are_a_chain),
    Check("billed within claim and window", 7, bills_are_bounded),
    Check("GPUs are never oversold", 8, gpus_are_never_oversold),
    Check("billed time fits the time there was", 9, leases_do_not_overlap_in_time),
    Check("leases charge what the ledger booked", 10, meters_agree_with_the_ledger),
    Check("no lease without a hold, every hold ends", 17, leases_have_holds),
    Check("an old generation bills nothing", 18, old_generations_bill_nothing),
    Check("states and times agree", 19, states_are_consistent),
    Check("one accepted result per task", 20, tasks_have_one_result),
)


def _link_problem(row: ReceiptRow, number: int, previous: bytes) -> str:
    if row.seq != number:
        return f"receipt {number} is missing"
    if row.previous != previous:
        return "it does not name the hash of the one before"
    return ""


def _signature_problem(row: ReceiptRow, keys: dict[str, str], operators: dict[str, str]) -> str:
    if keys.get(row.session_key) != operators.get(row.lease):
        return "it is signed by a key that is not its operator's"
    try:
        receipt = SignedReceipt.from_bytes(row.signed).verify(bytes.fromhex(row.session_key))
    except ReceiptError as error:
        return str(error)
    stated = (receipt.lease, receipt.generation, receipt.seq, receipt.hash, receipt.previous)
    return (
        "" if stated == (row.lease, row.generation, row.seq, row.hash, row.previous) else "its row says something else"
    )


def _undone():  # noqa: ANN202 - a subquery; its type is the library's affair
    return select(EntryRow.reverses_id).where(col(EntryRow.reverses_id).is_not(None))  # type: ignore[call-overload]
