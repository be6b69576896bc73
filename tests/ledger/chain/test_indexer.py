"""The indexer on chains made up by hypothesis: reorgs, kills and strangers, always equal to a reading from zero."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
from eth_abi.abi import encode
from eth_utils.abi import event_abi_to_log_topic
from hypothesis import given, settings
from hypothesis import strategies as st
from indexed import BOOK, START, WALLETS, Killed, Place
from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session

from fabric.wire.hashing import keccak256
from ledger import accounts
from ledger.book import Book
from ledger.chain.book import AddressBook
from ledger.chain.crediting import customer_of, link_wallet
from ledger.chain.errors import StillHalted, WalletTaken, WrongChain
from ledger.chain.events import RawLog
from ledger.chain.following import Block
from ledger.chain.index import Index
from ledger.chain.indexer import Did, Indexer
from ledger.chain.tables import BlockRow, CursorRow, DepositRow
from ledger.contracts import artifact
from ledger.entries import MAX_DC
from ledger.store import Balance

CONFIRMATIONS = 2
STRANGER, HEIDI = "0x" + "5e" * 20, "0x" + "4e" * 20
GPU = keccak256(b"gpu")


def log(contract: str, event: str, *values, at: int = 0) -> RawLog:
    """A log as a chain would give it."""
    abi = next(entry for entry in artifact(contract)[0] if entry.get("name") == event and entry["type"] == "event")
    pairs = list(zip(abi["inputs"], values, strict=True))
    topics = [encode([item["type"]], [value]) for item, value in pairs if item["indexed"]]
    data = encode([item["type"] for item, _ in pairs if not item["indexed"]], [v for i, v in pairs if not i["indexed"]])
    return RawLog(contract, (event_abi_to_log_topic(abi), *topics), data, at, keccak256(event.encode()))


def deposited(account: str, dc: int) -> RawLog:
    return log("DataCredits", "Deposited", account, dc, dc)


def exit_requested(account: str, dc: int) -> RawLog:
    return log("DataCredits", "ExitRequested", account, dc, dc)


def transferred(to: str) -> RawLog:
    return log("GpuNFT", "Transfer", "0x" + "00" * 20, to, int.from_bytes(GPU, "big"))


def minted(wei: int) -> RawLog:
    return log("DataCredits", "Minted", STRANGER, wei, 1, 10**18)


def claimed(wei: int) -> RawLog:
    return log("Settlement", "Claimed", GPU, HEIDI, wei, wei)


@dataclass
class MadeUpChain:
    """Blocks in memory, with the logs that each has; anybody may replace its end."""

    blocks: list[Block] = field(default_factory=list)
    contents: dict[bytes, list[RawLog]] = field(default_factory=dict)

    def block(self, number: int) -> Block | None:
        at = number - START
        return self.blocks[at] if 0 <= at < len(self.blocks) else None

    def logs(self, block: Block) -> list[RawLog]:
        return self.contents[block.hash]

    def mine(self, *contents: Sequence[RawLog], salt: bytes = b"") -> None:
        for logs in contents:
            parent = self.blocks[-1].hash if self.blocks else bytes(32)
            number = START + len(self.blocks)
            placed = [RawLog(one.contract, one.topics, one.data, i, one.tx_hash) for i, one in enumerate(logs)]
            name = keccak256(parent, salt, number.to_bytes(8, "big"), repr(placed).encode())
            self.blocks.append(Block(number, name, parent, 1000 + 10 * number))
            self.contents[name] = placed

    def reorg(self, depth: int, *contents: Sequence[RawLog], above: int = 0, salt: bytes = b"other") -> None:
        """Takes off so many blocks, but none up to number ``above``, and mines others."""
        del self.blocks[max(0, len(self.blocks) - depth, above - START + 1) :]
        self.mine(*contents, salt=salt)


def expected_balances(chain: MadeUpChain, final: int) -> dict[str, Balance]:
    """A model in plain Python: what final blocks say, in their order."""
    available, exiting = dict.fromkeys(WALLETS, 0), dict.fromkeys(WALLETS, 0)
    names = {wallet: customer for customer, wallet in WALLETS.items()}
    for block in chain.blocks:
        for one in chain.contents[block.hash] if block.number <= final else []:
            customer = names.get("0x" + one.topics[1][-20:].hex())
            dc = int.from_bytes(one.data[:32], "big")
            if customer is None or one.contract != "DataCredits":
                continue
            if one.topics[0] == deposited(STRANGER, 1).topics[0]:
                available[customer] += dc
            else:
                moved = min(dc, available[customer])
                available[customer] -= moved
                exiting[customer] += moved
    return {customer: Balance(available[customer], 0, exiting[customer]) for customer in WALLETS}


def reread(chain: MadeUpChain) -> Place:
    place = Place()
    place.link()
    assert place.indexer(chain, CONFIRMATIONS).run(1000) is Did.RESTED
    return place


people = st.sampled_from([*WALLETS.values(), STRANGER])
amounts = st.integers(1, 50) | st.just(MAX_DC // 100)
said = st.one_of(
    st.builds(deposited, people, amounts),
    st.builds(exit_requested, people, amounts | st.just(2**256 - 1)),
    st.builds(transferred, people),
)
contents = st.lists(st.lists(said, max_size=3), max_size=6)


@settings(max_examples=30, deadline=None)
@given(contents, st.lists(st.tuples(st.integers(0, CONFIRMATIONS), contents, st.integers(1, 9)), max_size=4))
def test_after_any_reorg_the_tables_equal_a_reading_from_zero_and_final_money_is_booked_once(first, reorgs):
    chain, place = MadeUpChain(), Place()
    place.link()
    indexer = place.indexer(chain, CONFIRMATIONS)
    chain.mine(*first)
    indexer.run(1000)
    for depth, made, steps in reorgs:
        chain.reorg(depth, *made, above=place.final())
        indexer.run(steps)
        assert place.balances() == expected_balances(chain, place.final())
    indexer.run(1000)
    fresh = reread(chain)
    assert place.events() == fresh.events()
    assert place.balances() == expected_balances(chain, place.final())
    assert place.final() >= fresh.final()


@pytest.mark.parametrize("after_commit", [False, True])
def test_killed_at_any_transaction_it_goes_on_and_books_nothing_twice(after_commit):
    for dies_in in range(11):
        chain, place = MadeUpChain(), Place()
        place.link()
        chain.mine([deposited(WALLETS["alice"], 10)], [], [exit_requested(WALLETS["alice"], 4)], [])
        place.after_commit, place.dies_in = after_commit, dies_in
        killed = False
        for change in (None, partial(chain.reorg, 2, [deposited(WALLETS["bob"], 7)], [], [], [])):
            if change is not None:
                change()
            try:
                place.indexer(chain, CONFIRMATIONS).run(1000)
            except Killed:
                killed = True
                place.indexer(chain, CONFIRMATIONS).run(1000)
        assert killed == (dies_in < 10), "each transaction was the last one once"
        assert place.events() == reread(chain).events()
        assert place.balances() == {"alice": Balance(10, 0, 0), "bob": Balance(7, 0, 0)}


@pytest.mark.parametrize("depth", range(1, CONFIRMATIONS + 4))
def test_a_reorg_below_finality_halts_for_good_and_changes_no_row(depth):
    chain, place = MadeUpChain(), Place()
    place.link()
    chain.mine(*[[deposited(WALLETS["alice"], number)] for number in range(1, 9)])
    indexer = place.indexer(chain, CONFIRMATIONS)
    indexer.run(1000)
    before, kept = place.events(), list(chain.blocks)
    chain.reorg(depth, *[[]] * (depth + 1))
    did = indexer.run(1000)
    if depth <= CONFIRMATIONS:
        assert did is Did.RESTED
        assert place.events() == reread(chain).events()
        return
    assert did is Did.HALTED
    assert (place.events(), place.balances()["alice"].available) == (before, 1 + 2 + 3 + 4 + 5 + 6)
    chain.mine([], [])
    assert place.indexer(chain, CONFIRMATIONS).run(1000) is Did.HALTED, "also after a restart"
    with place.read() as session:
        assert "below finality" in Index(session).status().halted
    with pytest.raises(StillHalted, match="below finality"):
        indexer.resume()
    chain.blocks = kept
    indexer.resume()
    assert indexer.run(1000) is Did.RESTED


def test_a_final_claim_beyond_what_was_promised_halts_before_anything_of_its_block_is_booked():
    chain, place = MadeUpChain(), Place()
    place.link()
    chain.mine([deposited(WALLETS["alice"], 5)], [deposited(WALLETS["alice"], 6), claimed(1)], [])
    indexer = place.indexer(chain, 0)
    assert indexer.run(1000) is Did.HALTED
    assert place.balances()["alice"].available == 5
    with place.read() as session:
        assert "payable/" in Index(session).status().halted


def test_fewer_confirmations_make_many_blocks_final_at_once_and_book_each():
    chain, place = MadeUpChain(), Place()
    place.link()
    chain.mine([deposited(WALLETS["alice"], 1)], [deposited(WALLETS["alice"], 10)], [deposited(WALLETS["alice"], 100)])
    place.indexer(chain, 5).run(1000)
    assert place.balances()["alice"] == Balance(0, 0, 0)
    chain.mine([])
    place.indexer(chain, 0).run(1000)
    assert place.balances()["alice"] == Balance(111, 0, 0)


def test_burned_bct_can_be_minted_again_once_final():
    chain, place = MadeUpChain(), Place()
    chain.mine([minted(10**18), minted(1)], [], [])
    place.indexer(chain, CONFIRMATIONS).run(1000)
    with place.read() as session:
        assert Book(session).balance(accounts.remintable()) == 10**18 + 1


def test_what_a_wallet_did_waits_until_it_is_linked_and_is_then_booked_once():
    chain, place = MadeUpChain(), Place()
    chain.mine([deposited(WALLETS["alice"], 10), exit_requested(WALLETS["alice"], 4)], [], [])
    chain.mine([deposited(WALLETS["alice"], 100)])
    indexer = place.indexer(chain, CONFIRMATIONS)
    indexer.run(1000)
    assert place.balances()["alice"] == Balance(0, 0, 0)
    place.link()
    place.link()
    assert place.balances()["alice"] == Balance(6, 0, 4), "what is not final yet waits"
    chain.mine([], [])
    indexer.run(1000)
    assert place.balances()["alice"] == Balance(106, 0, 4)


def test_a_wallet_is_one_customers_and_a_customer_has_one_wallet():
    place = Place()
    place.link()
    with place.write() as session:
        assert customer_of(session, WALLETS["alice"].upper().replace("0X", "0x")) == "alice"
        for wallet, customer in ((WALLETS["alice"], "bob"), (STRANGER, "alice"), (WALLETS["bob"], "carol")):
            with pytest.raises(WalletTaken, match="for good"):
                link_wallet(session, place.ledger(session), wallet, customer, at_ms=0)
        with pytest.raises(ValueError, match="not an address"):
            link_wallet(session, place.ledger(session), "alice", "alice", at_ms=0)


def test_a_database_follows_one_deployment():
    chain, place = MadeUpChain(), Place()
    place.indexer(chain, CONFIRMATIONS).run(1)
    other = AddressBook(1337, START, *("0x" + digit * 40 for digit in "67890"))
    with pytest.raises(WrongChain, match="another database"):
        Indexer(chain, place, place.ledger, other, place.clock, confirmations=0).step()


def test_who_does_not_hold_the_lock_writes_nothing():
    chain, place = MadeUpChain(), Place()
    chain.mine([deposited(STRANGER, 1)])
    idle = Indexer(chain, place, place.ledger, BOOK, place.clock, confirmations=0, held=lambda _: False)
    assert idle.run(5) is Did.NOT_OURS
    assert not place.events()["chain_deposit"]


def test_who_was_overtaken_writes_nothing():
    """Two indexers of one database: the slower one decided on rows that have changed since."""
    chain, place = MadeUpChain(), Place()
    chain.mine([deposited(STRANGER, 1)], [])

    class Slow(MadeUpChain):
        def logs(self, block: Block) -> list[RawLog]:
            place.indexer(chain, CONFIRMATIONS).step()
            return super().logs(block)

    assert place.indexer(Slow(chain.blocks, chain.contents), CONFIRMATIONS).step() is Did.NOT_OURS
    assert len(place.events()["chain_deposit"]) == 1


@pytest.fixture
def settled() -> Session:
    chain, place = MadeUpChain(), Place()
    chain.mine([deposited(STRANGER, 1)], [deposited(STRANGER, 2)], [deposited(STRANGER, 3)])
    place.indexer(chain, 1).run(10)
    return Session(place.engine)


def test_the_database_refuses_to_change_events_and_to_delete_final_ones(settled):
    with settled as session:
        with pytest.raises(DatabaseError, match="come and go with their block"):
            session.execute(text("UPDATE chain_deposit SET log_index = 7"))
        session.rollback()
        with pytest.raises(DatabaseError, match="are final"):
            session.execute(text(f"DELETE FROM chain_deposit WHERE block_number = {START + 1}"))
        session.rollback()
        with pytest.raises(DatabaseError, match="are final"):
            Index(session).undo(START)
        session.rollback()
        Index(session).undo(START + 1)
        assert [row.dc for row in session.scalars(select(DepositRow))] == [1, 2]


@pytest.mark.parametrize("change", ["final_number = 0", "settlement = 'x'", "chain_id = 5", "start_block = 1"])
def test_the_database_never_takes_finality_back(settled, change):
    with settled as session, pytest.raises(DatabaseError, match="final stays final"):
        session.execute(text(f"UPDATE chain_cursor SET {change}"))


def test_only_what_could_be_undone_is_kept_as_blocks(settled):
    with settled as session:
        assert session.scalars(select(CursorRow.final_number)).one() == START + 1
        assert session.scalars(select(BlockRow.number)).all() == [START + 1, START + 2]
