"""Outbox and settler against the product's own EVM: each epoch once and in order, whatever dies or runs beside."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, select

from fabric.wire import merkle
from fabric.wire.clock import ManualClock
from fabric.wire.hashing import keccak256
from ledger.chain import calls, outbox
from ledger.chain.calls import Closing
from ledger.chain.client import ChainClient
from ledger.chain.errors import Disagreement, NoFunds, Reverted
from ledger.chain.outbox import Outbox, Sent, SentState
from ledger.chain.settler import Settler, Step
from ledger.chain.signer import Signer
from ledger.chain.tables import OutboxRow, create_chain_schema
from ledger.database import Transactions, open_engine

CONFIRMATIONS = 2
EMPTY = merkle.EMPTY_ROOT


def closing(epoch: int, **members: int | bytes) -> Closing:
    return replace(Closing(epoch, 0, 0, 0, 0, EMPTY, EMPTY, EMPTY, EMPTY), **members)


class Made:
    """Closings of the first epochs."""

    def __init__(self, *made: Closing) -> None:
        self.made = list(made)

    def closing(self, epoch: int) -> Closing | None:
        return self.made[epoch] if epoch < len(self.made) else None


class Rows(Transactions):
    """A store on a SQLite file, which several processes may open."""

    def __init__(self, path: Path) -> None:
        self.engine = open_engine(f"sqlite:///{path}")
        with self.engine.begin() as connection:
            create_chain_schema(connection)
        super().__init__(self.engine)


@pytest.fixture
def rows(tmp_path) -> Rows:
    return Rows(tmp_path / "rows.db")


@pytest.fixture
def settler_of(deployed) -> Callable[..., Settler]:
    """A new settler, as a new process would make it; ``client`` and ``rows`` may be stand-ins that die."""

    def make(rows, made, client=None, person="poster", clock=None) -> Settler:
        client = client or deployed.client
        box = Outbox(client, deployed.evm.people[person], rows, clock or deployed.evm.clock, CONFIRMATIONS)
        return Settler(client, box, made)

    return make


def settle(settler: Settler, done: Callable[[Step], bool]) -> Step:
    """Steps until something holds, as the control plane's beat does."""
    deadline = time.monotonic() + 20
    while not done(step := settler.step()):
        assert time.monotonic() < deadline, step
    return step


def sent_by(deployed, person: str = "poster") -> int:
    return deployed.client.next_nonce(deployed.evm.address(person))


def posted(n: int) -> Callable[[Step], bool]:
    return lambda step: step.posted == n


def finalised(n: int) -> Callable[[Step], bool]:
    return lambda step: step.finalised == n


def test_closed_epochs_are_posted_in_order_and_finalised_after_their_windows(deployed, rows, settler_of):
    made, before = Made(closing(0, payout_root=b"\1" * 32), closing(1, payout_root=b"\2" * 32)), sent_by(deployed)
    settler = settler_of(rows, made)
    assert settler.step().text == "epoch 0 is not over by the chain's time"
    deployed.wait_until(deployed.client.epoch_end_s(1))
    settle(settler, posted(2))
    assert "the dispute window of epoch 0 is open" in settler.run(9).text
    deployed.wait_until(deployed.client.ready_at_s(1))
    assert settle(settler, finalised(2)).text == "epoch 2 is not closed"
    assert deployed.client.payout_root() == b"\2" * 32
    assert sent_by(deployed) - before == 4


def test_a_transaction_is_done_when_its_block_is_final(deployed, rows, settler_of):
    deployed.wait_until(deployed.client.epoch_end_s(0))
    settler = settler_of(rows, Made(closing(0)))
    settle(settler, posted(1))
    box = settler._outbox
    sent = box.find("post/0/1")
    assert sent.state is SentState.MINED
    assert sent.gas_used > 0
    for _ in range(CONFIRMATIONS):
        deployed.wait_until(deployed.client.head().time_s + 2)
    settler.step()
    assert box.find("post/0/1").state is SentState.DONE


