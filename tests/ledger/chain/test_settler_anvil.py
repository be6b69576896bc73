"""Outbox and settler on anvil, whose chain changes its mind: what a reorg took away is sent again, and only once."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.wire import merkle
from fabric.wire.clock import SystemClock
from ledger.chain.calls import Closing
from ledger.chain.client import ChainClient
from ledger.chain.deploy import Deployment, deploy
from ledger.chain.errors import WentBack
from ledger.chain.outbox import Outbox, SentState
from ledger.chain.settler import Settler, Step
from ledger.chain.tables import create_chain_schema
from ledger.database import Transactions, open_engine

BCT = 10**18
CONFIRMATIONS = 2
EMPTY = merkle.EMPTY_ROOT
EPOCHS = 20


class Closed:
    """The first epochs, each with a file of its own."""

    def __init__(self) -> None:
        self.count = 1

    def closing(self, epoch: int) -> Closing | None:
        if epoch >= self.count:
            return None
        return replace(Closing(epoch, 0, 0, 0, 0, EMPTY, EMPTY, EMPTY, EMPTY), file=bytes([epoch + 1]) * 32)


@pytest.fixture
def client(anvil) -> ChainClient:
    """Contracts whose first epochs are over already, with windows of a second."""
    now = int(anvil.request("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    people = {name: anvil.address(name) for name in ("deployer", "reporter", "registrar", "customer", "poster")}
    deployment = Deployment(
        owner=people["deployer"],
        reporters=(people["reporter"],),
        registrar=people["registrar"],
        genesis_holder=people["customer"],
        genesis_wei=BCT,
        poster=people["poster"],
        stakers=people["deployer"],
        start_s=now - 600 * EPOCHS,
        epoch_s=600,
        window_s=1,
        supply_wei=500_000_000 * BCT,
        epochs=2557,
    )
    book = deploy(anvil.url, anvil.people["deployer"], deployment)
    anvil.mine(CONFIRMATIONS + 5)
    return ChainClient.open(anvil.url, book)


@pytest.fixture
def outbox(anvil, client, tmp_path: Path) -> Outbox:
    engine = open_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    with engine.begin() as connection:
        create_chain_schema(connection)
    return Outbox(client, anvil.people["poster"], Transactions(engine), SystemClock(), CONFIRMATIONS)


def settle(settler: Settler, done: Callable[[Step], bool]) -> Step:
    deadline = time.monotonic() + 60
    while not done(step := settler.step()):
        assert time.monotonic() < deadline, step
    return step


def posted(outbox: Outbox, count: int) -> Callable[[Step], bool]:
    """So many epochs are, and the outbox has seen it: the block may have come between its look and the settler's."""
    return lambda step: step.posted >= count and not outbox.watch()


@pytest.mark.parametrize("depth", range(1, CONFIRMATIONS + 1))
def test_a_post_that_a_reorg_took_away_is_sent_again_under_its_nonce(anvil, client, outbox, depth):
    settler = Settler(client, outbox, Closed())
    before = client.next_nonce(anvil.address("poster"))
    settle(settler, posted(outbox, 1))
    assert outbox.find("post/0/1").state is SentState.MINED
    anvil.mine(depth - 1)
    anvil.reorg(depth)
    settle(settler, posted(outbox, 1))
    anvil.mine(CONFIRMATIONS)
    settler.step()
    assert outbox.find("post/0/1").state is SentState.DONE
    assert outbox.find("post/0/1").nonce == before
    assert (client.last_post_id(), client.posted()) == (1, 1)


def test_a_chain_that_loses_what_was_final_stops_the_settler(anvil, client, outbox):
    settler = Settler(client, outbox, Closed())
    settle(settler, posted(outbox, 1))
    anvil.mine(CONFIRMATIONS)
    settler.step()
    assert outbox.find("post/0/1").state is SentState.DONE
    anvil.reorg(CONFIRMATIONS + 3)
    with pytest.raises(WentBack, match="no longer has it"):
        settle(settler, posted(outbox, 1))


def test_epochs_are_settled_in_order_while_the_chain_reorganises_again_and_again(anvil, client, outbox):
    closed = Closed()
    settler = Settler(client, outbox, closed)
    for epoch in range(5):
        closed.count = epoch + 1
        settle(settler, posted(outbox, epoch + 1))
        anvil.reorg(1)
        settle(settler, posted(outbox, epoch + 1))
    anvil.request("evm_increaseTime", 5)
    anvil.mine(1)
    settle(settler, lambda step: step.finalised == 5)
    assert (client.last_post_id(), client.finalised()) == (5, 5)
