"""One transaction's worth of receipts: judged in order, booked together, then the states that follow.

Rows are read once and written once per batch, whatever the number of receipts; what is decided is `api.acceptance`'s.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import Session, col

from api import nonces, transitions
from api.acceptance import TOO_LATE_MS, Chain, Judgement, Verdict, billable_ms, judge, window_ms
from api.granting import priced_shares
from api.lifecycle import LeaseEvent
from api.plane import Plane
from api.tables import (
    EquivocationRow,
    GpuRow,
    LeaseGpuRow,
    LeaseRow,
    LeaseRunRow,
    OperatorRow,
    ReceiptRow,
    RunRow,
    TaskRow,
)
from fabric.wire.link import Ack, RejectReceipt
from fabric.wire.machines import LeaseState
from fabric.wire.reasons import Reason
from fabric.wire.receipts import GpuLine, Receipt, ReceiptKind, RunLine, SignedReceipt
from ledger.book import chunks, insert_or_skip
from ledger.booking import Charge
from ledger.chain.holders import holders_of
from ledger.holding import Holders, by_holder
from ledger.pricing import reserve_dc_up, top_up
from ledger.tables import table_of
from ledger.usage import Usage

_TASKS, _RECEIPTS = table_of(TaskRow), table_of(ReceiptRow)
_CLOSED = frozenset({LeaseState.CLOSED, LeaseState.LOST})
_TOP_UP_MS = 60_000


@dataclass(frozen=True, slots=True)
class Verified:
    """A receipt whose signature is by `key`, a session key of `operator`, the one that sent it."""

    operator: str
    signed: SignedReceipt
    receipt: Receipt
    key: bytes


@dataclass(slots=True)
class _Meter:
    """One GPU's cumulative numbers: as its last accepted receipt claims, and as they are billed."""

    line: GpuLine
    billed_ms: int
    window_ms: int
    charged_dc: int


@dataclass
class _Open:
    """A lease while its receipts are taken: its rows, and what this batch adds."""

    row: LeaseRow
    gpus: dict[str, LeaseGpuRow]
    models: dict[str, GpuRow]
    holder: str
    nfts: Mapping[str, Holders]
    seen: dict[int, bytes]
    chain: Chain
    meters: dict[str, _Meter]
    runs: dict[str, RunLine] = field(default_factory=dict)
    usages: list[Usage] = field(default_factory=list)
    events: list[tuple[LeaseEvent, str]] = field(default_factory=list)

    def write(self) -> None:
        """Put what this batch metered into the rows, once."""
        row, chain = self.row, self.chain
        if chain.last_seq == row.last_seq:
            return
        row.last_seq, row.last_hash, row.lost_at_ms = chain.last_seq, chain.last_hash, None
        for uuid, meter in self.meters.items():
            gpu, line = self.gpus[uuid], meter.line
            gpu.billed_ms, gpu.window_ms, gpu.charged_dc = meter.billed_ms, meter.window_ms, meter.charged_dc
            gpu.claimed_ms, gpu.setup_ms = line.gpu_ms, line.setup_ms
            gpu.utilised_ms, gpu.energy_mj = line.utilised_ms, line.energy_mj


