"""One transaction's worth of receipts: judged in order, booked together, then the states that follow.

Rows are read once and written once per batch, whatever the number of receipts; what is decided is `api.acceptance`'s.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from api import gangs, nonces, notices, receipt_rows, transitions
from api.acceptance import (
    TOO_LATE_MS,
    Judgement,
    Verdict,
    billable_ms,
    closing_word,
    judge,
    least_ms,
    window_ms,
)
from api.lifecycle import LeaseEvent
from api.plane import Plane
from api.receipt_rows import OpenLease
from api.tables import EquivocationRow, LeaseRow, RunRow
from fabric.wire.ids import is_name
from fabric.wire.link import Ack, RejectReceipt
from fabric.wire.machines import LeaseState
from fabric.wire.reasons import Reason
from fabric.wire.receipts import Receipt, ReceiptKind, RunLine, SignedReceipt
from ledger.booking import Charge
from ledger.bulk import among
from ledger.epoch import EpochClock
from ledger.holding import by_pool_and_holder
from ledger.pricing import reserve_dc_up, top_up
from ledger.usage import Usage

_TOP_UP_MS = 60_000


@dataclass(frozen=True, slots=True)
class Verified:
    """A receipt whose signature is by `key`, a session key of `operator`, the one that sent it as `data`.

    `unfit` says what in it no record can hold.
    """

    operator: str
    data: bytes
    signed: SignedReceipt
    receipt: Receipt
    key: bytes
    unfit: str


class Batch:
    """One transaction's worth of receipts."""

    def __init__(self, plane: Plane, session: Session, verified: Sequence[Verified]) -> None:
        self._plane, self._session = plane, session
        self._now = plane.now_ms()
        self._epochs = EpochClock(plane.ledger_settings.genesis_ms, plane.ledger_settings.epoch_ms)
        named = [one.receipt for one in verified if is_name(one.receipt.lease)]
        self._leases = receipt_rows.load(session, plane.fabric_id, named)
        self._echoes = nonces.echoes(session, {one.receipt.nonce_seq for one in verified})
        fit = [one for one in verified if not one.unfit]
        tasks = {(line.run, line.task) for one in fit for line in one.signed.tasks}
        runs = {line.run for one in fit for line in one.receipt.runs}
        self._customers = receipt_rows.customers_of(session, runs | {run for run, _ in tasks})
        self._done = receipt_rows.done_tasks(session, tasks)
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
        if lease is None or lease.operator != one.operator:
            self.counts[Verdict.REJECT] += 1
            return refusal(receipt, f"this operator has no lease {receipt.lease}")
        judged = self._judge(lease, one)
        self.counts[judged.verdict] += 1
        if judged.verdict is Verdict.ACCEPT:
            self._accept(lease, one)
        if judged.verdict not in (Verdict.REJECT, Verdict.EQUIVOCATION):
            self._heard.add(receipt.lease)
            return None
        if judged.verdict is Verdict.EQUIVOCATION:
            self._keep_proof(one)
        if receipt.generation == lease.chain.generation and not lease.chain.closed:
            lease.events.append((LeaseEvent.RELEASE, Reason.VERIFICATION_FAILED))
        return refusal(receipt, judged.reason)

    def book(self) -> None:
        """Write everything: rows, charges, then the states that follow."""
        leases, session = list(self._leases.values()), self._session
        receipt_rows.write_receipts(session, self._receipts)
        receipt_rows.write_tasks(session, self._tasks)
        usages = [usage for lease in leases for usage in lease.usages]
        if usages:
            self._note_charges(self._plane.ledger(session).charge_many(usages))
        receipt_rows.write_leases(session, [lease for lease in leases if lease.advanced])
        receipt_rows.write_runs(session, [part for lease in leases for part in self._parts(lease)])
        receipt_rows.write_untold(session, [part for lease in leases for part in self._untold(lease)])
        self._apply([lease for lease in leases if lease.events or self._is_to_be_funded(lease)])

    def acks(self) -> Iterator[tuple[str, Ack]]:
        """How far each lease is durable of which this batch brought something new, known or early."""
        for name, lease in self._leases.items():
            if name in self._heard:
                yield name, Ack(lease=name, generation=lease.chain.generation, seq=lease.chain.last_seq)

    def _judge(self, lease: OpenLease, one: Verified) -> Judgement:
        receipt = one.receipt
        judged = judge(lease.chain, receipt, lease.seen.get(receipt.seq), self._age(lease.cluster, receipt))
        unfit = one.unfit and judged.verdict is Verdict.ACCEPT
        return Judgement(Verdict.REJECT, one.unfit) if unfit else judged

    def _accept(self, lease: OpenLease, one: Verified) -> None:
        receipt = one.receipt
        issued, following = self._nonce(lease.cluster, receipt)
        if receipt.kind is ReceiptKind.OPEN:
            lease.billing_nonce_ms = max(issued or 0, lease.granted_ms)
            lease.events.append((LeaseEvent.OPENED, ""))
        window = window_ms(
            start_ms=lease.billing_nonce_ms if lease.billing_nonce_ms is not None else self._now,
            next_nonce_ms=following,
            arrival_ms=self._now,
            release_ms=lease.release_ms,
        )
        self._meter(lease, receipt, window)
        lease.runs.update((line.run, line) for line in receipt.runs)
        self._note_tasks(lease, one)
        lease.advanced = True
        lease.seen[receipt.seq] = receipt.hash
        lease.chain = replace(
            lease.chain,
            last_seq=receipt.seq,
            last_hash=receipt.hash,
            closed=receipt.kind is ReceiptKind.CLOSE,
            gpu_ms={line.uuid: line.gpu_ms for line in receipt.gpus},
        )
        if receipt.kind is ReceiptKind.CLOSE:
            lease.events.append(
                (LeaseEvent.CLOSE_ACCEPTED, self._decided(lease, receipt) or closing_word(receipt.reason))
            )
        self._receipts.append(
            {
                "lease": lease.id,
                "generation": receipt.generation,
                "seq": receipt.seq,
                "kind": receipt.kind.value,
                "hash": receipt.hash,
                "previous": receipt.previous,
                "signed": one.data,
                "session_key": one.key.hex(),
                "nonce_seq": receipt.nonce_seq,
                "window_ms": window,
                "accepted_ms": self._now,
            }
        )

    def _decided(self, lease: OpenLease, receipt: Receipt) -> str:
        """Why the lease ends, as its customer, this control plane or a notice says; "" where only its agent does.

        So it does of a node that it says is lost, where the customer could not reach it.
        """
        if receipt.reason == Reason.OPERATOR_LOST and transitions.unreachable(lease):
            return ""
        return Reason.DONE if lease.given_back else lease.reason or notices.reason_of(self._session, lease.id) or ""

    def _least(self, lease: OpenLease, receipt: Receipt) -> int:
        """An agent's word alone bills no least."""
        decided = self._decided(lease, receipt) if receipt.kind is ReceiptKind.CLOSE else ""
        return least_ms(lease.least_ms, receipt.kind, decided) if decided else 0

    def _meter(self, lease: OpenLease, receipt: Receipt, window: int) -> None:
        least = self._least(lease, receipt)
        for line in receipt.gpus:
            meter = lease.meters[line.uuid]
            used = billable_ms(line.gpu_ms, window, meter.billed_ms, receipt.kind)
            billed = max(used, least)
            usage = Usage(
                lease_id=lease.id,
                generation=receipt.generation,
                seq=receipt.seq,
                run_id=lease.run,
                customer=lease.customer,
                gpu_id=meter.gpu_id,
                operator=lease.operator,
                pool=lease.operator,
                holder=lease.holder,
                model=meter.model,
                share_milli=line.share_milli,
                price_dc_per_gpu_hour=lease.price_dc_per_gpu_hour,
                cumulative_gpu_ms=used,
                at_ms=self._now,
                receipt_hash=receipt.hash,
                utilised_gpu_ms=max(0, line.utilised_ms - meter.line.utilised_ms),
                energy_mj=max(0, line.energy_mj - meter.line.energy_mj),
                simulated=meter.simulated,
            )
            if lease.price_dc_per_gpu_hour:  # on a slot the slot's own time is booked, used or not
                lease.usages += self._divided(lease, usage, used - meter.billed_ms, billed)
            meter.line, meter.billed_ms, meter.window_ms = line, billed, max(window, meter.window_ms)

    def _divided(self, lease: OpenLease, usage: Usage, added_ms: int, billed_ms: int) -> list[Usage]:
        """By pool and holder of the time of use; what is billed beyond it, of the moment at which the lease ends."""
        stays, nfts = lease.stays.get(usage.gpu_id, ()), lease.nfts.get(usage.gpu_id, ())
        parts = by_pool_and_holder(usage, added_ms, stays, self._epochs, nfts)
        if billed_ms > usage.cumulative_gpu_ms:
            rest = replace(usage, part=len(parts), cumulative_gpu_ms=billed_ms, utilised_gpu_ms=0, energy_mj=0)
            parts += by_pool_and_holder(rest, 0, stays, self._epochs, nfts)
        return parts

    def _parts(self, lease: OpenLease) -> Iterator[dict[str, Any]]:
        """Each run's part of the lease; a run of another customer gets none."""
        for line in lease.runs.values():
            if self._customers.get(line.run) == lease.customer:
                yield _part(lease, line) | {"joined_ms": self._now}

    def _untold(self, lease: OpenLease) -> Iterator[dict[str, Any]]:
        """The parts of runs that are not known yet: kept until they are told of."""
        return (_part(lease, line) for line in lease.runs.values() if line.run not in self._customers)

    def _note_tasks(self, lease: OpenLease, one: Verified) -> None:
        """At most one accepted result per task, also within this batch; none for another customer's run."""
        for line in one.signed.tasks:
            key = (line.run, line.task)
            own = self._customers.get(line.run, lease.customer) == lease.customer
            accepted = own and line.reason == Reason.DONE and key not in self._done
            if accepted:
                self._done.add(key)
            lease.last_task_end_ms = max(lease.last_task_end_ms, line.end_ms)
            self._tasks.append(
                {
                    "run": line.run,
                    "task": line.task,
                    "attempt": line.attempt,
                    "lease": lease.id,
                    "generation": one.receipt.generation,
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
                    signed=one.data,
                    at_ms=self._now,
                )
            )
            self._session.flush()

    def _note_charges(self, charges: Sequence[Charge]) -> None:
        meters = {(lease.id, meter.gpu_id): meter for lease in self._leases.values() for meter in lease.meters.values()}
        for charged in charges:
            meters[charged.usage.lease_id, charged.usage.gpu_id].charged_dc += charged.dc

    def _is_to_be_funded(self, lease: OpenLease) -> bool:
        """Each minute, or sooner when only the reserve is left."""
        if not lease.usages:
            return False
        held = lease.set_aside_dc - lease.charged_dc
        return self._now - lease.topped_up_ms >= _TOP_UP_MS or held <= reserve_dc_up(lease.shares(), lease.notice_ms)

    def _apply(self, leases: Sequence[OpenLease]) -> None:
        """The states that follow, and the holds that are due."""
        named = select(LeaseRow).where(among(col(LeaseRow.id), [lease.id for lease in leases]))
        rows = {row.id: row for row in self._session.scalars(named)} if leases else {}
        for lease in leases:
            row = rows[lease.id]
            for event, reason in lease.events:
                transitions.lease_event(self._plane, self._session, row, event, _known_reason(reason))
            if self._is_to_be_funded(lease) and LeaseState(row.state) is LeaseState.OPEN:
                self._fund(lease, row)

    def _fund(self, lease: OpenLease, row: LeaseRow) -> None:
        """Top the hold up, a gang's lease by its part of what is left at most; stop the lease when that fails."""
        ledger = self._plane.ledger(self._session)
        run = self._session.get_one(RunRow, row.run)
        parts = max(1, len(gangs.members(self._session, run.id))) if gangs.is_gang(run) else 1
        left = None if run.budget_dc is None else (run.budget_dc - ledger.committed_dc(run.id)) // parts
        decided = top_up(
            lease.shares(),
            held_dc=row.set_aside_dc - row.charged_dc,
            notice_ms=row.notice_ms,
            available_dc=ledger.balance(row.customer).available // parts,
            budget_left_dc=left,
        )
        row.topped_up_ms = self._now
        if decided.add_dc:
            row.top_ups += 1
            ledger.top_up(row.id, decided.add_dc, f"top-up/{row.id}/{row.top_ups}", budget_dc=run.budget_dc)
            row.set_aside_dc += decided.add_dc
        self._session.add(row)
        if decided.stop is not None:
            notices.give(self._plane, self._session, row, Reason(decided.stop), row.notice_ms)

    def _nonce(self, cluster: str, receipt: Receipt) -> tuple[int | None, int | None]:
        """When the receipt's nonce was issued, and when the one after it was; None for one that was not issued here."""
        echo = self._echoes.get(receipt.nonce_seq)
        if echo is None or (echo.cluster, echo.value) != (cluster, receipt.nonce):
            return None, None
        return echo.issued_ms, echo.next_ms

    def _age(self, cluster: str, receipt: Receipt) -> int | None:
        issued, _ = self._nonce(cluster, receipt)
        if issued is None:
            return None
        age = self._now - issued
        return age if age <= TOO_LATE_MS else nonces.up_since(self._session, issued, self._now, self._plane.life)


def _part(lease: OpenLease, line: RunLine) -> dict[str, Any]:
    return {
        "lease": lease.id,
        "run": line.run,
        "gpu_ms": line.gpu_ms,
        "idle_ms": line.idle_ms,
        "setup_ms": line.setup_ms,
    }


def _known_reason(text: str) -> str:
    try:
        return Reason(text).value
    except ValueError:
        return Reason.DONE.value


def refusal(receipt: Receipt, reason: str) -> RejectReceipt:
    return RejectReceipt(lease=receipt.lease, generation=receipt.generation, seq=receipt.seq, reason=reason)