class Mortal:
    """Passes calls on and kills its process with -9 before or after one of those that change something."""

    def __init__(self, client: ChainClient, rows: Rows, dies_at: int) -> None:
        self._client, self._rows, self._left = client, rows, dies_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sign(self, *given: Any) -> Any:
        signed = self._client.sign(*given)
        self._live()
        return signed

    def broadcast(self, *given: Any) -> None:
        self._client.broadcast(*given)
        self._live()

    @contextmanager
    def write(self) -> Iterator[Session]:
        with self._rows.write() as session:
            yield session
            session.flush()
            self._live()
        self._live()

    def read(self) -> Any:
        return self._rows.read()

    def _live(self) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def died(make: Callable[[], Settler], done: Callable[[Step], bool]) -> bool:
    """Runs a settler in a process of its own until something holds; whether it was killed before."""
    child = os.fork()
    if child == 0:
        try:
            settle(make(), done)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_at_every_instant_it_goes_on_and_sends_nothing_twice(deployed, tmp_path, settler_of):
    made, killed, before, epoch = Made(), 0, sent_by(deployed), 0
    path, person = tmp_path / "rows.db", "poster"
    rows = Rows(path)
    rows.engine.dispose()  # the child opens its own
    while True:
        made.made.append(closing(epoch, file=keccak256(bytes([epoch]))))
        deployed.wait_until(deployed.client.epoch_end_s(epoch))

        def mortal(dies_at: int = epoch) -> Settler:
            client = Mortal(ChainClient.open(deployed.evm.url, deployed.book), rows, dies_at)
            return settler_of(client, made, client, person)

        dead = died(mortal, posted(epoch + 1))
        settle(settler_of(rows, made), posted(epoch + 1))
        deployed.wait_until(deployed.client.ready_at_s(epoch))
        rows.engine.dispose()
        dead |= died(mortal, finalised(epoch + 1))
        settle(settler_of(rows, made), finalised(epoch + 1))
        rows.engine.dispose()
        epoch += 1
        assert sent_by(deployed) - before == 2 * epoch
        if not dead:
            break
        killed += 1
    assert killed >= 6, "signed, stored, stored for good, sent, and both sides of noting that it was mined"