class Batch:
    """One transaction's worth of receipts."""

    def __init__(self, plane: Plane, session: Session, verified: Sequence[Verified]) -> None:
        self._plane, self._session = plane, session
        self._now = plane.now_ms()
        self._leases = _load(session, plane.fabric_id, verified)
        self._windows: dict[tuple[str, int], tuple[int | None, int | None]] = {}
        self._receipts: list[dict[str, Any]] = []
        self._tasks: list[dict[str, Any]] = []
        self._heard: set[str] = set()
        self.counts: defaultdict[str, int] = defaultdict(int)

    def take(self, one: Verified) -> RejectReceipt | None:
        """Judge one receipt and note what it adds; a refusal is the answer, all else is acknowledged at the end.

        A lease with a receipt that can never be accepted is released: its chain cannot go on from there.
        """
        receipt = one.receipt
        lease = self._leases.get(receipt.lease)
        if lease is None or lease.row.operator != one.operator:
            self.counts[Verdict.REJECT] += 1
            return refusal(receipt, f"this operator has no lease {receipt.lease}")
        judged = self._judge(lease, receipt)
        self.counts[judged.verdict] += 1
        if judged.verdict is Verdict.ACCEPT:
            self._accept(lease, one)
        if judged.verdict not in (Verdict.REJECT, Verdict.EQUIVOCATION):
            self._heard.add(receipt.lease)
            return None
        if judged.verdict is Verdict.EQUIVOCATION:
            self._keep_proof(one)
        if receipt.generation == lease.row.generation and not lease.chain.closed:
            lease.events.append((LeaseEvent.RELEASE, Reason.VERIFICATION_FAILED))
        return refusal(receipt, judged.reason)

    def book(self) -> None:
        """Write everything: rows, charges, then the states that follow."""
        if self._receipts:
            self._session.execute(insert(_RECEIPTS), self._receipts)
        if self._tasks:
            insert_or_skip(self._session, _TASKS, self._tasks)
        usages = [usage for lease in self._leases.values() for usage in lease.usages]
        if usages:
            self._note_charges(self._plane.ledger(self._session).charge_many(usages))
        for lease in self._leases.values():
            lease.write()
            self._write_runs(lease)
        self._session.flush()
        for lease in self._leases.values():
            self._apply(lease)

    def acks(self) -> Iterator[tuple[str, Ack]]:
        """How far each lease is durable of which this batch brought something new, known or early."""
        for name, lease in self._leases.items():
            if name in self._heard:
                yield name, Ack(lease=name, generation=lease.row.generation, seq=lease.row.last_seq)

    def _judge(self, lease: _Open, receipt: Receipt) -> Judgement:
        return judge(lease.chain, receipt, lease.seen.get(receipt.seq), self._age(lease.row.cluster, receipt))

    def _accept(self, lease: _Open, one: Verified) -> None:
        receipt, row = one.receipt, lease.row
        issued, following = self._nonce(row.cluster, receipt)
        if receipt.kind is ReceiptKind.OPEN:
            row.billing_nonce_ms = max(issued or 0, row.granted_ms)
            lease.events.append((LeaseEvent.OPENED, ""))
        window = window_ms(
            start_ms=row.billing_nonce_ms if row.billing_nonce_ms is not None else self._now,
            next_nonce_ms=following,
            arrival_ms=self._now,
            release_ms=row.release_ms,
        )
        self._meter(lease, receipt, window)
        lease.runs.update((line.run, line) for line in receipt.runs)
        self._note_tasks(row, one)
        lease.seen[receipt.seq] = receipt.hash
        lease.chain = replace(
            lease.chain,
            last_seq=receipt.seq,
            last_hash=receipt.hash,
            closed=receipt.kind is ReceiptKind.CLOSE,
            gpu_ms={line.uuid: line.gpu_ms for line in receipt.gpus},
        )
        if receipt.kind is ReceiptKind.CLOSE:
            lease.events.append((LeaseEvent.CLOSE_ACCEPTED, receipt.reason))
        self._receipts.append(
            {
                "lease": row.id,
                "generation": receipt.generation,
                "seq": receipt.seq,
                "kind": receipt.kind.value,
                "hash": receipt.hash,
                "previous": receipt.previous,
                "signed": one.signed.to_bytes(),
                "session_key": one.key.hex(),
                "nonce_seq": receipt.nonce_seq,
                "window_ms": window,
                "accepted_ms": self._now,
            }
        )

    def _meter(self, lease: _Open, receipt: Receipt, window: int) -> None:
        row = lease.row
        for line in receipt.gpus:
            meter, device = lease.meters[line.uuid], lease.models[line.uuid]
            billed = billable_ms(line.gpu_ms, window, meter.billed_ms, receipt.kind)
            usage = Usage(
                lease_id=row.id,
                generation=row.generation,
                seq=receipt.seq,
                run_id=row.run,
                customer=row.customer,
                gpu_id=device.id,
                operator=row.operator,
                pool=row.operator,
                holder=lease.holder,
                model=device.model,
                share_milli=line.share_milli,
                price_dc_per_gpu_hour=row.price_dc_per_gpu_hour,
                cumulative_gpu_ms=billed,
                at_ms=self._now,
                receipt_hash=receipt.hash,
                utilised_gpu_ms=max(0, line.utilised_ms - meter.line.utilised_ms),
                energy_mj=max(0, line.energy_mj - meter.line.energy_mj),
                simulated=device.simulated,
            )
            lease.usages += by_holder(usage, billed - meter.billed_ms, lease.nfts.get(device.id, ()))
            meter.line, meter.billed_ms, meter.window_ms = line, billed, max(window, meter.window_ms)

    def _write_runs(self, lease: _Open) -> None:
        """Each run's part of the lease; a run that is not known yet, or is another customer's, gets none."""
        row = lease.row
        query = select(LeaseRunRow).where(col(LeaseRunRow.lease) == row.id, col(LeaseRunRow.run).in_(list(lease.runs)))
        parts = {part.run: part for part in self._session.scalars(query)}
        for line in lease.runs.values():
            part = parts.get(line.run)
            if part is None:
                run = self._session.get(RunRow, line.run)
                if run is None or run.customer != row.customer:
                    continue
                part = LeaseRunRow(lease=row.id, run=line.run, joined_ms=self._now)
            part.gpu_ms, part.idle_ms, part.setup_ms = line.gpu_ms, line.idle_ms, line.setup_ms
            self._session.add(part)

    def _note_tasks(self, row: LeaseRow, one: Verified) -> None:
        """At most one accepted result per task, also within this batch."""
        done = self._results_of(row, one)
        for line in one.signed.tasks:
            accepted = line.reason == Reason.DONE and (line.run, line.task) not in done
            if accepted:
                done.add((line.run, line.task))
            row.last_task_end_ms = max(row.last_task_end_ms, line.end_ms)
            self._tasks.append(
                {
                    "run": line.run,
                    "task": line.task,
                    "attempt": line.attempt,
                    "lease": row.id,
                    "generation": row.generation,
                    "seq": one.receipt.seq,
                    "gpus": list(line.gpus),
                    "start_ms": line.start_ms,
                    "end_ms": line.end_ms,
                    "gpu_ms": line.gpu_ms,
                    "energy_mj": line.energy_mj,
                    "reason": line.reason,
                    "result_digest": line.result_digest,
                    "accepted": accepted,
                }
            )

    def _results_of(self, row: LeaseRow, one: Verified) -> set[tuple[str, int]]:
        """Tasks of this receipt that may have no further result: they have one, or are another customer's."""
        tasks: defaultdict[str, list[int]] = defaultdict(list)
        for line in one.signed.tasks:
            tasks[line.run].append(line.task)
        done = {(task["run"], task["task"]) for task in self._tasks if task["accepted"]}
        for run, numbers in tasks.items():
            known = self._session.get(RunRow, run)
            if known is not None and known.customer != row.customer:
                done |= {(run, number) for number in numbers}
            accepted = select(TaskRow.task).where(  # type: ignore[call-overload]
                col(TaskRow.run) == run, col(TaskRow.accepted), col(TaskRow.task).between(min(numbers), max(numbers))
            )
            done |= {(run, number) for number in self._session.scalars(accepted)}
        return done

    def _keep_proof(self, one: Verified) -> None:
        receipt = one.receipt
        known = select(EquivocationRow.id).where(  # type: ignore[call-overload]
            col(EquivocationRow.lease) == receipt.lease,
            col(EquivocationRow.generation) == receipt.generation,
            col(EquivocationRow.seq) == receipt.seq,
            col(EquivocationRow.hash) == receipt.hash,
        )
        if self._session.scalar(known) is None:
            self._session.add(
                EquivocationRow(
                    lease=receipt.lease,
                    generation=receipt.generation,
                    seq=receipt.seq,
                    hash=receipt.hash,
                    signed=one.signed.to_bytes(),
                    at_ms=self._now,
                )
            )
            self._session.flush()

    def _note_charges(self, charges: Sequence[Charge]) -> None:
        uuids = {device.id: uuid for lease in self._leases.values() for uuid, device in lease.models.items()}
        for charged in charges:
            lease = self._leases[charged.usage.lease_id]
            lease.meters[uuids[charged.usage.gpu_id]].charged_dc += charged.dc
        for lease in self._leases.values():
            lease.row.charged_dc = sum(meter.charged_dc for meter in lease.meters.values())

    def _apply(self, lease: _Open) -> None:
        for event, reason in lease.events:
            transitions.lease_event(self._plane, self._session, lease.row, event, _known_reason(reason))
        if lease.usages and LeaseState(lease.row.state) is LeaseState.OPEN:
            self._fund(lease)

    def _fund(self, lease: _Open) -> None:
        """Top the hold up each minute, or sooner when only the reserve is left; stop the lease when that fails."""
        row = lease.row
        shares = priced_shares(row, [gpu.share_milli for gpu in lease.gpus.values()])
        held = row.set_aside_dc - row.charged_dc
        if held > reserve_dc_up(shares, row.notice_ms) and self._now - row.topped_up_ms < _TOP_UP_MS:
            return
        ledger = self._plane.ledger(self._session)
        run = self._session.get_one(RunRow, row.run)
        left = None if run.budget_dc is None else run.budget_dc - ledger.committed_dc(run.id)
        available = ledger.balance(row.customer).available
        decided = top_up(shares, held_dc=held, notice_ms=row.notice_ms, available_dc=available, budget_left_dc=left)
        row.topped_up_ms = self._now
        if decided.add_dc:
            row.top_ups += 1
            ledger.top_up(row.id, decided.add_dc, f"top-up/{row.id}/{row.top_ups}", budget_dc=run.budget_dc)
            row.set_aside_dc += decided.add_dc
        self._session.add(row)
        if decided.stop is not None:
            transitions.lease_event(self._plane, self._session, row, LeaseEvent.RELEASE, decided.stop)

    def _nonce(self, cluster: str, receipt: Receipt) -> tuple[int | None, int | None]:
        """When the receipt's nonce was issued, and when the one after it was."""
        key = (cluster, receipt.nonce_seq)
        if key not in self._windows:
            issued = nonces.issued(self._session, cluster, receipt.nonce_seq, receipt.nonce)
            self._windows[key] = (issued, nonces.next_after(self._session, cluster, receipt.nonce_seq))
        return self._windows[key]

    def _age(self, cluster: str, receipt: Receipt) -> int | None:
        issued, _ = self._nonce(cluster, receipt)
        if issued is None:
            return None
        age = self._now - issued
        return age if age <= TOO_LATE_MS else nonces.up_since(self._session, issued, self._now, self._plane.life)


