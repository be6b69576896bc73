"""The product's own EVM behind its JSON-RPC, with a clock that the tests move, and the contracts on it."""

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from eth_account import Account

from fabric.wire.clock import ManualClock
from fabric.wire.hashing import keccak256
from ledger import contracts
from ledger.chain import calls
from ledger.chain.book import AddressBook
from ledger.chain.calls import Call
from ledger.chain.client import ChainClient
from ledger.chain.deploy import Deployment, deploy
from ledger.chain.errors import ChainUnreachable
from ledger.chain.evm import Chain, serve
from ledger.chain.rpc import ask, connect
from ledger.chain.signer import Signer
from ledger.chain.transactions import Receipt

sys.path.insert(0, str(Path(__file__).parent))

BCT = USD = 10**18
EPOCH_S, WINDOW_S = 600, 60
PEOPLE = ("deployer", "customer", "poster", "reporter", "registrar", "heidi", "ivan")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"evm", "anvil"} & set(getattr(item, "fixturenames", ())):
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


class Anvil:
    """An anvil of our own, with the contracts on it; it mines a block per transaction and reorganises when told."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url, self.process = url, process
        self.people = {person: signer_of(person) for person in PEOPLE}
        for signer in self.people.values():
            self.request("anvil_setBalance", signer.address, hex(10**24))

    def address(self, person: str) -> str:
        return self.people[person].address

    def request(self, method: str, *params):
        assert self.process.poll() is None, "our own anvil has died; whoever answers is a stranger"
        answer = connect(self.url).provider.make_request(method, list(params))
        assert "error" not in answer, answer
        return answer["result"]

    def mine(self, blocks: int = 1) -> None:
        self.request("anvil_mine", hex(blocks))

    def reorg(self, depth: int) -> None:
        """Replaces so many blocks at the end by as many empty ones."""
        self.request("anvil_reorg", depth, [])


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    binary = find_anvil()
    if binary is None:
        pytest.skip("needs anvil: npm ci --ignore-scripts in ledger/contracts")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(binary), "--hardfork", "prague", "--port", str(port), "--silent"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield Anvil(url, process)
    finally:
        process.kill()
        process.wait()


def find_anvil() -> Path | None:
    """The binary on the PATH, else the one of the contracts' development packages."""
    found = shutil.which("anvil")
    beside = Path(contracts.__file__).parent / "node_modules" / "@foundry-rs"
    return Path(found) if found else next(beside.glob("anvil-*/bin/anvil"), None)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(ChainUnreachable):
            ask("chain id", lambda: connect(url).eth.chain_id)
            return
        time.sleep(0.02)
    raise AssertionError(f"anvil did not answer at {url}")
