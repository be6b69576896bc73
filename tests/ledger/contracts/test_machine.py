"""All contracts together against a plain-Python model, in any order of actions, also wrong ones.

Each rule asks the model first, then the contracts: both do the same, or both refuse with the same error. After each
step the books are compared and the invariants of money are checked.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from fabric.wire import merkle

BCT = USD = 10**18
DAY = 86_400
SUPPLY, EPOCHS, GENESIS, BOND = 1000 * BCT, 8, 1_000_000 * BCT, 10 * BCT
EPOCH_SECONDS, WINDOW, FRESHNESS, STEP_BPS, STAKE_BPS = 600, 60, 3600, 2000, 1000
START = 1_800_000_000
CUSTOMERS = ("alice", "bob")
HOLDERS = ("heidi", "ivan")
GPUS = (b"\x01" * 32, b"\x02" * 32)
BURNED = st.sampled_from((0, 10, 50, 100, 101))
EXITED = st.sampled_from((0, 50, 100))
PAY = st.sampled_from(("nothing", "half", "all", "all", "value", "more"))
EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "60"))
SHRINK = "CONTRACT_EXAMPLES" in os.environ  # a failure shows itself within the time of a quick run; shrink on demand


class No(Exception):
    """The model refuses, with the error the contracts must give."""


class OracleModel:
    """Median, step, gaps and averages by going through all observations."""

    def __init__(self) -> None:
        self.reports: dict[int, tuple[int, int]] = {}
        self.path: list[tuple[int, int]] = []
        self.base = 0
        self.halted = False

    def report(self, now: int, reporter: int, price: int) -> None:
        self.reports[reporter] = (now, price)
        fresh = self._fresh(now)
        if self.halted or len(fresh) < 2:
            return
        median = self._median(fresh)
        if self.path:
            anchor = [p for t, p in self.path[self.base :] if t <= now - 3600] or [self.path[self.base][1]]
            if abs(median - anchor[-1]) * 10_000 > anchor[-1] * STEP_BPS:
                self.halted = True
                return
        self.path.append((now, median))

    def resume(self, now: int) -> None:
        if not self.halted:
            raise No("NotHalted")
        fresh = self._fresh(now)
        if len(fresh) < 2:
            raise No("TooFewReports")
        self.halted, self.base = False, len(self.path)
        self.path.append((now, self._median(fresh)))

    def read(self, time: int) -> tuple[int, int]:
        if self.halted:
            raise No("OracleHalted")
        known = [(t, p) for t, p in self.path if t <= time]
        if not known or time - known[-1][0] > FRESHNESS:
            later = [(t, p) for t, p in self.path if t > time]
            if not later:
                raise No("NoPrice")
            time = later[0][0]
            known.append(later[0])
        return known[-1][1], self._average(known, time)

    @staticmethod
    def _average(known: list[tuple[int, int]], time: int) -> int:
        start = max(known[0][0], time - DAY)
        if time == start:
            return known[-1][1]
        ends = [t for t, _ in known[1:]] + [time]
        area = sum(p * max(0, end - max(t, start)) for (t, p), end in zip(known, ends, strict=True))
        return area // (time - start)

    def _fresh(self, now: int) -> list[int]:
        return sorted(p for t, p in self.reports.values() if now - t <= FRESHNESS)

    @staticmethod
    def _median(fresh: list[int]) -> int:
        return (fresh[(len(fresh) - 1) // 2] + fresh[len(fresh) // 2]) // 2


@dataclass
class Draft:
    """What the ledger has worked out up to an epoch: cumulative sums, and this epoch's closing."""

    payouts: dict[tuple[bytes, str], int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    burned_total: int = 0
    closing: Any = None
    paid: int = 0
    rewards: int = 0
    burned: int = 0
    value: int = 0
    ready_at: int = 0
    post_id: int = 0


@dataclass
class Model:
    """The books of all contracts as plain integers."""

    oracle: OracleModel = field(default_factory=OracleModel)
    now: int = START
    bct: dict[str, int] = field(default_factory=lambda: {"treasury": GENESIS})
    dc: dict[str, int] = field(default_factory=dict)
    bct_burned: int = 0
    bonds_burned: int = 0
    deposited: int = 0
    burned: int = 0
    requested: dict[str, int] = field(default_factory=dict)
    request_mark: dict[str, int] = field(default_factory=dict)
    exit_paid: dict[str, int] = field(default_factory=dict)
    settled_at: int = START
    done: list[Draft] = field(default_factory=list)
    queue: list[Draft] = field(default_factory=list)
    posts: int = 0
    disputes: dict[int, tuple[str, int]] = field(default_factory=dict)
    reminted: int = 0
    paid: int = 0
    promised: int = 0
    value: int = 0
    claimed: dict[tuple[bytes, str], int] = field(default_factory=dict)

    def add(self, book: dict[str, int], who: str, amount: int) -> None:
        book[who] = book.get(who, 0) + amount

    def last(self) -> Draft:
        return self.done[-1] if self.done else Draft()

    def head(self) -> Draft:
        return self.queue[-1] if self.queue else self.last()

    @property
    def posted(self) -> int:
        return len(self.done) + len(self.queue)

    @staticmethod
    def scheduled(epoch: int) -> int:
        x = min(epoch, EPOCHS)
        return SUPPLY * x * (2 * EPOCHS - x) // EPOCHS**2

    def bound(self, epoch: int) -> int:
        return self.scheduled(epoch + 1) - self.scheduled(epoch) + self.bct_burned - self.reminted

    def mint(self, who: str, bct: int) -> None:
        if self.bct.get(who, 0) < bct:
            raise No("ERC20InsufficientBalance")
        dc = bct * min(self.oracle.read(self.now)) // 10**31
        if dc == 0:
            raise No("TooFewCredits")
        self.add(self.bct, who, -bct)
        self.add(self.dc, who, dc)
        self.bct_burned += bct

    def deposit(self, who: str, dc: int) -> None:
        if dc == 0:
            raise No("ZeroAmount")
        if self.dc.get(who, 0) < dc:
            raise No("ERC20InsufficientBalance")
        self.add(self.dc, who, -dc)
        self.deposited += dc

    def request_exit(self, who: str, dc: int) -> None:
        if dc == 0:
            raise No("ZeroAmount")
        self.add(self.requested, who, dc)
        self.request_mark[who] = len(self.done)

    def refusal(self, draft: Draft, epoch: int) -> bool:
        exited, before = sum(draft.exits.values()), sum(self.last().exits.values())
        covered = before <= exited and draft.burned + exited <= self.deposited - self.burned
        return draft.paid > self.bound(epoch) or not covered

    def value_of(self, epoch: int, burned: int) -> int:
        return burned * 10**31 // max(self.oracle.read(START + (epoch + 1) * EPOCH_SECONDS - 1)) if burned else 0

    def post(self, draft: Draft, epoch: int) -> None:
        if epoch != self.posted:
            raise No("OutOfOrder")
        if self.now < START + (epoch + 1) * EPOCH_SECONDS:
            raise No("NotOver")
        draft.value = self.value_of(epoch, draft.burned)
        if draft.paid > draft.value:
            raise No("AboveValue")
        if self.refusal(draft, epoch):
            raise No("Refused")
        self.posts += 1
        draft.post_id, draft.ready_at = self.posts, self.now + WINDOW
        self.queue.append(draft)

    def finalise(self, draft: Draft | None) -> bool:
        if not self.queue or draft is None:
            raise No("NotPosted")
        if draft is not self.queue[0]:
            raise No("WrongClosing")
        if self.now < draft.ready_at:
            raise No("WindowOpen")
        if draft.post_id in self.disputes:
            raise No("UnderDispute")
        epoch = len(self.done)
        if self.refusal(draft, epoch):
            self.queue.clear()
            return False
        self.reminted += max(0, draft.paid - (self.scheduled(epoch + 1) - self.scheduled(epoch)))
        self.done.append(self.queue.pop(0))
        self.paid += draft.paid
        self.promised += draft.rewards
        self.value += draft.value
        self.burned += draft.burned
        self.settled_at = self.now
        self.add(self.bct, "stakers", draft.paid - draft.rewards)
        return True

    def _in_queue(self, epoch: int) -> Draft:
        if not len(self.done) <= epoch < self.posted:
            raise No("NotPosted")
        return self.queue[epoch - len(self.done)]

    def dispute(self, who: str, epoch: int) -> None:
        draft = self._in_queue(epoch)
        if self.now >= draft.ready_at:
            raise No("WindowClosed")
        if draft.post_id in self.disputes:
            raise No("UnderDispute")
        self.disputes[draft.post_id] = (who, BOND)
        self.add(self.bct, who, -BOND)

    def resolve(self, epoch: int, *, upheld: bool) -> None:
        draft = self._in_queue(epoch)
        if draft.post_id not in self.disputes:
            raise No("NoDispute")
        who, bond = self.disputes.pop(draft.post_id)
        if upheld:
            del self.queue[epoch - len(self.done) :]
            self.add(self.bct, who, bond)
        else:
            self.bonds_burned += bond

    def reclaim(self, post_id: int) -> None:
        if post_id not in self.disputes:
            raise No("NoDispute")
        if any(draft.post_id == post_id for draft in self.queue):
            raise No("UnderDispute")
        who, bond = self.disputes.pop(post_id)
        self.add(self.bct, who, bond)

    def claim(self, holder: str, gpus: list[bytes], source: Draft) -> None:
        if source is not self.last() and source.closing[5] != self.last().closing[5]:
            raise No("WrongProof")
        due = {g: source.payouts[g, holder] - self.claimed.get((g, holder), 0) for g in gpus}
        if sum(due.values()) <= 0:
            raise No("NothingToClaim")
        for gpu, amount in due.items():
            self.claimed[gpu, holder] = self.claimed.get((gpu, holder), 0) + amount
        self.add(self.bct, holder, sum(due.values()))

    def claim_exit(self, who: str, cumulative: int) -> None:
        if cumulative > self.requested.get(who, 0):
            raise No("NotRequested")
        if self.request_mark.get(who, 0) == len(self.done) and self.now < self.settled_at + 30 * DAY:
            raise No("ExitNotDue")
        if self.last().exits.get(who) != cumulative:
            raise No("WrongProof")
        if cumulative <= self.exit_paid.get(who, 0):
            raise No("NothingToPay")
        self.add(self.dc, who, cumulative - self.exit_paid.get(who, 0))
        self.exit_paid[who] = cumulative


class ContractMachine(RuleBasedStateMachine):
    drafts = Bundle("drafts")

    def __init__(self, new_world: Callable[..., Any], reverts: Callable[..., Any]) -> None:
        super().__init__()
        self.reverts = reverts
        self.world = new_world(supply=SUPPLY, epochs=EPOCHS, bond=BOND, stake_bps=STAKE_BPS, genesis=GENESIS)
        self.model = Model()
        for person, amount in (*((c, 5000 * BCT) for c in CUSTOMERS), ("auditor", 1000 * BCT)):
            self.world.fund(person, amount)
            self.model.add(self.model.bct, "treasury", -amount)
            self.model.add(self.model.bct, person, amount)
        for person, spender in (("alice", "DataCredits"), ("bob", "DataCredits"), ("auditor", "Settlement")):
            self.world.send(person, "BCT", "approve", self.world.at[spender], 2**256 - 1)
        for reporter in range(3):
            self.both(
                lambda r=reporter: self.model.oracle.report(self.model.now, r, USD),
                f"reporter-{reporter + 1}",
                "PriceOracle",
                "report",
                USD,
            )

    def both(self, expected: Callable[[], Any], person: str, contract: str, function: str, *args: Any) -> Any:
        """The model and the contracts do the same, or refuse for the same reason."""
        try:
            wanted = expected()
        except No as refusal:
            with self.reverts(str(refusal)):
                self.world.send(person, contract, function, *args)
            return None
        got = self.world.send(person, contract, function, *args)
        if isinstance(wanted, bool):
            assert got is wanted
        return wanted

    @rule(seconds=st.sampled_from((1, 59, 60, 300, 600, 600, 3601, DAY, 31 * DAY)))
    def time_passes(self, seconds):
        self.world.pass_time(seconds)
        self.model.now += seconds

    @rule(reporter=st.integers(0, 2), factor=st.sampled_from((9500, 9900, 10_000, 10_100, 10_500, 7000, 14_000)))
    def report(self, reporter, factor):
        oracle = self.model.oracle
        price = oracle.path[-1][1] * factor // 10_000
        self.both(
            lambda: oracle.report(self.model.now, reporter, price),
            f"reporter-{reporter + 1}",
            "PriceOracle",
            "report",
            price,
        )

    @rule(factor=st.sampled_from((9800, 10_000, 10_300)))
    def everybody_reports(self, factor):
        price = self.model.oracle.path[-1][1] * factor // 10_000
        for reporter in range(3):
            self.both(
                lambda r=reporter: self.model.oracle.report(self.model.now, r, price),
                f"reporter-{reporter + 1}",
                "PriceOracle",
                "report",
                price,
            )

    @rule()
    def resume(self):
        self.both(lambda: self.model.oracle.resume(self.model.now), "owner", "PriceOracle", "resume")

    @rule(who=st.sampled_from(CUSTOMERS), bct=st.sampled_from((10**12, BCT + 1, 100 * BCT, 500 * BCT, 9000 * BCT)))
    def buy(self, who, bct):
        self.both(lambda: self.model.mint(who, bct), who, "DataCredits", "mint", bct, 0)

    @rule(who=st.sampled_from(CUSTOMERS), percent=st.sampled_from((0, 30, 100, 100, 101)))
    def deposit(self, who, percent):
        dc = -(-self.model.dc.get(who, 0) * percent // 100)
        self.both(lambda: self.model.deposit(who, dc), who, "DataCredits", "deposit", dc)

    @rule(who=st.sampled_from(CUSTOMERS), dc=st.sampled_from((0, 1, 1000, 10**6, 10**7)))
    def request_exit(self, who, dc):
        self.both(lambda: self.model.request_exit(who, dc), who, "DataCredits", "requestExit", dc)

    @rule(target=drafts, burned_pct=BURNED, exit_pct=EXITED, pay=PAY, split=st.integers(0, 100), skip=st.integers(0, 1))
    def post(self, burned_pct, exit_pct, pay, split, skip):
        epoch = self.model.posted + skip
        draft = self._draft(epoch, burned_pct, exit_pct, pay, split)
        self.both(lambda: self.model.post(draft, epoch), "poster", "Settlement", "post", draft.closing)
        return draft if draft.post_id else multiple()

    @rule(target=drafts, burned_pct=BURNED, exit_pct=EXITED, pay=PAY, factor=st.sampled_from((9000, 10_000, 10_500)))
    def work_through_an_epoch(self, burned_pct, exit_pct, pay, factor):
        """DC are bought and deposited, prices come until the epoch ends, and it is posted."""
        for who in CUSTOMERS:
            self.buy(who, 50 * BCT)
            self.deposit(who, 100)
        ends_in = START + (self.model.posted + 1) * EPOCH_SECONDS - self.model.now
        if ends_in > 0:
            self.time_passes(ends_in - 1)
            self.everybody_reports(factor)
            self.time_passes(1)
        return self.post(burned_pct, exit_pct, pay, 40, 0)

    def _draft(self, epoch: int, burned_pct: int, exit_pct: int, pay: str, split: int) -> Draft:
        m, head = self.model, self.model.head()
        left = max(0, m.deposited - head.burned_total - sum(head.exits.values()))
        draft = Draft(dict(head.payouts), dict(head.exits))
        draft.burned = left * burned_pct // 100
        for who in CUSTOMERS:
            wish = max(0, m.requested.get(who, 0) - head.exits.get(who, 0)) * exit_pct // 100
            granted = min(wish, max(0, left - draft.burned))
            m.add(draft.exits, who, granted)
            left -= granted
        draft.burned_total = head.burned_total + draft.burned
        draft.paid = self._pay(epoch, draft.burned, pay)
        stake = draft.paid * STAKE_BPS // 10_000
        draft.rewards = draft.paid - stake
        first = draft.rewards * split // 100
        for gpu, holder, amount in (
            (GPUS[0], HOLDERS[0], first),
            (GPUS[1], HOLDERS[0], 0),
            (GPUS[1], HOLDERS[1], draft.rewards - first),
        ):
            draft.payouts[gpu, holder] = draft.payouts.get((gpu, holder), 0) + amount
        draft.closing = self.world.closing(
            epoch,
            draft.paid,
            STAKE_BPS,
            burned_dc=draft.burned,
            exited_total=sum(draft.exits.values()),
            payout_root=merkle.root(self._payout_leaves(draft)),
            exit_root=merkle.root(self._exit_leaves(draft)),
        )
        return draft

    def _pay(self, epoch: int, burned: int, pay: str) -> int:
        try:
            value = self.model.value_of(epoch, burned)
        except No:
            return 0
        most = min(value, self.model.bound(epoch))
        return {"nothing": 0, "half": most // 2, "all": most, "value": value, "more": value + 1}[pay]

    def _payout_leaves(self, draft: Draft) -> list[bytes]:
        return [self.world.payout_leaf(gpu, holder, amount) for (gpu, holder), amount in sorted(draft.payouts.items())]

    def _exit_leaves(self, draft: Draft) -> list[bytes]:
        return [self.world.exit_leaf(account, amount) for account, amount in sorted(draft.exits.items())]

    @rule()
    def finalise_next(self):
        draft = self.model.queue[0] if self.model.queue else None
        closing = draft.closing if draft else self.world.closing(len(self.model.done))
        self.both(lambda: self.model.finalise(draft), "anybody", "Settlement", "finalise", closing)

    @rule(resumed=st.booleans(), claiming=st.booleans())
    def finalise_after_its_window(self, resumed, claiming):
        """The oldest epoch's time comes; on request a halt is ended before, and everybody claims behind."""
        if resumed:
            self.everybody_reports(10_000)
            self.resume()
        if self.model.queue:
            self.time_passes(max(0, self.model.queue[0].ready_at - self.model.now))
            self.finalise_next()
        if claiming:
            for holder, customer in zip(HOLDERS, CUSTOMERS, strict=True):
                self.claim(holder, 0)
                self.claim_exit(customer, 0)

    @rule(draft=consumes(drafts))
    def finalise_any(self, draft):
        def expected():
            if draft.closing[0] != len(self.model.done):
                raise No("OutOfOrder")
            same = self.model.queue and self.model.queue[0].closing == draft.closing
            return self.model.finalise(self.model.queue[0] if same else draft)

        self.both(expected, "anybody", "Settlement", "finalise", draft.closing)

    @rule(ahead=st.integers(0, 2))
    def dispute(self, ahead):
        epoch = len(self.model.done) + ahead
        self.both(lambda: self.model.dispute("auditor", epoch), "auditor", "Settlement", "dispute", epoch)

    @rule(ahead=st.integers(0, 1), upheld=st.booleans())
    def resolve(self, ahead, upheld):
        epoch = len(self.model.done) + ahead
        self.both(lambda: self.model.resolve(epoch, upheld=upheld), "owner", "Settlement", "resolve", epoch, upheld)

    @rule(back=st.integers(0, 3))
    def reclaim_bond(self, back):
        post_id = self.model.posts - back
        if post_id >= 0:
            self.both(lambda: self.model.reclaim(post_id), "anybody", "Settlement", "reclaimBond", post_id)

    @rule(holder=st.sampled_from(HOLDERS), back=st.sampled_from((0, 0, 0, 1)))
    def claim(self, holder, back):
        if len(self.model.done) <= back:
            return
        source = self.model.done[-1 - back]
        keys, leaves = sorted(source.payouts), self._payout_leaves(source)
        mine = [(gpu, i) for i, (gpu, person) in enumerate(keys) if person == holder]
        payouts = [(gpu, source.payouts[gpu, holder], merkle.proof(leaves, i)) for gpu, i in mine]
        self.both(
            lambda: self.model.claim(holder, [g for g, _ in mine], source),
            "anybody",
            "Settlement",
            "claim",
            self.world.address(holder),
            payouts,
        )

    @rule(who=st.sampled_from(CUSTOMERS), extra=st.sampled_from((0, 0, 0, 1)))
    def claim_exit(self, who, extra):
        last = self.model.last()
        cumulative = last.exits.get(who, 0) + extra
        index = sorted(last.exits).index(who) if who in last.exits else 0
        proof = merkle.proof(self._exit_leaves(last), index) if last.exits else []
        self.both(
            lambda: self.model.claim_exit(who, cumulative),
            "anybody",
            "DataCredits",
            "claimExit",
            self.world.address(who),
            cumulative,
            proof,
        )

    @invariant()
    def the_books_agree(self):
        m, view = self.model, self.world.view
        assert view("Settlement", "posted") == m.posted
        assert view("Settlement", "finalised") == len(m.done)
        assert view("Settlement", "paidTotal") == m.paid
        assert view("Settlement", "promisedTotal") == m.promised
        assert view("Settlement", "claimedTotal") == sum(m.claimed.values())
        assert view("Settlement", "remintable") == m.bct_burned - m.reminted
        assert view("BCT", "totalSupply") == GENESIS + m.paid - m.bct_burned - m.bonds_burned
        assert view("DataCredits", "depositedTotal") == m.deposited
        assert view("DataCredits", "burnedTotal") == m.burned
        assert view("PriceOracle", "halted") is m.oracle.halted
        for person in (*CUSTOMERS, *HOLDERS, "auditor", "stakers"):
            assert view("BCT", "balanceOf", self.world.address(person)) == m.bct.get(person, 0)
        for person in CUSTOMERS:
            assert view("DataCredits", "balanceOf", self.world.address(person)) == m.dc.get(person, 0)

    @invariant()
    def money_is_bounded(self):
        m, view = self.model, self.world.view
        claimed, promised = view("Settlement", "claimedTotal"), view("Settlement", "promisedTotal")
        assert claimed <= promised <= view("Settlement", "paidTotal") <= m.value
        assert view("BCT", "totalSupply") <= GENESIS + m.scheduled(len(m.done))
        bonds = sum(bond for _, bond in m.disputes.values())
        assert view("BCT", "balanceOf", self.world.at["Settlement"]) == promised - claimed + bonds
        exits = sum(m.exit_paid.values())
        assert view("DataCredits", "balanceOf", self.world.at["DataCredits"]) == m.deposited - m.burned - exits
        assert exits <= view("DataCredits", "exitedTotal")
        assert m.deposited - m.burned - view("DataCredits", "exitedTotal") >= 0


def test_contracts_and_model_do_the_same_in_any_order(new_world, reverts):
    run_state_machine_as_test(
        lambda: ContractMachine(new_world, reverts),  # pyright: ignore[reportArgumentType] - any factory will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=80,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            phases=[Phase.generate, Phase.shrink] if SHRINK else [Phase.generate],
        ),
    )
