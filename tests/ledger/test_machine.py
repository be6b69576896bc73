"""A ledger lives a random life beside a model in plain Python: numbers, sets and the formulas of the rules."""

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from sqlmodel import Session

from fabric.wire.clock import ManualClock
from ledger import queries
from ledger.audit import run_audit
from ledger.checks import LEDGER_CHECKS
from ledger.database import open_engine
from ledger.errors import BudgetExceeded, InsufficientFunds, NoHold, UsageIsFinal
from ledger.leaves import gpu_id_hex
from ledger.sealer import Sealer
from ledger.settings import LedgerSettings
from ledger.store import Balance, Ledger
from ledger.tables import create_schema
from ledger.usage import Usage

MINUTE = 60_000
EPOCH = 60 * MINUTE
FINAL_AFTER = 10 * MINUTE
CUSTOMERS = ("alice", "bob")
HOLDERS = ("0x" + "11" * 20, "0x" + "22" * 20)
BUDGET = 60_000
TEST_PRICE = Fraction(1, 10)


@dataclass
class ModelCharge:
    holder: str
    dc: int
    accepted_ms: int
    cumulative_ms: int


@dataclass
class ModelLease:
    name: str
    customer: str
    gpu: str
    share: int
    price: int
    held: int
    seq: int = 0
    open: bool = True
    charges: list[ModelCharge] = field(default_factory=list)

    def due(self, ms: int) -> int:
        return -(-ms * self.share * self.price // 3_600_000_000)

    @property
    def charged(self) -> int:
        return sum(charge.dc for charge in self.charges)

    @property
    def cumulative_ms(self) -> int:
        return self.charges[-1].cumulative_ms if self.charges else 0


class LedgerLife(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize()
    def begin(self) -> None:
        self.clock = ManualClock()
        self.genesis = self.clock.now_ms()
        self.engine = open_engine("sqlite://")
        with self.engine.begin() as connection:
            create_schema(connection)
        self.session = Session(self.engine)
        given = LedgerSettings(genesis_ms=self.genesis, epoch_ms=EPOCH, final_after_ms=FINAL_AFTER)
        self.ledger = Ledger(self.session, self.clock, given)
        self.available = dict.fromkeys(CUSTOMERS, 50_000)
        for customer in CUSTOMERS:
            self.ledger.credit_test(customer, 50_000, f"begin/{customer}")
        self.all: list[ModelLease] = []
        self.sent: dict[str, list[tuple[Usage, int]]] = defaultdict(list)
        self.final_through = 0
        self.closed = 0
        self.paid: dict[tuple[str, str], int] = defaultdict(int)
        self.number = 0

    def name(self) -> str:
        self.number += 1
        return f"n{self.number}"

    @rule(customer=st.sampled_from(CUSTOMERS), dc=st.integers(1, 10_000))
    def credit(self, customer: str, dc: int) -> None:
        source = self.name()
        for _ in range(2):
            self.ledger.credit_test(customer, dc, source)
        self.available[customer] += dc

    @rule(
        target=leases,
        customer=st.sampled_from(CUSTOMERS),
        gpu=st.sampled_from(["GPU-1", "GPU-2", "GPU-3"]),
        dc=st.sampled_from([10, 3_000, 9_000, 90_000]),
        share=st.sampled_from([100, 33]),
        price=st.sampled_from([0, 1, 77_777, 1_000_000]),
    )
    def hold(self, customer: str, gpu: str, dc: int, share: int, price: int):
        lease = ModelLease(self.name(), customer, gpu, share, price, dc)
        committed = sum(other.charged + other.held for other in self.all if other.customer == customer)
        args = (lease.name, f"run-{customer}", customer, dc, f"hold/{lease.name}")
        refusal = BudgetExceeded if committed + dc > BUDGET else InsufficientFunds
        if committed + dc > BUDGET or self.available[customer] < dc:
            with pytest.raises(refusal):
                self.ledger.hold(*args, budget_dc=BUDGET)
            return multiple()
        for _ in range(2):
            self.ledger.hold(*args, budget_dc=BUDGET)
        self.available[customer] -= dc
        self.all.append(lease)
        return lease

    @rule(
        lease=leases,
        times=st.lists(st.sampled_from([0, 1, 999, MINUTE, 5 * MINUTE]), min_size=1, max_size=4),
        holder=st.sampled_from(HOLDERS),
    )
    def charge(self, lease: ModelLease, times: list[int], holder: str) -> None:
        for ms in times:
            self.clock.advance(ms)
            usage = self.usage(lease, lease.seq + 1, lease.cumulative_ms + ms, holder)
            if not lease.open:
                with pytest.raises(NoHold):
                    self.ledger.charge(lease.name, usage)
                return
            expected = min(max(0, lease.due(usage.cumulative_gpu_ms) - lease.charged), lease.held)
            assert self.ledger.charge(lease.name, usage).dc == expected
            lease.seq += 1
            lease.held -= expected
            lease.charges.append(ModelCharge(holder, expected, self.clock.now_ms(), usage.cumulative_gpu_ms))
            self.sent[lease.name].append((usage, expected))

    @rule(lease=leases, data=st.data())
    def send_again(self, lease: ModelLease, data: st.DataObject) -> None:
        if self.sent[lease.name]:
            usage, dc = data.draw(st.sampled_from(self.sent[lease.name]))
            assert self.ledger.charge(lease.name, usage).dc == dc

    @rule(lease=leases, back_to=st.sampled_from([0, 1, 1000, MINUTE, 2 * MINUTE, 6 * MINUTE + 7]))
    def undo(self, lease: ModelLease, back_to: int) -> None:
        passed = [charge for charge in lease.charges if charge.cumulative_ms > back_to]
        source = self.name()
        args = (lease.name, 1, gpu_id_hex(lease.gpu), back_to, source)
        if not self.sent[lease.name]:
            with pytest.raises(NoHold):
                self.ledger.undo(*args)
            return
        if any(charge.accepted_ms < self.final_through for charge in passed):
            with pytest.raises(UsageIsFinal):
                self.ledger.undo(*args)
            return
        for _ in range(2):
            self.ledger.undo(*args)
        if passed:
            lease.charges = [charge for charge in lease.charges if charge.cumulative_ms <= back_to]
            back = sum(charge.dc for charge in passed)
            lease.held += back
            if back_to > lease.cumulative_ms:
                again = min(max(0, lease.due(back_to) - lease.charged), lease.held)
                lease.charges.append(ModelCharge(passed[0].holder, again, passed[0].accepted_ms, back_to))
                lease.held -= again
            if not lease.open:
                self.give_back(lease)

    @rule(lease=leases, dc=st.integers(1, 500))
    def top_up(self, lease: ModelLease, dc: int) -> None:
        source = self.name()
        if not lease.open:
            with pytest.raises(NoHold):
                self.ledger.top_up(lease.name, dc, source)
        elif self.available[lease.customer] < dc:
            with pytest.raises(InsufficientFunds):
                self.ledger.top_up(lease.name, dc, source)
        else:
            for _ in range(2):
                self.ledger.top_up(lease.name, dc, source)
            self.available[lease.customer] -= dc
            lease.held += dc

    @rule(lease=leases)
    def release(self, lease: ModelLease) -> None:
        assert self.ledger.release_hold(lease.name) == lease.held
        lease.open = False
        self.give_back(lease)

    def give_back(self, lease: ModelLease) -> None:
        self.available[lease.customer] += lease.held
        lease.held = 0

    @rule(ms=st.sampled_from([1, MINUTE, 9 * MINUTE, 10 * MINUTE, EPOCH // 2, EPOCH]))
    def wait(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule()
    def finalise(self) -> None:
        through = self.clock.now_ms() - FINAL_AFTER
        standing = [c for lease in self.all for c in lease.charges]
        expected = sum(c.dc for c in standing if self.final_through <= c.accepted_ms < through)
        assert self.ledger.finalise_usage() == expected
        self.final_through = max(self.final_through, self.ledger._finality.through_ms())
        assert self.final_through <= max(through, 0)

    @rule()
    def close(self) -> None:
        end = self.genesis + (self.closed + 1) * EPOCH
        if self.clock.now_ms() < end:
            return
        result = self.ledger.close_epoch(self.closed)
        start = self.genesis + self.closed * EPOCH
        counted = [
            (lease, charge)
            for lease in self.all
            for charge in lease.charges
            if start <= charge.accepted_ms + FINAL_AFTER < end
        ]
        burned = sum(charge.dc for _, charge in counted)
        assert result.totals.burned_dc == burned
        worth = Fraction(burned, 100_000) / TEST_PRICE * 10**18
        assert result.totals.paid_wei == worth.numerator // worth.denominator
        for lease, charge in counted:
            self.paid[gpu_id_hex(lease.gpu), charge.holder] += charge.dc
        self.closed += 1
        self.final_through = self.ledger._finality.through_ms()

    @rule()
    def seal(self) -> None:
        Sealer(self.session).seal(self.clock.now_ms())

    @invariant()
    def balances_are_the_models(self) -> None:
        for customer in CUSTOMERS:
            held = sum(lease.held for lease in self.all if lease.customer == customer)
            assert self.ledger.balance(customer) == Balance(self.available[customer], held, 0)

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        for (gpu_id, holder), dc in self.paid.items():
            flow = queries.gpu_cash_flow(self.session, gpu_id).items
            assert sum(line.dc for line in flow if line.holder == holder) == dc
        for gpu in {lease.gpu for lease in self.all if self.sent[lease.name]}:
            leases = [lease for lease in self.all if lease.gpu == gpu]
            view = queries.gpu(self.session, gpu_id_hex(gpu))
            assert view is not None
            used = (sum(lease.cumulative_ms * lease.share for lease in leases), sum(lease.charged for lease in leases))
            assert (view.share_milli_ms, view.used_dc) == used
            counted = sum(dc for (gpu_id, _), dc in self.paid.items() if gpu_id == gpu_id_hex(gpu))
            assert view.rewarded_dc == counted
        report = run_audit(self.session, LEDGER_CHECKS, now_ms=self.clock.now_ms())
        assert report.clean, report
        self.session.close()
        self.engine.dispose()

    def usage(self, lease: ModelLease, seq: int, cumulative_ms: int, holder: str) -> Usage:
        return Usage(
            lease_id=lease.name,
            generation=1,
            seq=seq,
            run_id=f"run-{lease.customer}",
            customer=lease.customer,
            gpu_id=gpu_id_hex(lease.gpu),
            operator="op",
            pool="op",
            holder=holder,
            model="H100",
            share_milli=lease.share,
            price_dc_per_gpu_hour=lease.price,
            cumulative_gpu_ms=cumulative_ms,
            at_ms=self.clock.now_ms(),
        )


THOROUGH = settings().max_examples > 100

TestLedgerLife = LedgerLife.TestCase
TestLedgerLife.settings = settings(
    deadline=None,
    stateful_step_count=40 if THOROUGH else 20,
    max_examples=settings().max_examples // 3 if THOROUGH else 200,
)
pytestmark = pytest.mark.timeout(600)
