import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from ledger.availability import available_lines
from ledger.pool_tables import pool_tables
from ledger.split import AvailableLine, PoolTerms
from ledger.uptime import LOST_SIGHT_MS, Stretch, There, Uptime, overlap_ms

H100 = There("op", "H100", 300_000)
HOLDER, PAYOUT = "0x" + "11" * 20, "0x" + "99" * 20


@pytest.fixture
def uptime(session) -> Uptime:
    for table in pool_tables():
        table.create(session.connection(), checkfirst=True)
    return Uptime(session)


def spans(uptime: Uptime, start: int = 0, end: int = 10**9) -> list[tuple[str, int, int]]:
    return [(one.gpu_id, one.from_ms, one.until_ms) for one in uptime.stretches(start, end)]


def test_a_gpu_is_there_from_the_look_that_saw_it_until_the_one_that_did_not(uptime):
    assert uptime.observe({"a": H100, "b": H100}, 1000) == {"op"}
    assert uptime.observe({"a": H100, "b": H100}, 2000) == frozenset()
    assert uptime.observe({"a": H100}, 3000) == {"op"}
    assert spans(uptime) == [("a", 1000, 3000), ("b", 1000, 3000)]
    uptime.observe({"a": H100}, 4000)
    assert spans(uptime, 2500, 3500) == [("a", 2500, 3500), ("b", 2500, 3000)]
    assert uptime.up_ms("a", 0, 10**9) == 3000


def test_another_price_begins_another_stretch_and_looking_back_changes_nothing(uptime):
    uptime.observe({"a": H100}, 1000)
    uptime.observe({"a": H100._replace(price_dc=1)}, 2000)
    assert [one.price_dc for one in uptime.stretches(0, 10**9)] == [300_000]
    assert uptime.observe({}, 1500) == frozenset()
    uptime.observe({"a": H100._replace(price_dc=1)}, 2500)
    assert [(one.price_dc, one.from_ms, one.until_ms) for one in uptime.stretches(0, 10**9)] == [
        (300_000, 1000, 2000),
        (1, 2000, 2500),
    ]


def test_nothing_counts_while_nobody_looked(uptime):
    uptime.observe({"a": H100}, 1000)
    uptime.observe({"a": H100}, 2000)
    late = 2000 + LOST_SIGHT_MS + 1
    uptime.observe({"a": H100}, late)
    uptime.observe({"a": H100}, late + 500)
    assert spans(uptime) == [("a", 1000, 2000), ("a", late, late + 500)]


def test_a_stretch_cannot_be_changed_but_by_its_end(uptime, session):
    uptime.observe({"a": H100}, 1000)
    for change in ("price_dc = 1", "from_ms = 0", "operator = 'x'"):
        with pytest.raises(DatabaseError, match="only by its end"), session.begin_nested():
            session.execute(text(f"UPDATE ledger_gpu_uptime SET {change}"))


def test_overlaps_are_cut_at_both_ends():
    assert overlap_ms([(0, 10), (20, 30)], 5, 25) == 10
    assert overlap_ms([(0, 10)], 10, 20) == 0


SHARED = PoolTerms(0, 5000, 5000, "", {"H100": 1}, 300_000)
STRETCHES = [Stretch("a", 0, 100, "op", "H100", 300_000), Stretch("b", 0, 100, "op", "H100", 300_001)]


def lines(terms=SHARED, **options):
    given = {"members": ["a", "b"], "verified": ["a", "b"], "refused": [], "holders": {}, "payouts": {"op": PAYOUT}}
    return available_lines("p@1", terms, STRETCHES, **given | options)


def test_time_is_available_when_priced_verified_a_members_and_no_lease_was_let_down():
    counted = [AvailableLine("a", PAYOUT, "p@1", "op", "H100", 100)]
    assert lines() == counted
    assert lines(verified=["b"]) == lines(refused=["a"]) == lines(members=["b"]) == []
    assert lines(PoolTerms(0, 0, 10_000, "", {}, 300_000)) == []
    assert len(lines(PoolTerms(0, 5000, 5000, "", {"H100": 1}, 300_001))) == 2


def test_available_time_is_the_holders_of_that_time():
    found = lines(holders={"a": ((40, HOLDER),)})
    assert sorted((line.holder, line.gpu_ms) for line in found) == [(HOLDER, 60), (PAYOUT, 40)]
