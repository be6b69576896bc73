"""The product's own EVM behind its JSON-RPC, with a clock that the tests move, and the contracts on it."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from eth_account import Account

from fabric.wire.clock import ManualClock
from fabric.wire.hashing import keccak256
from ledger.chain import calls
from ledger.chain.book import AddressBook
from ledger.chain.calls import Call
from ledger.chain.client import ChainClient
from ledger.chain.deploy import Deployment, deploy
from ledger.chain.evm import Chain, serve
from ledger.chain.signer import Signer
from ledger.chain.transactions import Receipt

BCT = USD = 10**18
EPOCH_S, WINDOW_S = 600, 60
PEOPLE = ("deployer", "customer", "poster", "reporter", "registrar", "heidi", "ivan")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "evm" in getattr(item, "fixturenames", ()):
            item.add_marker("chain")


def signer_of(person: str) -> Signer:
    return Signer(keccak256(b"test key of", person.encode()))


@dataclass
class Evm:
    """A running chain: its address, its clock, and people with funds."""

    url: str
    chain: Chain
    clock: ManualClock
    people: dict[str, Signer]

    def address(self, person: str) -> str:
        return self.people[person].address


@pytest.fixture(scope="module")
def evm() -> Iterator[Evm]:
    """Each mined block moves the clock by a second, so that many transactions do not wait for one another."""
    people = {person: signer_of(person) for person in PEOPLE}
    clock = ManualClock(1_800_000_000_000)
    chain = Chain([signer.address for signer in people.values()], clock)
    server = serve(chain, 0)
    stop = threading.Event()

    def mine() -> None:
        while not stop.wait(0.002):
            if chain.mine():
                clock.advance(1000)

    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)), threading.Thread(target=mine)]
    for thread in threads:
        thread.start()
    yield Evm(f"http://127.0.0.1:{server.server_port}", chain, clock, people)
    stop.set()
    server.shutdown()
    server.server_close()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def deployment(evm: Evm) -> Deployment:
    return Deployment(
        owner=evm.address("deployer"),
        reporters=(evm.address("reporter"),),
        registrar=evm.address("registrar"),
        genesis_holder=evm.address("customer"),
        genesis_wei=1_000_000 * BCT,
        poster=evm.address("poster"),
        stakers=Account.from_key(keccak256(b"stakers")).address,
        start_s=evm.clock.now_ms() // 1000,
        epoch_s=EPOCH_S,
        window_s=WINDOW_S,
        supply_wei=500_000_000 * BCT,
        epochs=2557,
    )


@dataclass
class Deployed:
    """The contracts, a client of them, and short words for what people do."""

    evm: Evm
    book: AddressBook
    client: ChainClient

    def send(self, person: str, call: Call) -> Receipt:
        return self.client.send(self.evm.people[person], call)

    def wait_until(self, second: int) -> None:
        """Moves the chain's time to ``second``, with a price of one dollar reported just before."""
        while (left := second - self.client.head().time_s) > 0:
            if left > 10:
                self._advance(left - 8)
                self.send("reporter", calls.report_price(USD))
            else:
                self._advance(left)

    def _advance(self, seconds: int) -> None:
        seen = self.client.head().number
        self.evm.clock.advance(max(seconds, 2) * 1000)
        deadline = time.monotonic() + 10
        while self.client.head().number == seen and time.monotonic() < deadline:
            pass

    def buy_dc(self, bct_wei: int) -> int:
        """The customer burns BCT and deposits the DC."""
        before = self.client.dc_balance(self.evm.address("customer"))
        self.send("customer", calls.approve_bct(self.book.data_credits))
        self.send("customer", calls.mint_dc(bct_wei, 1))
        dc = self.client.dc_balance(self.evm.address("customer")) - before
        self.send("customer", calls.deposit_dc(dc))
        return dc


@pytest.fixture
def new_deployment(evm: Evm, deployment: Deployment) -> Callable[[], Deployed]:
    """Deploys the contracts afresh, epoch 0 beginning now, with a price of one dollar."""

    def make() -> Deployed:
        book = deploy(evm.url, evm.people["deployer"], replace(deployment, start_s=evm.clock.now_ms() // 1000))
        deployed = Deployed(evm, book, ChainClient.open(evm.url, book))
        deployed.send("reporter", calls.report_price(USD))
        return deployed

    return make


@pytest.fixture
def deployed(new_deployment: Callable[[], Deployed]) -> Deployed:
    return new_deployment()
