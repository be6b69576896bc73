"""Uptime, utilisation, prices and yields, recomputed from raw rows."""

import pytest
from sqlalchemy import insert, text
from sqlmodel import SQLModel

from ledger import yields
from ledger.chain.tables import CursorRow, OwnerRow, chain_tables
from ledger.database import open_engine
from ledger.epoch import EpochClock
from ledger.leaves import gpu_id_hex
from ledger.pool_tables import pool_tables
from ledger.poolbook import PoolBook, Signed
from ledger.pools import PoolRules, distributed
from ledger.subjects import FOR_EVER, Kind, Subject, length_ms, tenures, within, without
from ledger.tables import create_schema, table_of
from ledger.uptime import There, Uptime
from ledger.utilisation import Utilisation, total

G1, G2 = gpu_id_hex("GPU-1"), gpu_id_hex("GPU-2")
HOLDER, NEXT = "0x" + "11" * 20, "0x" + "22" * 20
HOUR = 3_600_000
H100, DEAR, L4 = There("op-1", "H100", 200_000), There("op-1", "H100", 400_000), There("op-2", "L4", 50_000)


@pytest.fixture
def engine():
    """With the tables that the chain's reader writes, as a control plane has them."""
    engine = open_engine("sqlite://")
    with engine.begin() as connection:
        create_schema(connection)
        SQLModel.metadata.create_all(connection, tables=[*pool_tables(), *chain_tables()])
    yield engine
    engine.dispose()


@pytest.fixture
def epochs(settings):
    return EpochClock(settings.genesis_ms, settings.epoch_ms)