@pytest.mark.parametrize("share", [True, False], ids=["one outbox", "two outboxes of one key"])
def test_two_settlers_at_once_settle_each_epoch_once(deployed, tmp_path, settler_of, share):
    deployed.wait_until(deployed.client.epoch_end_s(2))
    made, before = Made(*(closing(n, file=bytes([n]) * 32) for n in range(3))), sent_by(deployed)
    stores = [Rows(tmp_path / "a.db")] * 2 if share else [Rows(tmp_path / "a.db"), Rows(tmp_path / "b.db")]
    settlers = [settler_of(store, made) for store in stores]

    def both(done: Callable[[Step], bool]) -> None:
        threads = [threading.Thread(target=settle, args=(settler, done)) for settler in settlers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    both(posted(3))
    deployed.wait_until(deployed.client.ready_at_s(2))
    both(finalised(3))
    assert (deployed.client.finalised(), deployed.client.last_post_id()) == (3, 3)
    if share:
        assert sent_by(deployed) - before == 6


def test_a_rewound_epoch_is_posted_again(deployed, rows, settler_of):
    deployed.wait_until(deployed.client.epoch_end_s(0))
    made = Made(closing(0))
    settle(settler_of(rows, made), posted(1))
    deployed.send("customer", calls.approve_bct(deployed.book.settlement))
    deployed.send("customer", calls.dispute(0))
    deployed.wait_until(deployed.client.ready_at_s(0))
    settler = settler_of(rows, made)
    assert settler.step().text == "epoch 0 is under dispute; the owner of Settlement resolves it"
    deployed.send("deployer", calls.resolve(0, upheld=True))
    settle(settler, lambda step: step.posted == 0)
    settle(settler, posted(1))
    assert deployed.client.last_post_id() == 2


def test_another_closing_on_the_chain_stops_the_settler(deployed, rows, settler_of):
    deployed.wait_until(deployed.client.epoch_end_s(0))
    deployed.send("poster", calls.post(closing(0, payout_root=b"\1" * 32)))
    settler = settler_of(rows, Made(closing(0)))
    with pytest.raises(Disagreement, match="stands on the chain with closing"):
        settler.step()
    with pytest.raises(Disagreement, match="has not closed it"):
        settler_of(rows, Made()).step()
    settle(settler_of(rows, Made(closing(0, payout_root=b"\1" * 32))), posted(1))


def test_what_the_contract_refuses_is_an_error_and_nothing_is_stored_or_sent(deployed, rows, settler_of):
    deployed.wait_until(deployed.client.epoch_end_s(0))
    before = sent_by(deployed)
    settler = settler_of(rows, Made(closing(0, rewards_wei=95, stake_wei=5)))
    with pytest.raises(Reverted, match="AboveValue"):
        settler.step()
    with pytest.raises(Reverted, match="NotPoster"):
        settler_of(rows, Made(closing(0)), person="heidi").step()
    with rows.read() as session:
        assert not session.exec(select(OutboxRow)).all()
    assert sent_by(deployed) == before


def test_a_key_without_funds_is_told_and_nothing_is_stored(deployed, rows, settler_of, monkeypatch):
    deployed.wait_until(deployed.client.epoch_end_s(0))
    people = deployed.evm.people | {"nobody": Signer(keccak256(b"nobody"))}
    penniless = replace(deployed.evm, people=people)
    monkeypatch.setattr(deployed, "evm", penniless)
    settler = settler_of(rows, Made(closing(0)), person="nobody")
    with pytest.raises((NoFunds, Reverted)):
        settler.step()
    with rows.read() as session:
        assert not session.exec(select(OutboxRow)).all()


class Deaf:
    """A chain that takes transactions and does nothing with them for a while, as a node in trouble does."""

    def __init__(self, client: ChainClient) -> None:
        self._client, self.heard = client, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def broadcast(self, transaction: Any) -> None:
        self.heard.append(transaction)


def test_what_is_not_mined_is_sent_again_with_a_higher_fee_under_the_same_nonce(deployed, rows):
    deaf, clock = Deaf(deployed.client), ManualClock()
    box = Outbox(deaf, deployed.evm.people["poster"], rows, clock, CONFIRMATIONS)
    deployed.wait_until(deployed.client.epoch_end_s(0))
    sent = box.send("post/0/1", calls.post(closing(0)))
    assert box.send("post/0/1", calls.post(closing(0))) == sent
    clock.advance(outbox.RESEND_MS)
    assert box.watch() == [sent]
    clock.advance(outbox.BUMP_MS)
    (bumped,) = box.watch()
    assert bumped.nonce == sent.nonce
    assert [one.hash for one in deaf.heard] == [sent.hash, sent.hash, bumped.hash]
    assert len({one.nonce for one in deaf.heard}) == 1
    deployed.client.broadcast(deaf.heard[0])  # the old version is mined after all
    deployed.client.wait(sent.hash)
    assert box.watch() == []
    assert box.find("post/0/1").state is SentState.MINED
    assert deployed.client.posted() == 1


def test_a_purpose_whose_nonce_another_transaction_took_is_tried_again_under_a_new_one(deployed, rows):
    deaf, poster = Deaf(deployed.client), deployed.evm.people["poster"]
    box = Outbox(deaf, poster, rows, ManualClock(), CONFIRMATIONS)
    deployed.wait_until(deployed.client.epoch_end_s(0))
    first = box.send("post/0/1", calls.post(closing(0)))
    deployed.client.send(poster, calls.approve_bct(deployed.book.settlement))  # by hand, with the same key
    for _ in range(CONFIRMATIONS + 1):
        deployed.wait_until(deployed.client.head().time_s + 2)
    assert box.watch() == []
    assert box.find("post/0/1").state is SentState.LOST
    again = Outbox(deployed.client, poster, rows, ManualClock(), CONFIRMATIONS).send("post/0/1", calls.post(closing(0)))
    assert isinstance(again, Sent)
    assert (again.purpose, again.nonce) == ("post/0/1/try2", first.nonce + 1)
    deployed.client.wait(again.hash)
    assert deployed.client.posted() == 1


def test_every_state_of_a_transaction_is_in_the_table():
    assert set(outbox.TRANSITIONS) == set(SentState)
    assert {state for state, targets in outbox.TRANSITIONS.items() if not targets} == set(SentState) - set(
        outbox.UNSETTLED
    )


def test_the_contract_keeps_the_hash_of_a_closings_nine_words(deployed):
    one = closing(0, payout_root=b"\1" * 32, usage_root=b"\2" * 32, exit_root=EMPTY, file=b"\3" * 32)
    deployed.wait_until(deployed.client.epoch_end_s(0))
    deployed.send("poster", calls.post(one))
    assert deployed.client.queued(0) == (one.hash, 1)
