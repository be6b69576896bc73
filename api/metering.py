"""Accepted receipts become usage in the ledger: the shell around `api.acceptance`.

One call takes the pending receipts of all agents in one transaction: signatures before it, then order, generation,
chain, nonce and window; then one booking for all; then the answers. Nothing is acknowledged before the commit.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
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
    SessionKeyRow,
    TaskRow,
)
from fabric.wire.link import Ack, RejectReceipt
from fabric.wire.machines import LeaseState
from fabric.wire.reasons import Reason
from fabric.wire.receipts import Receipt, ReceiptError, ReceiptKind, SignedReceipt
from ledger.book import chunks, insert_or_skip
from ledger.booking import Charge
from ledger.pricing import reserve_dc_up, top_up
from ledger.tables import table_of
from ledger.usage import Usage

_log = structlog.get_logger(__name__)
_TASKS, _RECEIPTS = table_of(TaskRow), table_of(ReceiptRow)
_CLOSED = frozenset({LeaseState.CLOSED, LeaseState.LOST})
_TOP_UP_MS = 60_000


@dataclass(frozen=True, slots=True)
class Arrived:
    """One receipt as an agent sent it: `keys` are its operator's session keys, the connection's first."""

    operator: str
    keys: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class _Verified:
    arrived: Arrived
    signed: SignedReceipt
    receipt: Receipt
    key: bytes


@dataclass
class _Open:
    """A lease while its receipts are taken: its rows, and what this batch adds."""

    row: LeaseRow
    gpus: dict[str, LeaseGpuRow]
    models: dict[str, GpuRow]
    holder: str
    seen: dict[int, bytes]
    usages: list[Usage] = field(default_factory=list)
    events: list[tuple[LeaseEvent, str]] = field(default_factory=list)

    @property
    def by_id(self) -> dict[str, LeaseGpuRow]:
        """The GPUs by public id, as the ledger names them."""
        return {self.models[uuid].id: gpu for uuid, gpu in self.gpus.items()}

    @property
    def closed(self) -> bool:
        return LeaseState(self.row.state) in _CLOSED or any(e is LeaseEvent.CLOSE_ACCEPTED for e, _ in self.events)


Answer = Ack | RejectReceipt


class Metering:
    """Takes receipts; safe to call from one thread at a time."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def keys_of(self, session: Session, operator: str, first: bytes) -> tuple[bytes, ...]:
        """The session keys whose receipts are taken from an operator: all that are not revoked."""
        rows = session.scalars(
            select(SessionKeyRow).where(
                col(SessionKeyRow.operator) == operator, col(SessionKeyRow.revoked_ms).is_(None)
            )
        )
        return tuple(dict.fromkeys((first, *(bytes.fromhex(row.public_key) for row in rows))))

    def take(self, batch: Sequence[Arrived]) -> list[tuple[int, Answer]]:
        """Take receipts in the order given; answers are (index into `batch`, message), durable when returned.

        One acknowledgement per lease names the last receipt that is durable; each receipt that can never be accepted
        gets its refusal.
        """
        verified: list[tuple[int, _Verified]] = []
        answers: list[tuple[int, Answer]] = []
        for index, arrived in enumerate(batch):
            found = self._verify(arrived)
            if isinstance(found, _Verified):
                verified.append((index, found))
            elif found is not None:
                answers.append((index, found))
        self._plane.metrics.batch_size.observe(len(batch))
        return answers + self._take_verified(verified)

    def _verify(self, arrived: Arrived) -> _Verified | RejectReceipt | None:
        try:
            signed = SignedReceipt.from_bytes(arrived.data)
            receipt = signed.receipt
        except ReceiptError as error:
            _log.warning("malformed receipt", operator=arrived.operator, error=str(error))
            self._count("malformed")
            return None
        problem = "no session key of this operator is valid"
        for key in arrived.keys:
            try:
                signed.verify(key)
            except ReceiptError as error:
                problem = str(error)
            else:
                return _Verified(arrived, signed, receipt, key)
        self._count("forged")
        return _reject(receipt, problem)

    def _take_verified(self, verified: list[tuple[int, _Verified]]) -> list[tuple[int, Answer]]:
        """All in one transaction; if that fails, lease by lease, so that one bad lease stops nobody else."""
        if not verified:
            return []
        try:
            return self._transact(verified)
        except Exception:  # noqa: BLE001 - the outermost loop of a batch: halved until the bad lease stands alone
            leases = {one.receipt.lease for _, one in verified}
            _log.exception("a batch of receipts failed", leases=len(leases))
            if len(leases) == 1:
                return []
        answers: list[tuple[int, Answer]] = []
        for lease in sorted(leases):
            answers += self._take_verified([pair for pair in verified if pair[1].receipt.lease == lease])
        return answers

    def _transact(self, verified: list[tuple[int, _Verified]]) -> list[tuple[int, Answer]]:
        with self._plane.database.write() as session:
            batch = _Batch(self._plane, session, [one for _, one in verified])
            refusals = [(index, refusal) for index, one in verified if (refusal := batch.take(one)) is not None]
            batch.book()
            last = {one.receipt.lease: index for index, one in verified}
            acks = [(last[lease], ack) for lease, ack in batch.acks()]
        for verdict, count in batch.counts.items():
            self._count(verdict, count)
        return [*refusals, *acks]

    def _count(self, verdict: str, by: int = 1) -> None:
        self._plane.metrics.receipts.labels(verdict=verdict).inc(by)


