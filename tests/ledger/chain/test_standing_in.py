"""Who stands in for an NFT's GPU that left, whatever is tried to be rid of its holder."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexed import BOOK, START
from indexed import Place as Database
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session, SQLModel

from ledger.audit import run_audit
from ledger.chain import crediting, standing_in
from ledger.chain.checks import CHAIN_CHECKS
from ledger.chain.following import Block
from ledger.chain.holders import holders_of
from ledger.chain.index import Index
from ledger.chain.standing_in import WITHIN_MS, Entrant, Place, stand_ins
from ledger.chain.tables import OwnerRow
from ledger.checks import LEDGER_CHECKS
from ledger.leaves import gpu_id_hex
from ledger.pool_tables import pool_tables
from ledger.uptime import There, Uptime
from ledger.usage import Usage

HEIDI, IVAN, OPERATOR = "0x" + "4e" * 20, "0x" + "1a" * 20, "0x" + "99" * 20
OLD, NEW, NEWER, OTHER = (gpu_id_hex(name) for name in ("old", "new", "newer", "other"))
DAY = 86_400_000
H100, L4 = There("op", "H100", 1), There("op", "L4", 1)


def entrant(entered_ms: int, name: str = "new", *, is_there: bool = True) -> Entrant:
    return Entrant(name, entered_ms, is_there)


@pytest.mark.parametrize(
    ("entered_ms", "stands"),
    [(99, False), (100, True), (100 + WITHIN_MS, True), (101 + WITHIN_MS, False)],
    ids=["before it left", "with its leaving", "at the end of 30 days", "after 30 days"],
)
def test_who_enrols_within_30_days_after_it_left_stands_in_its_place(entered_ms, stands):
    found = stand_ins([Place("old", ((0, 100),))], [entrant(entered_ms)], entered_ms)
    assert found == ({"new": "old"} if stands else {})


def test_taking_the_old_one_back_for_a_while_does_not_set_the_new_one_free():
    entered = entrant(200)
    assert stand_ins([Place("old", ((0, 100), (300, 400)))], [entered], 500) == {"new": "old"}
    for_good = Place("old", ((0, 100), (300, 300 + WITHIN_MS)))
    assert stand_ins([for_good], [entered], 400 + WITHIN_MS) == {}


def test_whoever_replaces_the_replacement_stands_there_too():
    late = 90 * DAY
    place = Place("old", ((0, 100),), stood_in=((150, late),))
    found = stand_ins([place], [entrant(150, "new", is_there=False), entrant(late + 1, "newer")], late + 2)
    assert found == {"newer": "old"}


@given(st.lists(st.integers(0, 40), max_size=6), st.lists(st.tuples(st.integers(0, 80), st.booleans()), max_size=6))
def test_each_stands_in_one_place_and_no_place_that_could_be_filled_stays_empty(left, entered):
    places = [Place(f"p{n}", ((0, at * DAY + 1),)) for n, at in enumerate(left)]
    entrants = [Entrant(f"e{n}", at * DAY, is_there) for n, (at, is_there) in enumerate(entered)]
    found = stand_ins(places, entrants, 80 * DAY)
    assert len(set(found.values())) == len(found)
    assert found == stand_ins(places[::-1], entrants[::-1], 80 * DAY)
    by_id = {place.gpu_id: place for place in places}
    for one in entrants:
        if one.gpu_id in found:
            assert by_id[found[one.gpu_id]].is_open_to(one.entered_ms, 80 * DAY)
        else:
            open_to = {place.gpu_id for place in places if place.is_open_to(one.entered_ms, 80 * DAY)}
            assert open_to <= set(found.values())


class Town:
    """A ledger that sees GPUs come and go, and told who holds which NFT."""

    def __init__(self) -> None:
        self.database = Database()
        self.session = Session(self.database.engine)
        SQLModel.metadata.create_all(self.session.connection(), tables=pool_tables())
        self.ledger, self.clock = self.database.ledger(self.session), self.database.clock
        self.uptime, self.index, self.number = Uptime(self.session), Index(self.session), START - 1
        self.index.begin(BOOK)
        self.ledger.credit_test("alice", 10_000_000, "test/alice")

    def mint(self, gpu: str, holder: str) -> None:
        self.number += 1
        event = OwnerRow(block_number=self.number, log_index=0, tx_hash=b"", gpu_id=gpu, holder=holder,
                         from_ms=self.clock.now_ms())  # fmt: skip
        self.index.append(Block(self.number, self.number.to_bytes(32, "big"), b"", self.number), [event])
        self.index.finalise(self.number)
        crediting.book(self.session, self.ledger, [event])

    def see(self, *gpus: str, of: There = H100, after_ms: int = 10_000) -> int:
        self.clock.advance(after_ms)
        moved = self.uptime.observe(dict.fromkeys(gpus, of), self.clock.now_ms())
        return standing_in.look(self.session, self.ledger, moved, self.clock.now_ms())

    def earner(self, gpu: str) -> str:
        """Who earns for a GPU now."""
        holders = holders_of(self.session, [gpu]).get(gpu, ())
        return (holders[-1][1] if holders else "") or OPERATOR

    def use(self, gpu: str, seq: int) -> None:
        """A second's usage of a GPU, booked as if nobody had an NFT of it."""
        usage = Usage(
            lease_id=gpu, generation=1, seq=seq, run_id="r", customer="alice", gpu_id=gpu, operator="op", pool="op",
            holder=OPERATOR, model="H100", share_milli=1000, price_dc_per_gpu_hour=360_000,
            cumulative_gpu_ms=seq * 1000, at_ms=self.clock.now_ms(),
        )  # fmt: skip
        self.ledger.charge(gpu, replace(usage, holder=self.earner(gpu)))

    def faults(self) -> list:
        results = run_audit(self.session, (*LEDGER_CHECKS, *CHAIN_CHECKS), now_ms=self.clock.now_ms()).results
        return [(one.name, one.findings[0].message) for one in results if one.findings]


