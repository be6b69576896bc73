"""The indexer on anvil: real logs, real reorgs of every depth, and a process killed with -9 again and again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from indexed import Place
from sqlalchemy import select
from sqlmodel import Session

from fabric.wire.hashing import keccak256
from ledger.chain import calls
from ledger.chain.book import AddressBook
from ledger.chain.calls import Call, Closing, Hosting, Payout
from ledger.chain.client import ChainClient
from ledger.chain.deploy import Deployment, deploy
from ledger.chain.errors import ChainUnreachable
from ledger.chain.following import Block
from ledger.chain.holders import holders_of
from ledger.chain.index import Index
from ledger.chain.indexer import Did
from ledger.chain.reading import BlockReader
from ledger.chain.rpc import connect
from ledger.chain.tables import ClaimRow, DepositRow, ExitRequestRow, FinalisationRow, MintRow, OwnerRow, PostRow
from ledger.database import open_engine
from ledger.leaves import address_bytes, payout_leaf
from ledger.store import Balance

BCT = USD = 10**18
CONFIRMATIONS = 2
GPU = keccak256(b"gpu 1")
EMPTY = bytes(32)
KILLS = 4


class World:
    """The contracts on anvil, and short words for what people do."""

    def __init__(self, anvil, book: AddressBook) -> None:
        self.anvil, self.book = anvil, book
        self.client = ChainClient.open(anvil.url, book)
        self.reader = BlockReader(connect(anvil.url), book)
        self.send("reporter", calls.report_price(USD))
        self.send("customer", calls.approve_bct(book.data_credits))
        self.send("customer", calls.mint_dc(BCT, 1))

    def send(self, person: str, call: Call) -> None:
        self.client.send(self.anvil.people[person], call)

    def place(self) -> Place:
        place = Place()
        place.link({"carol": self.anvil.address("customer")})
        return place

    def reread(self) -> Place:
        place = self.place()
        assert place.indexer(self.reader, CONFIRMATIONS, self.book).run(1000) is Did.RESTED
        return place


@pytest.fixture(scope="module")
def world(anvil) -> World:
    now = anvil.request("eth_getBlockByNumber", "latest", False)["timestamp"]
    deployment = Deployment(
        owner=anvil.address("deployer"),
        reporters=(anvil.address("reporter"),),
        registrar=anvil.address("registrar"),
        genesis_holder=anvil.address("customer"),
        genesis_wei=1_000_000 * BCT,
        poster=anvil.address("poster"),
        stakers=anvil.address("deployer"),
        start_s=int(now, 16),
        epoch_s=600,
        window_s=60,
        supply_wei=500_000_000 * BCT,
        epochs=2557,
    )
    anvil.mine(2)
    return World(anvil, deploy(anvil.url, anvil.people["deployer"], deployment))


def test_what_people_did_is_in_the_tables_and_what_is_final_in_the_books(world):
    heidi, ivan = world.anvil.address("heidi"), world.anvil.address("ivan")
    world.send("registrar", calls.register_gpu(heidi, GPU, keccak256(b"serial 1"), Hosting(EMPTY, EMPTY, ivan, 1)))
    world.send("customer", calls.deposit_dc(50_000))
    world.send("customer", calls.request_exit(20_000))
    world.anvil.mine()
    place = world.reread()
    assert place.balances(["carol"])["carol"] == Balance(50_000, 0, 0), "the request has one block less on it"
    world.send("heidi", calls.transfer_gpu(heidi, ivan, GPU))
    changed_s = world.client.head().time_s
    world.anvil.mine(CONFIRMATIONS)
    place = world.reread()
    assert place.balances(["carol"])["carol"] == Balance(30_000, 0, 20_000)
    with place.read() as session:
        mint = session.scalars(select(MintRow)).one()
        assert (mint.bct_wei, mint.dc, mint.price_usd_e18) == (BCT, 100_000, USD)
        assert [row.dc for row in session.scalars(select(DepositRow))] == [50_000]
        assert [row.requested_dc for row in session.scalars(select(ExitRequestRow))] == [20_000]
        owners = session.scalars(select(OwnerRow).order_by(OwnerRow.block_number)).all()
        assert [row.holder for row in owners] == [heidi.lower(), ivan.lower()]
        assert owners[1].from_ms == changed_s * 1000
        holders = holders_of(session, ["0x" + GPU.hex(), "0x" + EMPTY.hex()])
        assert holders == {"0x" + GPU.hex(): [(owners[0].from_ms, heidi.lower()), (changed_s * 1000, ivan.lower())]}
        assert Index(session).status().tip == world.client.head().number


@pytest.mark.parametrize("depth", range(1, CONFIRMATIONS + 4))
def test_after_a_reorg_of_any_depth_the_tables_equal_a_reading_from_zero_or_the_indexer_halts(world, depth):
    place = world.place()
    indexer = place.indexer(world.reader, CONFIRMATIONS, world.book)
    for dc in (10, 20, 30, 40, 50, 60):
        world.send("customer", calls.deposit_dc(dc))
    assert indexer.run(1000) is Did.RESTED
    before = place.events()
    world.anvil.reorg(depth)
    did = indexer.run(1000)
    if depth > CONFIRMATIONS:
        assert (did, place.events()) == (Did.HALTED, before)
        return
    fresh = world.reread()
    assert did is Did.RESTED
    assert place.events() == fresh.events() != before
    world.send("customer", calls.deposit_dc(7))
    world.anvil.mine(CONFIRMATIONS)
    assert indexer.run(1000) is Did.RESTED
    fresh = world.reread()
    assert (place.events(), place.balances(["carol"])) == (fresh.events(), fresh.balances(["carol"]))


def test_a_block_that_left_the_chain_while_its_logs_were_read_is_read_again(world):
    lost = world.reader.block(world.client.head().number)
    assert lost is not None
    world.anvil.reorg(1)
    with pytest.raises(ChainUnreachable):
        world.reader.logs(lost)
    assert world.reader.block(lost.number + 1000) is None
    made_up = Block(lost.number, keccak256(b"no such block"), lost.parent, lost.time_s)
    with pytest.raises(ChainUnreachable):
        world.reader.logs(made_up)


PROCESS = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from sqlmodel import Session
from fabric.wire.clock import SystemClock
from ledger.chain.book import AddressBook
from ledger.chain.indexer import Indexer
from ledger.chain.reading import BlockReader
from ledger.chain.rpc import connect
from ledger.database import open_engine
from ledger.leaves import address_bytes, payout_leaf
from ledger.store import Ledger

url, book, database, confirmations = sys.argv[1:]

class Store:
    engine = open_engine(database)
    @contextmanager
    def write(self):
        with Session(self.engine) as session:
            yield session
            session.commit()
    read = write

book = AddressBook.read(Path(book))
reader = BlockReader(connect(url), book)
clock, k = SystemClock(), int(confirmations)
indexer = Indexer(reader, Store(), lambda session: Ledger(session, clock), book, clock, confirmations=k)
print("ready", flush=True)
while True:
    print(indexer.step(), flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def start(world, tmp_path) -> Callable[[], subprocess.Popen[str]]:
    """Starts an indexer as a process on a database in a file."""
    book, database = tmp_path / "book.json", tmp_path / "ledger.db"
    world.book.write(book)
    database.write_bytes(world.place().dump())
    arguments = [world.anvil.url, str(book), f"sqlite:///{database}", str(CONFIRMATIONS)]
    return lambda: subprocess.Popen(
        [sys.executable, "-P", "-c", PROCESS, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_a_process_killed_with_minus_nine_again_and_again_loses_and_doubles_nothing(world, start, tmp_path):
    for kill in range(KILLS):
        world.send("customer", calls.deposit_dc(100 + kill))
        process = start()
        assert process.stdout is not None
        for _ in range(2 + 3 * kill):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if kill % 2:
            world.anvil.reorg(1)
    process = start()
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    while process.stdout.readline().strip() != "rested":
        assert time.monotonic() < deadline
    process.kill()
    process.wait()
    process.stdout.close()
    place, fresh = Place(), world.reread()
    place.engine = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert place.events() == fresh.events()
    assert place.balances(["carol"]) == fresh.balances(["carol"])
    with Session(place.engine) as session:
        assert Index(session).status().halted == ""
    place.engine.dispose()


def test_a_settled_and_claimed_epoch_is_in_the_tables_as_the_contracts_told_it(world):
    """The last one here: no ledger promised the claim, so an indexer for which it is final halts."""
    client, heidi = world.client, world.anvil.address("heidi")
    paid = 10**15
    stake = paid * client.stake_bps(0) // 10_000
    root = payout_leaf(GPU, address_bytes(heidi), paid - stake)
    words = (0, 1_000, paid - stake, stake, 0, root, EMPTY, keccak256(b"usage"), keccak256(b"file"))
    world.anvil.request("evm_increaseTime", 601)
    world.send("reporter", calls.report_price(USD))
    world.send("poster", calls.post(Closing(*words)))
    value, ready_at_s = client.value_wei(0, 1_000), client.ready_at_s(0)
    world.anvil.request("evm_increaseTime", 61)
    world.anvil.mine()
    world.send("poster", calls.finalise(Closing(*words)))
    world.send("ivan", calls.claim(heidi, [Payout(GPU, paid - stake, [])]))
    place = Place()
    assert place.indexer(world.reader, 10_000, world.book).run(1000) is Did.RESTED
    with place.read() as session:
        post = session.scalars(select(PostRow)).one()
        assert (post.epoch, post.burned_dc, post.rewards_wei, post.stake_wei) == words[:4]
        assert (post.payout_root, post.usage_root, post.file) == (root, words[7], words[8])
        assert (post.value_wei, post.ready_at_s) == (value, ready_at_s)
        done = session.scalars(select(FinalisationRow)).one()
        assert (done.epoch, done.post_id, done.paid_wei, done.payout_root) == (0, post.post_id, paid, root)
        claimed = session.scalars(select(ClaimRow)).one()
        assert (claimed.gpu_id, claimed.holder) == ("0x" + GPU.hex(), heidi.lower())
        assert claimed.wei == claimed.cumulative_wei == paid - stake
