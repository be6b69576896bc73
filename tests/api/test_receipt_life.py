"""Receipts, ledger, epochs and pools live a random life together, beside a model in plain Python of what is billed.

Leases open, tick and close by real signed receipts, which come in order, early, twice, late, forged, of another lease
or against what was said before; agents fall silent, spot leases leave for others, prices change, epochs close, GPUs
join and leave pools; slots are sold, run on, split, merged and given away. Whatever happens, every checker of the
audit is silent.
"""

import atexit
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from eth_account import Account
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from nacl.signing import SigningKey
from scripted import BALANCE, H100_PRICE, KEY, OTHER_KEY, bootstrap_file
from sqlalchemy import event
from sqlmodel import Session, col, select

from api import bootstrap, inventory, ledger_jobs, nonces, slots, sweeps
from api.audit import API_CHECKS
from api.broker import Broker
from api.distances import Distances
from api.enrolment_tables import OperatorWalletRow
from api.errors import Conflict
from api.fleets import Fleets, note_change
from api.metering import Arrived, Metering
from api.notice_tables import NoticeRow
from api.plane import Plane, build
from api.schemas import RunRequest
from api.settings import Settings
from api.slot_audit import SLOT_CHECKS
from api.steady import SteadyClock
from api.tables import ClusterRow, EquivocationRow, GpuRow, LeaseGpuRow, LeaseRow, NodeRow, NonceRow
from fabric.wire import receipts
from fabric.wire.clock import ManualClock
from fabric.wire.errors import Error
from fabric.wire.ids import new_id
from fabric.wire.machines import ACTIVE_LEASE_STATES
from fabric.wire.receipts import ReceiptKind
from fabric.wire.slot_issue import SlotIssue
from ledger.audit import run_audit
from ledger.checks import LEDGER_CHECKS
from ledger.errors import PoolTermsRefused
from ledger.leaves import gpu_id_hex
from ledger.poolbook import PoolBook, Signed
from ledger.pools import Entrance
from ledger.slot_tables import SlotRow
from ledger.split import POOL_OF_ONE