@pytest.fixture
def town() -> Town:
    town = Town()
    town.see(OLD, OTHER)
    town.mint(OLD, HEIDI)
    town.see(OLD, OTHER)
    return town


def test_the_new_gpu_earns_for_the_holder_of_the_old_ones_nft_and_who_buys_the_nft_gets_that_too(town):
    town.ledger.hold(NEW, "r", "alice", 1_000_000, "hold/new")
    assert town.see(NEW, OTHER) == 1
    town.clock.advance(1_000)
    town.use(NEW, 1)
    town.clock.advance(10_000)
    town.mint(OLD, IVAN)
    town.clock.advance(1_000)
    town.use(NEW, 2)
    holders = holders_of(town.session, [NEW, OTHER])
    assert [holder for _, holder in holders.pop(NEW)] == [HEIDI, IVAN]
    assert holders == {}, "who was there before stands in for nobody"
    rows = town.session.execute(text("SELECT holder FROM ledger_usage ORDER BY entry_id")).scalars()
    assert list(rows) == [HEIDI, IVAN]
    assert town.faults() == []


def test_what_was_booked_of_that_time_before_it_was_decided_is_booked_again(town):
    town.ledger.hold(NEW, "r", "alice", 1_000_000, "hold/new")
    town.clock.advance(1_000)
    town.use(NEW, 1)
    assert town.see(NEW, after_ms=0) == 1
    rows = town.session.execute(text("SELECT holder, gpu_ms FROM ledger_usage ORDER BY entry_id")).all()
    assert [tuple(row) for row in rows] == [(OPERATOR, 1_000), (OPERATOR, 999), (HEIDI, 1)]
    assert town.faults() == []


def test_what_was_booked_before_a_sale_of_the_nft_became_known_is_booked_again(town):
    town.ledger.hold(NEW, "r", "alice", 1_000_000, "hold/new")
    town.see(NEW)
    sold_ms = town.clock.advance(5_000) or town.clock.now_ms()
    town.clock.advance(5_000)
    town.use(NEW, 1)
    town.number += 1
    event = OwnerRow(block_number=town.number, log_index=0, tx_hash=b"", gpu_id=OLD, holder=IVAN, from_ms=sold_ms)
    town.index.append(Block(town.number, town.number.to_bytes(32, "big"), b"", town.number), [event])
    town.index.finalise(town.number)
    assert town.faults() != []
    crediting.book(town.session, town.ledger, [event])
    assert town.faults() == []


def test_a_mint_of_its_own_ends_it(town):
    town.see(NEW)
    assert town.earner(NEW) == HEIDI
    town.clock.advance(1_000)
    town.mint(NEW, IVAN)
    assert town.earner(NEW) == IVAN
    assert [holder for _, holder in holders_of(town.session, [NEW])[NEW]] == [HEIDI, IVAN]


def test_it_lasts_while_the_old_one_is_away(town):
    town.see(NEW)
    town.see(OLD, NEW)
    assert (town.earner(OLD), town.earner(NEW)) == (HEIDI, OPERATOR)
    town.see(NEW)
    assert town.earner(NEW) == HEIDI, "shown for ten seconds and taken away again"


def test_another_model_another_operator_and_a_late_one_do_not_stand_there(town):
    town.see(NEW, of=L4)
    assert town.earner(NEW) == OPERATOR
    town.see(NEWER, of=There("op-2", "H100", 1))
    assert town.earner(NEWER) == OPERATOR
    late = gpu_id_hex("late")
    town.see(late, after_ms=WITHIN_MS + 1)
    assert town.earner(late) == OPERATOR


def test_two_control_planes_that_look_back_decide_nothing_and_no_row_changes(town):
    assert town.see(NEW) == 1
    assert town.see(NEW) == 0
    for change in ("UPDATE chain_stand_in SET nft_gpu_id = ''", "DELETE FROM chain_stand_in"):
        with pytest.raises(DatabaseError, match="is a fact"), town.session.begin_nested():
            town.session.execute(text(change))