class _Batch:
    """One transaction's worth of receipts."""

    def __init__(self, plane: Plane, session: Session, verified: Sequence[_Verified]) -> None:
        self._plane, self._session = plane, session
        self._now = plane.now_ms()
        self._leases = _load(session, verified)
        self._windows: dict[tuple[str, int], tuple[int | None, int | None]] = {}
        self._receipts: list[dict[str, Any]] = []
        self._tasks: list[dict[str, Any]] = []
        self._heard: set[str] = set()
        self.counts: defaultdict[str, int] = defaultdict(int)

    def take(self, one: _Verified) -> RejectReceipt | None:
        """Judge one receipt and note what it adds; a refusal is the answer, all else is acknowledged at the end.

        A lease with a receipt that can never be accepted is released: its chain cannot go on from there.
        """
        receipt = one.receipt
        lease = self._leases.get(receipt.lease)
        if lease is None or lease.row.operator != one.arrived.operator:
            self.counts[Verdict.REJECT] += 1
            return _reject(receipt, f"this operator has no lease {receipt.lease}")
        judged = self._judge(lease, receipt)
        self.counts[judged.verdict] += 1
        if judged.verdict is Verdict.ACCEPT:
            self._accept(lease, one)
        if judged.verdict not in (Verdict.REJECT, Verdict.EQUIVOCATION):
            self._heard.add(receipt.lease)
            return None
        if judged.verdict is Verdict.EQUIVOCATION:
            self._keep_proof(one)
        if receipt.generation == lease.row.generation and not lease.closed:
            lease.events.append((LeaseEvent.RELEASE, Reason.VERIFICATION_FAILED))
        return _reject(receipt, judged.reason)

    def book(self) -> None:
        """Write everything: rows, charges, then the states that follow."""
        if self._receipts:
            self._session.execute(insert(_RECEIPTS), self._receipts)
        if self._tasks:
            insert_or_skip(self._session, _TASKS, self._tasks)
        self._session.flush()
        usages = [usage for lease in self._leases.values() for usage in lease.usages]
        if usages:
            self._note_charges(self._plane.ledger(self._session).charge_many(usages))
        for lease in self._leases.values():
            self._apply(lease)

    def acks(self) -> Iterator[tuple[str, Ack]]:
        """How far each lease is durable of which this batch brought something new, known or early."""
        for name, lease in self._leases.items():
            if name in self._heard:
                yield name, Ack(lease=name, generation=lease.row.generation, seq=lease.row.last_seq)

    def _judge(self, lease: _Open, receipt: Receipt) -> Judgement:
        row = lease.row
        chain = Chain(
            fabric_id=self._plane.fabric_id,
            operator=row.operator,
            lease=row.id,
            generation=row.generation,
            last_seq=row.last_seq,
            last_hash=row.last_hash,
            closed=lease.closed,
            shares=frozenset((gpu.gpu, gpu.share_milli) for gpu in lease.gpus.values()),
            simulated=any(gpu.simulated for gpu in lease.models.values()),
            gpu_ms={gpu.gpu: gpu.claimed_ms for gpu in lease.gpus.values()},
        )
        return judge(chain, receipt, lease.seen.get(receipt.seq), self._age(row.cluster, receipt))

    def _accept(self, lease: _Open, one: _Verified) -> None:
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
        self._note_runs(row, receipt)
        self._note_tasks(row, one)
        row.last_seq, row.last_hash, row.lost_at_ms = receipt.seq, receipt.hash, None
        lease.seen[receipt.seq] = receipt.hash
        if receipt.kind is ReceiptKind.CLOSE:
            lease.events.append((LeaseEvent.CLOSE_ACCEPTED, receipt.reason))
        self._session.add(row)
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
            gpu, device = lease.gpus[line.uuid], lease.models[line.uuid]
            billed = billable_ms(line.gpu_ms, window, gpu.billed_ms, receipt.kind)
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
                utilised_gpu_ms=max(0, line.utilised_ms - gpu.utilised_ms),
                energy_mj=max(0, line.energy_mj - gpu.energy_mj),
                simulated=device.simulated,
            )
            lease.usages.append(usage)
            gpu.claimed_ms, gpu.billed_ms, gpu.window_ms = line.gpu_ms, billed, max(window, gpu.window_ms)
            gpu.setup_ms, gpu.utilised_ms, gpu.energy_mj = line.setup_ms, line.utilised_ms, line.energy_mj
            self._session.add(gpu)

    def _note_runs(self, row: LeaseRow, receipt: Receipt) -> None:
        for line in receipt.runs:
            known = self._session.get(LeaseRunRow, (row.id, line.run))
            if known is None:
                run = self._session.get(RunRow, line.run)
                if run is None or run.customer != row.customer:
                    continue
                known = LeaseRunRow(lease=row.id, run=line.run, joined_ms=self._now)
            known.gpu_ms, known.idle_ms, known.setup_ms = line.gpu_ms, line.idle_ms, line.setup_ms
            self._session.add(known)

    def _note_tasks(self, row: LeaseRow, one: _Verified) -> None:
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

    def _results_of(self, row: LeaseRow, one: _Verified) -> set[tuple[str, int]]:
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

    def _keep_proof(self, one: _Verified) -> None:
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
        for charged in charges:
            lease = self._leases[charged.usage.lease_id]
            gpu = lease.by_id[charged.usage.gpu_id]
            gpu.charged_dc += charged.dc
            lease.row.charged_dc += charged.dc
            self._session.add(gpu)
            self._session.add(lease.row)

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


def _load(session: Session, verified: Sequence[_Verified]) -> dict[str, _Open]:
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
    return {name: _Open(row, gpus[name], models[name], payouts[row.operator], seen[name]) for name, row in rows.items()}


def _seen(session: Session, verified: Sequence[_Verified]) -> defaultdict[str, dict[int, bytes]]:
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


def _reject(receipt: Receipt, reason: str) -> RejectReceipt:
    return RejectReceipt(lease=receipt.lease, generation=receipt.generation, seq=receipt.seq, reason=reason)