def _load(session: Session, fabric_id: str, verified: Sequence[Verified]) -> dict[str, _Open]:
    """Everything that the batch's leases need, in a few queries."""
    names = sorted({one.receipt.lease for one in verified})
    rows: dict[str, LeaseRow] = {}
    gpus: defaultdict[str, dict[str, LeaseGpuRow]] = defaultdict(dict)
    models: defaultdict[str, dict[str, GpuRow]] = defaultdict(dict)
    for chunk in chunks(names):
        rows |= {row.id: row for row in session.scalars(select(LeaseRow).where(col(LeaseRow.id).in_(chunk)))}
        pairs = (
            select(LeaseGpuRow, GpuRow)
            .join(GpuRow, col(GpuRow.uuid) == col(LeaseGpuRow.gpu))
            .where(col(LeaseGpuRow.lease).in_(chunk))
            .order_by(col(LeaseGpuRow.position))
        )
        for part, device in session.execute(pairs):
            gpus[part.lease][part.gpu] = part
            models[part.lease][part.gpu] = device
    payouts = {row.id: row.payout for row in session.scalars(select(OperatorRow))}
    seen = _seen(session, verified)
    nfts = holders_of(session, {device.id for devices in models.values() for device in devices.values()})
    return {
        name: _Open(
            row,
            gpus[name],
            models[name],
            payouts[row.operator],
            nfts,
            seen[name],
            _chain(fabric_id, row, gpus[name], models[name]),
            {uuid: _meter(gpu) for uuid, gpu in gpus[name].items()},
        )
        for name, row in rows.items()
    }


