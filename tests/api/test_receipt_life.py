"""Receipts, ledger, epochs and pools live a random life together, beside a model in plain Python of what is billed.

Leases open, tick and close by real signed receipts, which come in order, early, twice, late, forged, of another lease
or against what was said before; agents fall silent, spot leases leave for others, prices change, epochs close, GPUs
join and leave pools. Whatever happens, every checker of the audit is silent.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from nacl.signing import SigningKey
from scripted import BALANCE, H100_PRICE, KEY, OTHER_KEY, bootstrap_file
from sqlmodel import Session, col, select

from api import bootstrap, inventory, ledger_jobs, nonces, sweeps
from api.audit import API_CHECKS
from api.broker import Broker
from api.fleets import note_change
from api.metering import Arrived, Metering
from api.notice_tables import NoticeRow
from api.plane import build
from api.schemas import RunRequest
from api.settings import Settings
from api.tables import ClusterRow, EquivocationRow, GpuRow, LeaseGpuRow, LeaseRow, NodeRow, NonceRow
from fabric.wire import receipts
from fabric.wire.clock import ManualClock
from fabric.wire.errors import Error
from fabric.wire.ids import new_id
from fabric.wire.machines import ACTIVE_LEASE_STATES
from fabric.wire.receipts import ReceiptKind
from ledger.audit import run_audit
from ledger.checks import LEDGER_CHECKS
from ledger.errors import PoolTermsRefused
from ledger.leaves import gpu_id_hex
from ledger.poolbook import PoolBook, Signed
from ledger.pools import Entrance
from ledger.split import POOL_OF_ONE

CLUSTER, GPUS, CUSTOMERS = "op-1/main", ("GPU-1", "GPU-2"), ("alice", "bob")
EPOCH_S = 3_600
CHECKS = (*LEDGER_CHECKS, *API_CHECKS)
"""Pools are moved here without a wallet's word, which their own checkers would miss."""
SIGNED = Signed("0x" + "11" * 20, b"s", 0)
TOO_OLD_MS = 600_000
PRICES = {"on_demand": H100_PRICE, "spot": H100_PRICE // 2}
THOROUGH = settings().max_examples > 100
LOOK_EVERY = 1 if THOROUGH else 10
"""So many steps between two runs of all checkers: what they look for stays in the rows."""

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
    billed_ms: int = 0
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


class ReceiptLife(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="life-"))
        shutil.copytree(_begun(), self.folder, dirs_exist_ok=True)
        self.clock = ManualClock()
        self.plane = build(_settings(self.folder), self.clock)
        self.metering = Metering(self.plane)
        self.all: list[Lease] = []
        self.prices = dict(PRICES)
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
        sweeps.sweep(self.plane)
        ledger_jobs.tick(self.plane)
        self.look()

    def look(self) -> None:
        """What the control plane decided by itself about leases: granted to who waited, released, noticed, lost."""
        with self.plane.database.read() as session:
            known = {lease.id for lease in self.all}
            for row in session.scalars(select(LeaseRow).where(col(LeaseRow.id).not_in(known))):
                gpu = session.scalars(select(LeaseGpuRow.gpu).where(LeaseGpuRow.lease == row.id)).one()
                assert row.price_dc_per_gpu_hour == self.prices[row.tier]
                self.all.append(Lease(row.id, row.run, row.customer, gpu, row.granted_ms, self.prices[row.tier]))
            for lease in self.all:
                row = session.get_one(LeaseRow, lease.id)
                if lease.released_ms is None and row.release_ms is not None:
                    lease.released_ms = row.release_ms
                lease.closed = lease.closed or row.state not in {state.value for state in ACTIVE_LEASE_STATES}
                notice = session.get(NoticeRow, lease.id)
                ended = notice is not None and self.clock.now_ms() >= notice.until_ms
                if row.state == "LOST" or ended or row.least_ms > 1_000:
                    lease.exact = False

    @rule(
        target=leases,
        customer=st.sampled_from(CUSTOMERS),
        budget=st.sampled_from([None, 20_000, 10_000_000]),
        tier=st.sampled_from(sorted(PRICES)),
        waits=st.booleans(),
    )
    def submit(self, customer: str, budget: int | None, tier: str, *, waits: bool = False):
        """What waits may evict spot leases; it is granted, if ever, when they have left."""
        run = RunRequest(id=new_id("run"), session=f"ses-{customer}", kind="run", python="3.11", gpu=["H100"],
                         tier=tier, budget_dc=budget, queue_timeout_ms=600_000 if waits else 0)  # fmt: skip
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
        """Another body under a number that was taken bills nothing, and is kept once."""
        if lease.taken < 0:
            return
        said = data.draw(st.sampled_from(lease.sent[: lease.taken + 1])).receipt
        lie = replace(said, reason="x")
        for _ in range(2):
            self.bills_nothing(lie)
        with self.plane.database.read() as session:
            kept = session.scalars(select(EquivocationRow.hash).where(EquivocationRow.lease == lease.id)).all()
        assert kept.count(lie.hash) == 1

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
            inventory.write_prices(session, CLUSTER, {"H100": self.prices}, self.clock.now_ms())
            note_change(session, self.clock.now_ms(), CLUSTER)

    def take(self, data: bytes) -> None:
        self.metering.take([Arrived("op-1", (bytes(KEY.verify_key),), data)])

    def deliver(self, lease: Lease, sent: Sent) -> None:
        before = self.books()
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
        self.bill(lease, sent, now)
        if sent.receipt.kind is ReceiptKind.CLOSE:
            lease.closed = True
        self.look()

    def bill(self, lease: Lease, sent: Sent, now: int) -> None:
        """DESIGN §7: the smaller of claim and window, a second at least in the end."""
        assert lease.opened_ms is not None
        with self.plane.database.read() as session:
            issued = session.execute(select(NonceRow.seq, NonceRow.issued_ms)).all()
        end = min((at for seq, at in issued if seq > sent.receipt.nonce_seq), default=now)
        if lease.released_ms is not None:
            end = min(end, lease.released_ms + 5_000)
        window = max(0, min(end, now) - lease.opened_ms)
        least = 1_000 if sent.receipt.kind is ReceiptKind.CLOSE else 0
        lease.billed_ms = max(min(sent.claim_ms, window), lease.billed_ms, least)

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

    @invariant()
    def bills_are_the_models(self) -> None:
        with self.plane.database.read() as session:
            for lease in self.all:
                row = session.get_one(LeaseGpuRow, (lease.id, lease.gpu))
                if lease.exact:
                    assert row.billed_ms == lease.billed_ms
                    due = -(-row.billed_ms * lease.price_dc // 3_600_000)
                    assert row.charged_dc == min(due, session.get_one(LeaseRow, lease.id).set_aside_dc)
                most = max(session.get_one(LeaseRow, lease.id).least_ms, self.clock.now_ms() - lease.granted_ms)
                assert row.billed_ms <= most
            for customer in CUSTOMERS:
                own = select(LeaseRow).where(col(LeaseRow.customer) == customer)
                charged = sum(row.charged_dc for row in session.scalars(own))
                balance = self.plane.ledger(session).balance(customer)
                assert balance.available + balance.held + charged == BALANCE

    @invariant()
    def every_checker_is_silent(self) -> None:
        self.steps += 1
        if self.steps % LOOK_EVERY == 0:
            self.audit()

    def audit(self) -> None:
        with self.plane.database.read() as session:
            report = run_audit(session, CHECKS, now_ms=self.clock.now_ms())
        assert [(one.name, one.findings[0]) for one in report.results if one.findings] == []

    def teardown(self) -> None:
        if hasattr(self, "plane"):
            self.audit()
            self.plane.database.close()
            shutil.rmtree(self.folder)


def _settings(folder: Path) -> Settings:
    return Settings(state_dir=folder, epoch_s=EPOCH_S, allow_simulated=True)


@cache
def _begun() -> Path:
    """The state folder of a fabric in which nothing has happened yet; every life begins with a copy."""
    folder = Path(tempfile.mkdtemp(prefix="life-"))
    atexit.register(shutil.rmtree, folder)
    clock = ManualClock()
    plane = build(_settings(folder), clock)
    bootstrap.apply(plane, bootstrap_file(folder))
    with plane.database.write() as session:
        _equip(session, clock.now_ms())
        PoolBook(session, plane.pool_rules).found("red", POOL_OF_ONE, Entrance.OPEN, now_epoch=0, signed=SIGNED)
    plane.database.close()
    return folder


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
    stateful_step_count=25,
    max_examples=settings().max_examples // (12 if THOROUGH else 6),
)
pytestmark = pytest.mark.timeout(300)
