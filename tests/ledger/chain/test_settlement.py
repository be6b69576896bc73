"""A ledger beside its chain: what customers deposit is used, burned, settled, proven, claimed and taken out again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from sqlalchemy import Engine

from fabric.wire.clock import ManualClock
from fabric.wire.merkle import levels, proof_in
from ledger.allocate import exit_leaves
from ledger.chain import calls
from ledger.chain.client import ChainClient
from ledger.chain.crediting import link_wallet
from ledger.chain.errors import Disagreement
from ledger.chain.indexer import Indexer
from ledger.chain.link import ChainLink
from ledger.chain.outbox import Outbox
from ledger.chain.queue import queue_of
from ledger.chain.settler import Settler
from ledger.chain.statement import closing_of
from ledger.chain.tables import create_chain_schema
from ledger.chain.terms import ChainFacts, Waiting, ask_chain, standing, terms_from
from ledger.chain.verifying import compare
from ledger.closing import file_of
from ledger.database import Transactions, open_engine
from ledger.epoch import EpochState, read_file
from ledger.queries import payout_proof
from ledger.settings import LedgerSettings
from ledger.store import Ledger
from ledger.tables import create_schema
from ledger.usage import Usage

BCT = 10**18
CONFIRMATIONS = 2
GPU = "0x" + "77" * 32


@dataclass
class Economy:
    """A ledger, the chain it is settled on, and what the control plane's jobs do with both."""

    deployed: object
    store: Transactions
    link: ChainLink
    settings: LedgerSettings
    clock: ManualClock

    @property
    def client(self) -> ChainClient:
        return self.link.client()

    def ledger(self, session) -> Ledger:
        return Ledger(session, self.clock, self.settings)

    def index(self) -> None:
        blocks = self.client.blocks()
        Indexer(blocks, self.store, self.ledger, self.link.book, self.clock, confirmations=CONFIRMATIONS).run(10_000)

    def read_to_the_end(self) -> None:
        """Until everything said so far is final and booked."""
        for _ in range(CONFIRMATIONS + 1):
            self.deployed._advance(2)
        self.index()

    def use(self, seq: int, gpu_ms: int, holder: str) -> None:
        with self.store.write() as session:
            self.ledger(session).charge_many(
                [
                    Usage(
                        lease_id="lea_1",
                        generation=1,
                        seq=seq,
                        run_id="run_1",
                        customer="alice",
                        operator="op_1",
                        pool="op_1",
                        holder=holder.lower(),
                        model="H100",
                        share_milli=1000,
                        price_dc_per_gpu_hour=360_000,
                        cumulative_gpu_ms=gpu_ms,
                        gpu_id=GPU,
                        at_ms=self.clock.now_ms(),
                    )
                ]
            )

    def ask(self, epoch: int) -> ChainFacts | Waiting:
        with self.store.read() as session:
            status = standing(session)
        return ask_chain(self.link, status, epoch, self.settings.schedule)

    def close(self, epoch: int) -> bytes:
        """Once the chain is final beyond the epoch's end."""
        end_s = self.client.epoch_end_s(epoch)
        self.deployed.wait_until(end_s)
        self.read_to_the_end()
        facts = self.ask(epoch)
        assert isinstance(facts, ChainFacts), facts
        self.clock.advance(max(0, end_s * 1000 - self.clock.now_ms()))
        with self.store.write() as session:
            self.ledger(session).close_epoch(epoch, terms_from(session, self.link, facts, payer_salt=b"salt"))
            return file_of(session, epoch)

    def settle(self, epochs: int) -> None:
        poster = self.deployed.evm.people["poster"]
        outbox = Outbox(self.client, poster, self.store, self.clock, CONFIRMATIONS)
        settler = Settler(self.client, outbox, self)
        for _ in range(200):
            if settler.step().posted == epochs:
                break
        self.deployed.wait_until(self.client.ready_at_s(epochs - 1))
        for _ in range(200):
            if settler.step().finalised == epochs:
                break
        assert self.client.finalised() == epochs
        self.read_to_the_end()

    def closing(self, epoch: int):
        with self.store.read() as session:
            body = file_of(session, epoch)
        return None if body is None else closing_of(body, self.link.settlement)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = open_engine("sqlite://")
    with engine.begin() as connection:
        create_schema(connection)
        create_chain_schema(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def economy(deployed, engine) -> Economy:
    link = ChainLink(deployed.evm.url, deployed.book, None, CONFIRMATIONS)
    start_s, epoch_s = link.span_s()
    settings = LedgerSettings(genesis_ms=start_s * 1000, epoch_ms=epoch_s * 1000, final_after_ms=0)
    economy = Economy(deployed, Transactions(engine), link, settings, ManualClock(start_s * 1000))
    with economy.store.write() as session:
        customer = deployed.evm.address("customer")
        link_wallet(session, economy.ledger(session), customer, "alice", at_ms=start_s * 1000)
    return economy


@pytest.fixture
def funded(economy) -> Economy:
    """Alice deposited a million DC, and holds some for a lease."""
    economy.deployed.buy_dc(10 * BCT)
    economy.read_to_the_end()
    with economy.store.write() as session:
        ledger = economy.ledger(session)
        assert ledger.balance("alice").available == 1_000_000
        ledger.hold("lea_1", "run_1", "alice", 50_000, "hold/lea_1")
    return economy


def test_from_deposit_to_claim_bills_burned_and_the_chains_total_are_one_sum(funded):
    heidi, people = funded.deployed.evm.address("heidi"), funded.deployed.evm.people
    funded.use(1, 120_000, heidi)
    body = funded.close(0)
    funded.settle(1)
    assert funded.client.dc_burned_total() == 12_000
    found = compare(funded.client, body)
    assert (found.state, found.faults) == (EpochState.FINALISED, ())
    with funded.store.read() as session:
        assert queue_of(session).state_of(0) is EpochState.FINALISED
        proof = payout_proof(session, 0, GPU, heidi.lower())
    payout = calls.Payout(bytes.fromhex(GPU[2:]), proof.values[2], proof.path)
    funded.client.send(people["heidi"], calls.claim(heidi, [payout]))
    assert funded.client.bct_balance_wei(heidi) == proof.values[2] == 12_000 * 10**13 * 95 // 100


def test_what_is_asked_back_is_set_aside_proven_and_paid_once(funded):
    customer = funded.deployed.evm.address("customer")
    funded.deployed.send("customer", calls.request_exit(300_000))
    body = funded.close(0)
    (exit_,) = read_file(body)[0].exits
    assert exit_ == (customer.lower(), 300_000)
    funded.settle(1)
    path = proof_in(levels(exit_leaves([exit_])), 0)
    funded.deployed.send("customer", calls.claim_exit(customer, 300_000, path))
    assert funded.client.dc_balance(customer) == 300_000
    again = funded.close(1)
    assert read_file(again)[0].exits == [exit_]
    with funded.store.read() as session:
        assert funded.ledger(session).balance("alice").exiting == 0


def test_an_epoch_waits_until_the_chain_is_final_beyond_its_end_and_has_its_price(economy):
    assert "the chain was not read yet" in economy.ask(0).why
    economy.index()
    assert "before the epoch's end" in economy.ask(0).why
    economy.deployed._advance(4 * 3600)  # nobody reports a price for that long
    economy.read_to_the_end()
    late = economy.client.epoch_end_s(12)
    assert economy.client.head().time_s > late
    assert "waits for its price: the price oracle is stale" in economy.ask(12).why
    assert isinstance(economy.ask(0), ChainFacts)


def test_a_ledger_that_counts_other_epochs_or_emits_otherwise_is_refused(economy):
    settings = economy.settings
    economy.link.expect_epochs(settings.genesis_ms, settings.epoch_ms)
    with pytest.raises(Disagreement, match="set FABRIC_EPOCH_S"):
        economy.link.expect_epochs(settings.genesis_ms, settings.epoch_ms + 1000)
    economy.deployed.wait_until(economy.client.epoch_end_s(0))
    economy.read_to_the_end()
    economy.settings = replace(settings, schedule=replace(settings.schedule, epochs=9))
    with pytest.raises(Disagreement, match="deploy with the ledger's"):
        economy.ask(0)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"burned_dc":"12000"', b'"burned_dc":"12001"', "disagrees with itself"),
        (b'"settlement":"chain', b'"settlement":"other', "was closed as"),
    ],
)
def test_a_file_that_was_changed_or_is_for_another_chain_is_not_sent(funded, old, new, words):
    funded.use(1, 120_000, funded.deployed.evm.address("heidi"))
    body = funded.close(0)
    closing_of(body, funded.link.settlement)
    assert old in body
    changed: Callable[[], object] = lambda: closing_of(body.replace(old, new), funded.link.settlement)
    with pytest.raises(Disagreement, match=words):
        changed()
    assert compare(funded.client, body.replace(old, new)).faults
    assert compare(funded.client, body).state is EpochState.CLOSED