@pytest.fixture
def look(session, clock):
    """Say who is there for some time, a look a minute, and move the clock by as much."""

    def see(ms: int, **there: There) -> None:
        named = {{"g1": G1, "g2": G2}[name]: was for name, was in there.items()}
        for _ in range(ms // 60_000):
            clock.advance(60_000)
            Uptime(session).observe(named, clock.now_ms())

    return see


@pytest.fixture
def about(session, epochs):
    def ask(kind: Kind, name: str, start: int = 0, end: int = FOR_EVER, payees=None) -> Utilisation:
        subject = Subject.of(kind, name)
        return Utilisation(session, subject, epochs=epochs, payees=payees or {}, start_ms=start, end_ms=end)

    return ask


def seen_ms(session, gpu_id: str, start: int = 0, end: int = FOR_EVER) -> int:
    """From the raw rows, one by one."""
    mark = session.execute(text("SELECT through_ms FROM ledger_uptime_mark")).scalar_one()
    rows = session.execute(text("SELECT gpu_id, from_ms, until_ms FROM ledger_gpu_uptime")).all()
    spans = [(max(a, start), min(mark if b is None else b, end)) for gpu, a, b in rows if gpu == gpu_id]
    return sum(b - a for a, b in spans if a < b)


def used(session, where: str) -> tuple[int, int, int]:
    """(GPU-ms, DC, rows) by plain SQL over usage that was not reversed."""
    row = session.execute(
        text(
            "SELECT coalesce(sum(u.gpu_ms), 0), coalesce(sum(u.dc), 0), count(*) FROM ledger_usage u "
            "JOIN ledger_meter m ON m.id = u.meter_id WHERE NOT EXISTS "
            f"(SELECT 1 FROM ledger_entry e WHERE e.reverses_id = u.entry_id) AND {where}"
        )
    ).one()
    return tuple(row)


def _some(column):
    """Any value of its type."""
    kind = column.type.python_type
    return kind() if kind in (int, bytes) else ""


def test_a_gpus_uptime_is_the_sum_of_its_stretches_and_of_the_time_since_it_was_first_seen(session, look, about, clock):
    look(HOUR, g1=H100)
    look(HOUR, g2=L4)
    look(HOUR, g1=H100, g2=L4)
    line = total(about(Kind.GPU, G1).lines())
    assert line.up_ms == seen_ms(session, G1) == 2 * HOUR - 60_000
    assert line.known_ms == 3 * HOUR - 60_000
    assert line.uptime_bps == line.up_ms * 10_000 // line.known_ms
    window = (clock.now_ms() - 2 * HOUR - 600_000, clock.now_ms() - HOUR)
    cut = total(about(Kind.GPU, G1, *window).lines())
    assert (cut.up_ms, cut.known_ms) == (seen_ms(session, G1, *window), HOUR + 600_000)
    assert sum(one.until_ms - one.from_ms for one in about(Kind.GPU, G1, *window).stretches()) == cut.up_ms


def test_what_is_undone_is_not_utilised_and_rows_add_up_to_the_line(session, funded, use, look, about):
    look(HOUR, g1=H100)
    funded.charge_many([use(n, n * 60_000, utilised_gpu_ms=30_000, energy_mj=7) for n in range(1, 6)])
    funded.undo("lease-1", 1, G1, 150_000, "undo")
    (line,) = about(Kind.GPU, G1).lines()
    assert (line.gpu_ms, line.dc, line.receipts) == used(session, f"m.gpu_id = '{G1}'")
    assert line.gpu_ms == 150_000
    assert line.utilisation_bps == 150_000 * 10_000 // line.up_ms
    assert line.paid_dc_per_gpu_hour == line.dc * HOUR // 150_000
    rows = about(Kind.GPU, G1).uses().items
    assert sum(row.gpu_ms for row in rows) == line.gpu_ms
    assert [row.entry for row in rows] == sorted((row.entry for row in rows), reverse=True)
    for row in rows:
        assert row.charged_dc == -(
            -row.cumulative_gpu_ms * row.share_milli * row.price_dc_per_gpu_hour // 3_600_000_000
        )


def test_usage_is_paged_and_each_row_comes_once(funded, use, about):
    funded.charge_many([use(n, n * 1000) for n in range(1, 8)])
    seen, cursor = [], None
    while True:
        page = about(Kind.GPU, G1).uses(before=cursor, limit=3)
        seen += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert [row.seq for row in seen] == [7, 6, 5, 4, 3, 2, 1]


def test_half_a_gpu_is_half_utilised(session, ledger, use, look, about):
    ledger.credit_test("alice", 1_000_000, "t")
    ledger.hold("half", "run-1", "alice", 40_000, "h")
    look(HOUR, g1=H100)
    ledger.charge_many([use(1, 600_000, lease_id="half", share_milli=500)])
    (line,) = about(Kind.GPU, G1).lines()
    assert line.utilisation_bps == 300_000 * 10_000 // line.up_ms


def test_an_operators_time_ends_where_the_gpu_is_seen_under_another(session, look, about, clock):
    look(HOUR, g1=H100)
    moved = clock.now_ms()
    look(HOUR, g1=There("op-9", "H100", 200_000))
    lines = {who: total(about(Kind.OPERATOR, who).lines()) for who in ("op-1", "op-9")}
    assert lines["op-1"].known_ms == lines["op-1"].up_ms == moved + 60_000 - clock.now_ms() + 2 * HOUR - 60_000
    assert sum(line.up_ms for line in lines.values()) == seen_ms(session, G1)
    assert about(Kind.OPERATOR, "nobody").lines() == []


def test_a_pool_has_its_members_for_their_stay_and_an_operator_the_rest(session, look, about, epochs, clock):
    book = PoolBook(session, PoolRules(exit_delay_epochs=0))
    signed = Signed("0x", b"", clock.now_ms())
    look(HOUR // 2, g1=H100, g2=H100)
    book.found("green", *distributed(), now_epoch=epochs.at(clock.now_ms()), signed=signed)
    look(HOUR, g1=H100, g2=H100)
    book.join("green", G1, now_epoch=epochs.at(clock.now_ms()), signed=signed)
    look(2 * HOUR, g1=H100, g2=H100)
    book.leave(G1, now_epoch=epochs.at(clock.now_ms()), signed=signed)
    look(2 * HOUR, g1=H100, g2=H100)
    green, alone = total(about(Kind.POOL, "green").lines()), total(about(Kind.POOL, "op-1").lines())
    inside = epochs.start(2), epochs.start(4)
    assert green.up_ms == green.known_ms == seen_ms(session, G1, *inside) == 2 * HOUR
    assert alone.up_ms == seen_ms(session, G1) + seen_ms(session, G2) - green.up_ms


def test_a_holder_has_a_gpu_while_it_holds_the_nft_and_the_payee_before(session, look, about, clock):
    look(HOUR, g1=H100)
    minted = clock.now_ms()
    look(HOUR, g1=H100)
    moved = clock.now_ms()
    look(HOUR, g1=H100)
    for n, (at, who) in enumerate([(minted, HOLDER), (moved, NEXT)], 1):
        told = {"gpu_id": G1, "from_ms": at, "holder": who, "block_number": n}
        some = {column.name: _some(column) for column in table_of(OwnerRow).columns}
        session.execute(insert(table_of(OwnerRow)).values(some | told))
    cursor = {column.name: _some(column) for column in table_of(CursorRow).columns} | {"final_number": 9}
    session.execute(insert(table_of(CursorRow)).values(cursor))
    payee = "0x" + "99" * 20
    lines = {who: total(about(Kind.HOLDER, who, payees={"op-1": payee}).lines()) for who in (payee, HOLDER, NEXT)}
    assert [line.up_ms for line in lines.values()] == [HOUR - 60_000, HOUR, HOUR]
    assert sum(line.up_ms for line in lines.values()) == seen_ms(session, G1)


def test_prices_are_what_was_asked_while_gpus_were_there(session, look, about, epochs, clock):
    begin = clock.now_ms() + 60_000
    look(HOUR, g1=H100, g2=H100)
    look(HOUR, g2=H100)
    look(HOUR, g1=DEAR, g2=H100)
    look(HOUR, g1=There("op-1", "H100", 0), g2=L4)
    found = about(Kind.OPERATOR, "op-1").prices()
    asked = [(p.price_dc_per_gpu_hour, p.from_ms - begin, p.until_ms - begin, p.gpus) for p in found]
    assert asked == [(200_000, 0, 3 * HOUR, 2), (400_000, 2 * HOUR, 3 * HOUR, 1)]
    assert found[0].up_ms == 4 * HOUR
    everybody = Utilisation(session, None, epochs=epochs, payees={})
    assert {(p.operator, p.model) for p in everybody.prices()} == {("op-1", "H100"), ("op-2", "L4")}
    assert {p.model for p in everybody.prices("L4")} == {"L4"}


def test_a_yield_is_its_rewards_and_its_price_by_epoch(session, funded, use, look, epochs, clock):
    look(HOUR // 2, g1=H100)
    funded.charge("lease-1", use(1, 180_000))
    look(HOUR // 2, g1=H100)
    funded.close_epoch(0)
    look(HOUR, g1=H100)
    funded.charge("lease-1", use(2, 360_000, holder=NEXT))
    look(HOUR, g1=H100)
    funded.close_epoch(1)
    funded.close_epoch(2)
    options = {"epochs": epochs, "payees": {}}
    lines = yields.earned(session, Subject.of(Kind.GPU, G1), **options)
    assert [line.epoch for line in lines] == [2, 1, 0]
    whole = yields.together(lines)
    raw = session.execute(text("SELECT epoch, dc, wei FROM ledger_reward")).all()
    assert whole.dc == sum(dc for _, dc, _ in raw) == 20_000
    assert whole.wei == sum(int.from_bytes(wei, "big") for *_, wei in raw)
    prices = dict(session.execute(text("SELECT n, price_usd_e18 FROM ledger_epoch")).all())
    worth = [int.from_bytes(w, "big") * int.from_bytes(prices[n], "big") * 100_000 // 10**36 for n, _, w in raw]
    assert whole.value_dc == sum(worth) > 0
    assert whole.up_ms == seen_ms(session, G1)
    assert whole.yearly_bps(whole.value_dc * 365 * 8) == 10_000
    assert whole.value_dc_per_gpu_hour == whole.value_dc * HOUR // whole.up_ms
    halves = [yields.earned(session, Subject.of(Kind.HOLDER, who), **options) for who in (HOLDER, NEXT)]
    assert sum(yields.together(half).wei for half in halves) == whole.wei
    first = yields.earned(session, Subject.of(Kind.GPU, G1), end_ms=epochs.end(0), **options)
    assert [line.epoch for line in first] == [0]


def test_nothing_is_known_before_anybody_looked(session, about, epochs):
    assert about(Kind.GPU, G1).lines() == []
    assert yields.together(yields.earned(session, Subject.of(Kind.POOL, "p"), epochs=epochs, payees={})).epochs == 0
    assert total([]).uptime_bps is None
    assert tenures(session, Subject.of(Kind.GPU, G1), epochs, {}) == {}


def test_spans_are_cut_and_taken_out():
    assert within([(0, 10), (20, 30)], 5, 25) == [(5, 10), (20, 25)]
    assert without([(0, 10)], [(2, 4), (8, 20)]) == [(0, 2), (4, 8)]
    assert length_ms(without([(5, 9)], [(5, 9)])) == 0