CLUSTER, GPUS, CUSTOMERS = "op-1/main", ("GPU-1", "GPU-2"), ("alice", "bob")
EPOCH_S, STEPS = 3_600, 25
CHECKS = (*LEDGER_CHECKS, *API_CHECKS, *SLOT_CHECKS)
"""Pools are moved here without a wallet's word, which their own checkers would miss."""
SIGNED = Signed("0x" + "11" * 20, b"s", 0)
TOO_OLD_MS = 600_000
PRICES = {"on_demand": H100_PRICE, "spot": H100_PRICE // 2}
WALLET = Account.from_key(bytes([1]) * 32)
MINUTE = 60_000
THOROUGH = settings().max_examples > 100
AUDIT_EVERY = 5 if THOROUGH else 2 * STEPS
"""So many steps between two runs of all checkers, beside that at a life's end: what they look for stays in the rows."""

LIES: dict[str, Callable[[receipts.Receipt], receipts.Receipt]] = {
    "another fabric": lambda said: replace(said, fabric_id="another"),
    "another operator": lambda said: replace(said, operator="op-2"),
    "a later generation": lambda said: replace(said, generation=2),
    "real GPUs": lambda said: replace(said, simulated=False),
    "a nonce of its own": lambda said: replace(said, nonce=bytes(32)),
    "a nonce of the future": lambda said: replace(said, nonce_seq=10**6),
    "another past": lambda said: replace(said, previous=b"x" * 32),
    "another GPU": lambda said: replace(said, gpus=tuple(replace(line, uuid="GPU-9") for line in said.gpus)),
    "half a GPU": lambda said: replace(said, gpus=tuple(replace(line, share_milli=500) for line in said.gpus)),
    "a second beginning": lambda said: replace(said, kind=ReceiptKind.OPEN if said.seq else ReceiptKind.TICK),
}


@dataclass
class Lease:
    """What the operator knows of a lease, and what the model says it is billed."""

    id: str
    run: str
    customer: str
    gpu: str
    granted_ms: int
    price_dc: int
    claimed_ms: int = 0
    next_seq: int = 0
    previous: bytes = receipts.GENESIS_HASH
    closing: bool = False
    opened_ms: int | None = None
    released_ms: int | None = None
    taken: int = -1
    closed: bool = False
    lost: bool = False
    billed_ms: int = 0
    charged_dc: int = 0
    exact: bool = True
    sent: list["Sent"] = field(default_factory=list)


@dataclass
class Sent:
    """A signed receipt, and the nonce that it echoes."""

    receipt: receipts.Receipt
    claim_ms: int
    nonce_ms: int

    @property
    def data(self) -> bytes:
        return receipts.sign(self.receipt, (), KEY).to_bytes()


@dataclass
class Slot:
    """A slot in one customer's hands, and what was charged of what was paid for it."""

    key: str
    gpu: str
    price_dc: int
    from_ms: int
    to_ms: int
    holder: str = ""
    counts_from_ms: int = 0
    paid_dc: int = 0
    charged_dc: int = 0
    ended: str = ""

    @property
    def id(self) -> str:
        return self.key.rpartition(".")[0]

    def cost(self, ms: int) -> int:
        return -(-ms * self.price_dc // 3_600_000)


class ReceiptLife(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize()
    def begin(self) -> None:
        self.clock = ManualClock()
        self.plane = _begin_anew(self.clock)
        self.metering = Metering(self.plane)
        self.all: list[Lease] = []
        self.prices = {**PRICES, "reserved": 0}
        self.slots: list[Slot] = []
        self.looks: list[tuple[int, bool]] = []
        self.heard_ms = self.clock.now_ms()
        self.given = dict.fromkeys(CUSTOMERS, 0)
        self.steps = 0
        self.pass_time(1_000)

    def pass_time(self, ms: int, *, heard: bool = True) -> None:
        self.clock.advance(ms)
        now = self.clock.now_ms()
        with self.plane.database.write() as session:
            nonces.issue(session, CLUSTER, now)
            if heard:
                cluster = session.get_one(ClusterRow, CLUSTER)
                cluster.last_heard_ms, cluster.connected = now, True
            for customer in CUSTOMERS:
                Broker(self.plane, session).heartbeat(customer, f"ses-{customer}")
        self.heard_ms = now if heard else self.heard_ms
        sweeps.sweep(self.plane)
        ledger_jobs.tick(self.plane)
        self.see_gpus(now)
        self.look()

    def look(self) -> None:
        """What the control plane decided by itself about leases: granted to who waited, released, noticed, lost."""
        with self.plane.database.read() as session:
            rows = {row.id: row for row in session.scalars(select(LeaseRow).order_by(col(LeaseRow.granted_ms)))}
            gpus = dict(session.execute(select(LeaseGpuRow.lease, LeaseGpuRow.gpu)).all())
            until = dict(session.execute(select(NoticeRow.lease, NoticeRow.until_ms)).all())
            for row in rows.values():
                if row.id not in {lease.id for lease in self.all}:
                    price = self.prices[row.tier]
                    assert row.price_dc_per_gpu_hour == price
                    self.all.append(Lease(row.id, row.run, row.customer, gpus[row.id], row.granted_ms, price))
        for lease in self.all:
            row = rows[lease.id]
            if lease.released_ms is None and row.release_ms is not None:
                lease.released_ms = row.release_ms
            lease.closed = lease.closed or row.state not in {state.value for state in ACTIVE_LEASE_STATES}
            lease.lost = row.state == "LOST"
            ended = self.clock.now_ms() >= until.get(lease.id, self.clock.now_ms() + 1)
            if lease.lost or ended or row.least_ms > 1_000:
                lease.exact = False

    def see_gpus(self, now: int) -> None:
        """The control plane looks each ten seconds and where an epoch ends; slots that are over have ended then."""
        last = self.looks[-1][0] if self.looks else 0
        if now - last >= 10_000 or now // (EPOCH_S * 1000) != last // (EPOCH_S * 1000):
            self.looks.append((now, now - self.heard_ms < 15_000))
        for slot in self.held_slots():
            if self.looks[-1][0] >= slot.to_ms:
                self.end(slot, "over")

    def held_slots(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.holder and not slot.ended]

    def up_ms(self, start: int, end: int) -> int:
        """Between two looks GPUs were there as they were seen at the first; longer than a minute says nothing."""
        spans = ((at, until) for (at, there), (until, _) in pairwise(self.looks) if there and until - at <= MINUTE)
        return sum(max(0, min(until, end) - max(at, start)) for at, until in spans)

    def end(self, slot: Slot, why: str) -> int:
        """What passed of it is charged; returns what was paid and is left."""
        slot.ended = why
        through = min(self.looks[-1][0], slot.to_ms)
        slot.charged_dc = min(slot.cost(self.up_ms(slot.counts_from_ms, through)), slot.paid_dc)
        return slot.paid_dc - slot.charged_dc

    def part(self, slot: Slot, key: str, start: int, end: int, holder: str) -> Slot:
        """It counts from where the one before it was charged to."""
        counts = max(start, slot.counts_from_ms, min(self.looks[-1][0], slot.to_ms))
        part = Slot(key, slot.gpu, slot.price_dc, start, end, holder, counts)
        self.slots.append(part)
        return part

    @rule(
        gpu=st.sampled_from(GPUS),
        begin=st.sampled_from([10_000, 61_000, 400_000]),
        lasts=st.sampled_from([MINUTE, 200_001, 20 * MINUTE]),
        price=st.sampled_from([1, 7_777, H100_PRICE]),
        customer=st.sampled_from((*CUSTOMERS, "")),
    )
    def sell_a_slot(self, gpu: str, begin: int, lasts: int, price: int, customer: str) -> None:
        now = self.clock.now_ms()
        stated = SlotIssue(fabric=self.plane.fabric_id, gpu=gpu_id_hex(gpu), from_ms=now + begin,
                           to_ms=now + begin + lasts, price_dc_per_gpu_hour=price, issued_ms=now)  # fmt: skip
        signature = bytes(WALLET.sign_typed_data(full_message=stated.typed_data()).signature)
        try:
            with self.plane.database.write() as session:
                row = slots.issue(self.plane, session, stated, signature)
        except Conflict:
            return
        self.slots.append(Slot(row.key, gpu, price, row.from_ms, row.to_ms))
        if customer:
            self.buy_a_slot(customer, self.slots[-1])

    @rule(customer=st.sampled_from(CUSTOMERS), data=st.data())
    def buy_a_slot_late(self, customer: str, data: st.DataObject) -> None:
        unsold = [slot for slot in self.slots if not slot.holder]
        if unsold:
            self.buy_a_slot(customer, data.draw(st.sampled_from(unsold)))

    def buy_a_slot(self, customer: str, slot: Slot) -> None:
        try:
            with self.plane.database.write() as session:
                slots.buy(self.plane, session, slot.id, customer)
        except Error:
            return
        slot.holder, slot.counts_from_ms = customer, max(slot.from_ms, self.clock.now_ms())
        slot.paid_dc = slot.cost(slot.to_ms - slot.counts_from_ms)
        self.look()

    @rule(data=st.data(), at=st.sampled_from([1, 9_999, 50_000]), waits=st.sampled_from([0, 9_000]))
    def split_a_slot(self, data: st.DataObject, at: int, waits: int) -> None:
        """Money is split as time is; the first part's is rounded up."""
        if waits:
            self.pass_time(waits)
        now = self.clock.now_ms()
        running = [slot for slot in self.held_slots() if max(slot.counts_from_ms, now) + at < slot.to_ms]
        if not running:
            return
        slot = data.draw(st.sampled_from(running))
        at_ms = max(slot.counts_from_ms, now) + at
        with self.plane.database.write() as session:
            rows = slots.split(self.plane, session, slot.id, slot.holder, at_ms)
        left = self.end(slot, "split")
        first = self.part(slot, rows[0].key, slot.from_ms, at_ms, slot.holder)
        second = self.part(slot, rows[1].key, at_ms, slot.to_ms, slot.holder)
        first.paid_dc = min(left, first.cost(at_ms - first.counts_from_ms))
        second.paid_dc = left - first.paid_dc

    @rule(data=st.data())
    def merge_slots(self, data: st.DataObject) -> None:
        pairs = [
            (one, other)
            for one in self.held_slots()
            for other in self.held_slots()
            if (one.gpu, one.price_dc, one.holder, one.to_ms)
            == (other.gpu, other.price_dc, other.holder, other.from_ms)
        ]
        if not pairs:
            return
        early, late = data.draw(st.sampled_from(pairs))
        with self.plane.database.write() as session:
            row = slots.merge(self.plane, session, late.id, early.id, early.holder)
        left = self.end(early, "merged") + self.end(late, "merged")
        self.part(early, row.key, early.from_ms, late.to_ms, early.holder).paid_dc = left

    @rule(data=st.data())
    def give_a_slot_away(self, data: st.DataObject) -> None:
        if not self.held_slots():
            return
        slot = data.draw(st.sampled_from(self.held_slots()))
        other = CUSTOMERS[slot.holder == CUSTOMERS[0]]
        with self.plane.database.write() as session:
            row = slots.transfer(self.plane, session, slot.id, slot.holder, other)
        left = self.end(slot, "transferred")
        self.part(slot, row.key, slot.from_ms, slot.to_ms, other).paid_dc = left
        self.given[slot.holder] -= left
        self.given[other] += left

    @rule(target=leases, data=st.data(), more=st.sampled_from([1_333, 7_200_000]), ms=st.sampled_from([7_300, 50_000]))
    def run_on_a_slot(self, data: st.DataObject, more: int, ms: int):
        now = self.clock.now_ms()
        running = [slot for slot in self.held_slots() if slot.from_ms <= now < slot.to_ms]
        if not running:
            return multiple()
        slot = data.draw(st.sampled_from(running))
        lease = self.submit(slot.holder, None, "reserved", slot=slot.id)
        if isinstance(lease, Lease):
            for gpu_ms in (0, more):
                self.sign(lease, gpu_ms, 1)
                self.deliver_next(lease)
                self.pass_time(ms)
        return lease

    @rule(
        target=leases,
        customer=st.sampled_from(CUSTOMERS),
        budget=st.sampled_from([None, 20_000, 10_000_000]),
        tier=st.sampled_from(sorted(PRICES)),
        waits=st.booleans(),
    )
    def submit(self, customer: str, budget: int | None, tier: str, *, waits: bool = False, slot: str = ""):
        """What waits may evict spot leases; it is granted, if ever, when they have left."""
        run = RunRequest(id=new_id("run"), session=f"ses-{customer}", kind="run", python="3.11", gpu=["H100"],
                         tier=tier, slot=slot, budget_dc=budget, queue_timeout_ms=600_000 if waits else 0)  # fmt: skip
        try:
            with self.plane.database.write() as session:
                Broker(self.plane, session).submit(customer, run)
        except Error:
            return multiple()
        self.look()
        return next((lease for lease in self.all if lease.run == run.id), multiple())

    @rule(target=leases, customer=st.sampled_from(CUSTOMERS), ms=st.sampled_from([1_000, 29_000, 50_000]))
    def evict(self, customer: str, ms: int):
        """Spot leases wherever there is room, and somebody who needs one of the GPUs; then time passes."""
        before = len(self.all)
        for _ in GPUS:
            self.work(CUSTOMERS[customer == CUSTOMERS[0]], None, "spot", [(7_300, 7_000)], "stays open")
        self.submit(customer, None, "on_demand", waits=True)
        self.pass_time(ms)
        return multiple(*self.all[before:])

    @rule(target=leases)
    def granted_since(self):
        """Leases that no submission gave at once."""
        return multiple(*(lease for lease in self.all if not lease.sent and not lease.closed))

    @rule(lease=leases, more=st.sampled_from([0, 1, 900, 30_000, 7_200_000]), closes=st.integers(0, 4))
    def sign(self, lease: Lease, more: int, closes: int) -> None:
        if lease.closing:
            return
        kind = ReceiptKind.OPEN if lease.next_seq == 0 else ReceiptKind.CLOSE if closes == 0 else ReceiptKind.TICK
        lease.claimed_ms += more if kind is not ReceiptKind.OPEN else 0
        lease.closing = kind is ReceiptKind.CLOSE
        with self.plane.database.read() as session:
            seq = nonces.newest(session, CLUSTER)
            nonce = session.get_one(NonceRow, seq)
        receipt = receipts.Receipt(
            fabric_id=self.plane.fabric_id, operator="op-1", lease=lease.id, generation=1, seq=lease.next_seq,
            kind=kind, nonce_seq=seq, nonce=nonce.value, previous=lease.previous,
            gpus=(receipts.GpuLine(lease.gpu, 1000, lease.claimed_ms),),
            runs=(receipts.RunLine(lease.run, lease.claimed_ms),), task_count=0,
            task_root=receipts.task_root(()), simulated=True,
            **({"reason": "done"} if kind is ReceiptKind.CLOSE else {}),
        )  # fmt: skip
        lease.sent.append(Sent(receipt, lease.claimed_ms, nonce.issued_ms))
        lease.next_seq, lease.previous = lease.next_seq + 1, receipt.hash

    @rule(lease=leases)
    def deliver_next(self, lease: Lease) -> None:
        if lease.taken + 1 < len(lease.sent):
            self.deliver(lease, lease.sent[lease.taken + 1])

    @rule(
        target=leases,
        customer=st.sampled_from(CUSTOMERS),
        budget=st.sampled_from([None, 20_000]),
        tier=st.sampled_from(sorted(PRICES)),
        work=st.lists(
            st.tuples(st.sampled_from([1_000, 7_300, 50_000]), st.sampled_from([1, 900, 1_333, 7_200_000])),
            min_size=1,
            max_size=4,
        ),
        end=st.sampled_from(["stays open", "closes", "is released and goes on", "closes at once"]),
    )
    def work(self, customer: str, budget: int | None, tier: str, work: list[tuple[int, int]], end: str):
        """A lease as most are; without it little would ever be billed."""
        lease = self.submit(customer, budget, tier)
        if not isinstance(lease, Lease):
            return lease
        for ms, more in [(1_000, 0), *([] if end == "closes at once" else work)]:
            self.sign(lease, more, 1)
            self.deliver_next(lease)
            self.pass_time(ms)
        if end == "is released and goes on":
            self.release(lease)
            self.pass_time(29_000)
        if end != "stays open":
            self.sign(lease, 7 if end == "closes at once" else 7_200_000, 0)
            self.deliver_next(lease)
        return lease

    @rule(lease=leases, data=st.data())
    def deliver_any(self, lease: Lease, data: st.DataObject) -> None:
        if lease.sent:
            self.deliver(lease, data.draw(st.sampled_from(lease.sent)))

    @rule(lease=leases)
    def deliver_all_twice_and_backwards(self, lease: Lease) -> None:
        for sent in [*lease.sent, *reversed(lease.sent)]:
            self.deliver(lease, sent)

    @rule(lease=leases, lies=st.lists(st.sampled_from(sorted(LIES)), min_size=1, max_size=3), data=st.data())
    def lie(self, lease: Lease, lies: list[str], data: st.DataObject) -> None:
        """Under the number that would come next."""
        self.sign(lease, 900, 1)
        if lease.taken + 1 == len(lease.sent):
            return
        truth = lease.sent[lease.taken + 1].receipt
        self.bills_nothing(truth, OTHER_KEY)
        self.bills_nothing(replace(truth, lease=data.draw(st.sampled_from(self.all)).id, generation=7))
        for lie in lies:
            self.bills_nothing(LIES[lie](truth))

    @rule(lease=leases, data=st.data())
    def contradict(self, lease: Lease, data: st.DataObject) -> None:
        """Another body under a number that was taken bills nothing, and is kept once, of a lost lease not at all."""
        if lease.taken < 0:
            return
        said = data.draw(st.sampled_from(lease.sent[: lease.taken + 1])).receipt
        lie = replace(said, reason="x")
        for _ in range(2):
            self.bills_nothing(lie)
        with self.plane.database.read() as session:
            kept = session.scalars(select(EquivocationRow.hash).where(EquivocationRow.lease == lease.id)).all()
        assert kept.count(lie.hash) == 1 or (lease.lost and lie.hash not in kept)

    def bills_nothing(self, lie: receipts.Receipt, key: SigningKey = KEY) -> None:
        before = self.books()
        self.take(receipts.sign(lie, (), key).to_bytes())
        assert self.books()["meters"] == before["meters"]
        self.look()

    @rule(tier=st.sampled_from(sorted(PRICES)), dc=st.sampled_from([1, H100_PRICE // 2, H100_PRICE, 777_777]))
    def the_price_changes(self, tier: str, dc: int) -> None:
        """For leases from now on."""
        self.prices[tier] = dc
        with self.plane.database.write() as session:
            prices = {tier: self.prices[tier] for tier in PRICES}
            inventory.write_prices(session, CLUSTER, {"H100": prices}, self.clock.now_ms())
            note_change(session, self.clock.now_ms(), CLUSTER)

    def take(self, data: bytes) -> None:
        self.metering.take([Arrived("op-1", (bytes(KEY.verify_key),), data)])

    def deliver(self, lease: Lease, sent: Sent) -> None:
        before, aside = self.books(), self.set_aside(lease)
        self.take(sent.data)
        if sent.receipt.seq != lease.taken + 1 or lease.closed:
            assert self.books() == before, "what is early, known or of a lease that is over changes nothing"
            return
        now = self.clock.now_ms()
        if now - sent.nonce_ms > TOO_OLD_MS:
            assert self.books()["money"] == before["money"] or lease.released_ms is None
            lease.exact = False
            self.look()
            return
        lease.taken = sent.receipt.seq
        if sent.receipt.kind is ReceiptKind.OPEN:
            lease.opened_ms = max(sent.nonce_ms, lease.granted_ms)
        self.bill(lease, sent, now, aside)
        if sent.receipt.kind is ReceiptKind.CLOSE:
            lease.closed = True
        self.look()

    def set_aside(self, lease: Lease) -> int:
        with self.plane.database.read() as session:
            return session.get_one(LeaseRow, lease.id).set_aside_dc

    def bill(self, lease: Lease, sent: Sent, now: int, set_aside_dc: int) -> None:
        """DESIGN §7: the smaller of claim and window, a second at least in the end; of it what was held until then."""
        assert lease.opened_ms is not None
        with self.plane.database.read() as session:
            issued = session.execute(select(NonceRow.seq, NonceRow.issued_ms)).all()
        end = min((at for seq, at in issued if seq > sent.receipt.nonce_seq), default=now)
        if lease.released_ms is not None:
            end = min(end, lease.released_ms + 5_000)
        window = max(0, min(end, now) - lease.opened_ms)
        least = 1_000 if sent.receipt.kind is ReceiptKind.CLOSE else 0
        lease.billed_ms = max(min(sent.claim_ms, window), lease.billed_ms, least)
        due = -(-lease.billed_ms * lease.price_dc // 3_600_000)
        lease.charged_dc = max(min(due, set_aside_dc), lease.charged_dc)

    @rule(lease=leases)
    def release(self, lease: Lease) -> None:
        with self.plane.database.write() as session:
            row = session.get_one(LeaseRow, lease.id)
            active = row.state in {state.value for state in ACTIVE_LEASE_STATES}
            if active and row.release_ms is None:
                Broker(self.plane, session).release(row, row.generation, "done")
        self.look()

    @rule(ms=st.sampled_from([1_000, 7_000, 29_000, 170_000, 590_000]))
    def wait(self, ms: int) -> None:
        while ms > 0:
            self.pass_time(min(ms, 50_000))
            ms -= 50_000

    @rule()
    def the_operator_falls_silent(self) -> None:
        self.pass_time(301_000, heard=False)
        self.pass_time(1_000)

    @rule()
    def an_epoch_passes(self) -> None:
        self.pass_time(EPOCH_S * 1000)

    @rule(gpu=st.sampled_from(GPUS), act=st.sampled_from(["join", "leave", "kick"]))
    def move(self, gpu: str, act: str) -> None:
        gpu_id = gpu_id_hex(gpu)
        try:
            with self.plane.database.write() as session:
                book, epoch = PoolBook(session, self.plane.pool_rules), self.plane.ledger(session).epoch_now()
                if act == "join":
                    book.join("red", gpu_id, now_epoch=epoch, signed=SIGNED)
                elif act == "leave":
                    book.leave(gpu_id, now_epoch=epoch, signed=SIGNED)
                else:
                    book.kick(gpu_id, 4_000, now_epoch=epoch, signed=SIGNED)
        except PoolTermsRefused:
            return

    def books(self) -> dict[str, object]:
        with self.plane.database.read() as session:
            ledger = self.plane.ledger(session)
            rows = session.execute(select(LeaseGpuRow.lease, LeaseGpuRow.billed_ms, LeaseGpuRow.charged_dc)).all()
            return {"money": [ledger.balance(customer) for customer in CUSTOMERS], "meters": sorted(map(tuple, rows))}

    def slots_are_the_models(self) -> None:
        """Charged up to a minute ago at the latest, for the time in which the GPU was there; the rest is held."""
        with self.plane.database.read() as session:
            rows = {row.key: row for row in session.scalars(select(SlotRow))}
            for slot in self.slots:
                row = rows[slot.key]
                assert (row.ended, row.holder, row.paid_dc) == (slot.ended, slot.holder, slot.paid_dc)
                if not slot.holder or slot.ended:
                    continue
                due = min(self.looks[-1][0], slot.to_ms)
                assert row.accrued_ms == slot.counts_from_ms or due - MINUTE < row.accrued_ms <= due
                assert row.accrued_ms >= due - MINUTE
                used = self.up_ms(slot.counts_from_ms, row.accrued_ms)
                slot.charged_dc = min(slot.cost(used), slot.paid_dc)
                hold = self.plane.ledger(session).find_hold(slot.key)
                assert hold is not None
                assert (row.billed_ms, hold.held_dc) == (used, slot.paid_dc - slot.charged_dc)

    @invariant()
    def bills_are_the_models(self) -> None:
        self.slots_are_the_models()
        with self.plane.database.read() as session:
            meters = {row.lease: row for row in session.scalars(select(LeaseGpuRow))}
            leases = {row.id: row for row in session.scalars(select(LeaseRow))}
            for lease in self.all:
                meter, row = meters[lease.id], leases[lease.id]
                if lease.exact:
                    assert (meter.billed_ms, meter.charged_dc) == (lease.billed_ms, lease.charged_dc)
                assert meter.billed_ms <= max(row.least_ms, self.clock.now_ms() - lease.granted_ms)
            for customer in CUSTOMERS:
                charged = sum(row.charged_dc for row in leases.values() if row.customer == customer)
                charged += sum(slot.charged_dc for slot in self.slots if slot.holder == customer)
                balance = self.plane.ledger(session).balance(customer)
                assert balance.available + balance.held + charged == BALANCE + self.given[customer]

    @invariant()
    def every_checker_is_silent(self) -> None:
        self.steps += 1
        if self.steps % AUDIT_EVERY == 0:
            self.audit()

    def audit(self) -> None:
        with self.plane.database.read() as session:
            report = run_audit(session, CHECKS, now_ms=self.clock.now_ms())
        assert [(one.name, one.findings[0]) for one in report.results if one.findings] == []

    def teardown(self) -> None:
        if hasattr(self, "plane"):
            self.audit()


def _begin_anew(clock: ManualClock) -> Plane:
    """The one control plane of all lives, with what it had when nothing had happened yet, and this life's clock.

    Its engines stay, and with them every statement that they have compiled.
    """
    plane, begun = _begun()
    with closing(plane.database.writer.raw_connection()) as raw:
        assert raw.driver_connection is not None
        begun.backup(raw.driver_connection)
    return replace(plane, clock=SteadyClock(clock), distances=Distances(), fleets=Fleets())


@cache
def _begun() -> tuple[Plane, sqlite3.Connection]:
    """A fabric in which nothing has happened yet, and its database in memory."""
    folder = Path(tempfile.mkdtemp(prefix="life-"))
    atexit.register(shutil.rmtree, folder)
    clock = ManualClock()
    plane = build(Settings(state_dir=folder, epoch_s=EPOCH_S, allow_simulated=True), clock)
    event.listen(plane.database.writer, "connect", _without_sync)
    plane.database.close()
    bootstrap.apply(plane, bootstrap_file(folder))
    with plane.database.write() as session:
        _equip(session, clock.now_ms())
        session.add(OperatorWalletRow(operator="op-1", wallet=WALLET.address))
        PoolBook(session, plane.pool_rules).found("red", POOL_OF_ONE, Entrance.OPEN, now_epoch=0, signed=SIGNED)
    begun = sqlite3.connect(":memory:")
    with closing(plane.database.writer.raw_connection()) as raw:
        assert raw.driver_connection is not None
        raw.driver_connection.backup(begun)
    return plane, begun


def _without_sync(connection: sqlite3.Connection, _record: object) -> None:
    """Nothing here outlives the process."""
    connection.execute("PRAGMA synchronous = OFF")


def _equip(session: Session, now: int) -> None:
    """A cluster of two GPUs whose agent is connected."""
    session.add(ClusterRow(id=CLUSTER, operator="op-1", name="main", gateway="", version="", connection="c",
                           connected=True, last_heard_ms=now))  # fmt: skip
    session.flush()
    session.add(NodeRow(cluster=CLUSTER, name="n", address="", region="eu", cpu_milli=64_000, memory_bytes=1 << 40,
                        disk_bytes=1 << 40, python="3.11", cloudpickle="3.1.1", present=True, lost=False))  # fmt: skip
    for uuid in GPUS:
        session.add(GpuRow(uuid=uuid, id=gpu_id_hex(uuid), operator="op-1", cluster=CLUSTER, node="n", vendor="nvidia",
                           model="H100", name="H100", memory_bytes=80 * 10**9, simulated=True, healthy=True,
                           present=True, problem="", driver="", pcie="", share_sizes_milli=[], used_milli=0,
                           first_seen_ms=now))  # fmt: skip
    inventory.write_prices(session, CLUSTER, {"H100": PRICES}, now)


TestReceiptLife = ReceiptLife.TestCase
TestReceiptLife.settings = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a life takes longer than to read it
    derandomize=not THOROUGH,
    stateful_step_count=STEPS,
    max_examples=settings().max_examples // 5 if THOROUGH else 200,
)
pytestmark = pytest.mark.timeout(600)