def _chain(fabric_id: str, row: LeaseRow, gpus: dict[str, LeaseGpuRow], models: dict[str, GpuRow]) -> Chain:
    return Chain(
        fabric_id=fabric_id,
        operator=row.operator,
        lease=row.id,
        generation=row.generation,
        last_seq=row.last_seq,
        last_hash=row.last_hash,
        closed=LeaseState(row.state) in _CLOSED,
        shares=frozenset((gpu.gpu, gpu.share_milli) for gpu in gpus.values()),
        simulated=any(gpu.simulated for gpu in models.values()),
        gpu_ms={gpu.gpu: gpu.claimed_ms for gpu in gpus.values()},
    )


def _meter(gpu: LeaseGpuRow) -> _Meter:
    line = GpuLine(gpu.gpu, gpu.share_milli, gpu.claimed_ms, gpu.setup_ms, gpu.utilised_ms, gpu.energy_mj)
    return _Meter(line, gpu.billed_ms, gpu.window_ms, gpu.charged_dc)


def _seen(session: Session, verified: Sequence[Verified]) -> defaultdict[str, dict[int, bytes]]:
    """Hashes of accepted receipts with the numbers that this batch names."""
    seen: defaultdict[str, dict[int, bytes]] = defaultdict(dict)
    lowest: dict[tuple[str, int], int] = {}
    for one in verified:
        key = (one.receipt.lease, one.receipt.generation)
        lowest[key] = min(lowest.get(key, one.receipt.seq), one.receipt.seq)
    for (lease, generation), seq in lowest.items():
        rows = session.execute(
            select(ReceiptRow.seq, ReceiptRow.hash).where(  # type: ignore[call-overload]
                col(ReceiptRow.lease) == lease, col(ReceiptRow.generation) == generation, col(ReceiptRow.seq) >= seq
            )
        )
        seen[lease].update((number, digest) for number, digest in rows)
    return seen


def _known_reason(text: str) -> str:
    try:
        return Reason(text).value
    except ValueError:
        return Reason.DONE.value


def refusal(receipt: Receipt, reason: str) -> RejectReceipt:
    return RejectReceipt(lease=receipt.lease, generation=receipt.generation, seq=receipt.seq, reason=reason)
