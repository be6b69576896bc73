"""The ledger on PostgreSQL: the same rules, and many writers at once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text
from sqlalchemy import select as select_columns
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlmodel import Session, SQLModel, col, select

from fabric.wire.clock import ManualClock
from ledger import accounts
from ledger.audit import run_audit
from ledger.book import Book
from ledger.bulk import insert_rows
from ledger.chain import crediting
from ledger.chain.book import AddressBook
from ledger.chain.checks import CHAIN_CHECKS
from ledger.chain.crediting import link_wallet
from ledger.chain.following import Block
from ledger.chain.index import Index
from ledger.chain.tables import DepositRow, chain_tables, create_chain_schema
from ledger.checks import LEDGER_CHECKS
from ledger.database import open_engine
from ledger.errors import InsufficientFunds, NoHold
from ledger.leaves import gpu_id_hex
from ledger.sealer import Sealer
from ledger.store import Balance, Ledger
from ledger.tables import (
    WHOLE,
    BctPostingRow,
    DcPostingRow,
    LinkRow,
    UsageRow,
    create_schema,
    ledger_tables,
    table_of,
)

pytest.importorskip("psycopg", reason="needs the PostgreSQL driver")
pytestmark = pytest.mark.postgres

GPU = gpu_id_hex("GPU-1")
NAMES = [
    (row, key.parent.name)
    for row in WHOLE
    for key in sorted(table_of(row).foreign_keys, key=lambda key: key.parent.name)
]
"""Columns that name another row."""


@pytest.fixture
def engine(postgresql_url) -> Iterator[Engine]:
    engine = open_engine(postgresql_url)
    with engine.begin() as connection:
        create_schema(connection)
    yield engine
    with engine.begin() as connection:
        SQLModel.metadata.drop_all(connection, tables=ledger_tables())
    engine.dispose()


def test_a_whole_life_of_a_ledger_audits_clean(funded, session, use, clock):
    for seq in range(1, 6):
        funded.charge("lease-1", use(seq, seq * 1000))
    assert funded.charge("lease-1", use(5, 5000)).dc == 55
    funded.undo("lease-1", 1, GPU, 2500, "undo/1")
    funded.record_bct_burned(10**27, "burned/1")
    funded.release_hold("lease-1")
    clock.advance(3_600_000)
    result = funded.close_epoch(0)
    assert result.totals.burned_dc == 139
    clock.advance(3_600_000)
    Sealer(session).seal(clock.now_ms())
    session.commit()
    report = run_audit(session, LEDGER_CHECKS, now_ms=clock.now_ms())
    assert report.clean, report
    assert report.unsealed_tail == 0
    assert funded.close_epoch(0) == result


def test_the_database_refuses_changes_and_balances_below_zero(funded, session, clock):
    session.commit()
    for table in ("ledger_entry", "ledger_dc_posting"):
        for statement in (f"UPDATE {table} SET account_id = 1", f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
            with pytest.raises(DatabaseError):
                session.execute(text(statement))
            session.rollback()
    session.add(BctPostingRow(entry_id=1, line=9, account_id=1, nth=9, amount=-1, balance=-1, is_source=False))
    with pytest.raises(IntegrityError, match="solvent"):
        session.flush()
    session.rollback()
    session.execute(text("UPDATE ledger_hold SET closed_ms = 5"))
    with pytest.raises(DatabaseError, match="immutable"):
        session.execute(text("UPDATE ledger_hold SET closed_ms = 6"))
    session.rollback()


@pytest.mark.parametrize(("row", "column"), NAMES)
def test_a_row_that_names_what_is_not_there_is_refused_among_others_too(funded, session, use, row, column):
    funded.charge("lease-1", use(1, 1000))
    posting = {"entry_id": 1, "line": 8, "account_id": 1, "nth": 99, "amount": 1, "balance": 1, "is_source": False}
    link = {"position": 9, "entry_id": 1, "hash": b"", "sealed_ms": 0}
    usage = dict(session.execute(select_columns(table_of(UsageRow))).mappings().one()) | {"entry_id": 1}
    good = {DcPostingRow: posting, BctPostingRow: posting, UsageRow: usage, LinkRow: link}[row]
    other = good | {name: value + 1 for name, value in good.items() if name in ("line", "nth", "position")}
    if row in (UsageRow, LinkRow):
        other["entry_id"] = 2
    with session.begin_nested() as taken:
        insert_rows(session, table_of(row), [good, other])
        taken.rollback()
    with pytest.raises(IntegrityError, match="not there"):
        insert_rows(session, table_of(row), [good, other | {column: 1_000_000}])


def test_an_audit_names_a_table_whose_rows_are_no_longer_checked(funded, session):
    for name in ("ledger_dc_posting_whole", "ledger_dc_posting_no_change"):
        session.execute(text(f"ALTER TABLE ledger_dc_posting DISABLE TRIGGER {name}"))
        named = [f for result in run_audit(session, LEDGER_CHECKS, now_ms=0).results for f in result.findings]
        assert [(finding.table, finding.key) for finding in named] == [("ledger_dc_posting", "*")]
        session.execute(text(f"ALTER TABLE ledger_dc_posting ENABLE TRIGGER {name}"))


def test_sixty_four_clients_with_one_wallet_never_overspend(engine, clock, settings):
    with Session(engine) as session:
        Ledger(session, clock, settings).credit_test("alice", 1_000, "t")
        session.commit()

    def hold(number: int) -> bool:
        with Session(engine) as session:
            try:
                Ledger(session, clock, settings).hold(f"l{number}", "r", "alice", 30, f"h{number}")
            except InsufficientFunds:
                return False
            session.commit()
            return True

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(hold, range(64)))
    assert granted == 33
    with Session(engine) as session:
        assert Ledger(session, clock, settings).balance("alice") == Balance(10, 990, 0)


def test_one_receipt_sent_to_two_brokers_is_charged_once(engine, clock, settings, use):
    with Session(engine) as session:
        ledger = Ledger(session, clock, settings)
        ledger.credit_test("alice", 100_000, "t")
        ledger.hold("lease-1", "run-1", "alice", 50_000, "h")
        session.commit()

    def charge(_: int) -> int:
        with Session(engine) as session:
            dc = Ledger(session, clock, settings).charge("lease-1", use(1, 1000)).dc
            session.commit()
            return dc

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(charge, range(8))) == [56] * 8
    with Session(engine) as session:
        assert Ledger(session, clock, settings).balance("alice").held == 50_000 - 56


@pytest.fixture
def chained(engine) -> Iterator[Engine]:
    """The database with the chain's tables, too."""
    with engine.begin() as connection:
        create_chain_schema(connection)
    yield engine
    with engine.begin() as connection:
        SQLModel.metadata.drop_all(connection, tables=chain_tables())


def deposited(number: int, dc: int) -> DepositRow:
    account = f"0x{number:040x}"
    return DepositRow(block_number=number, log_index=0, tx_hash=bytes(32), account=account, dc=dc, total_dc=dc)


def follow(session: Session, *deposits: int) -> Index:
    """Blocks from number 1 on, each with one deposit."""
    index = Index(session)
    index.begin(AddressBook(1337, 1, *("0x" + digit * 40 for digit in "12345")))
    for number, dc in enumerate(deposits, start=1):
        index.append(Block(number, bytes([number]), bytes([number - 1]), number), [deposited(number, dc)])
    return index


def test_what_the_chain_said_comes_and_goes_with_its_block_until_that_is_final(chained, session):
    index = follow(session, 2**256 - 1, 2**256 - 2, 2**256 - 3)
    index.finalise(2)
    session.commit()
    for statement, refusal in (
        ("UPDATE chain_deposit SET log_index = 7", "come and go with their block"),
        ("DELETE FROM chain_deposit WHERE block_number = 2", "are final"),
        ("TRUNCATE chain_deposit", "come and go with their block"),
        ("UPDATE chain_cursor SET final_number = 1", "final stays final"),
        ("DELETE FROM chain_cursor", "final stays final"),
    ):
        with pytest.raises(DatabaseError, match=refusal):
            session.execute(text(statement))
        session.rollback()
    assert [block.number for block in index.trail().blocks] == [2, 3]
    index.undo(2)
    amounts = [row.dc for row in session.exec(select(DepositRow).order_by(col(DepositRow.dc)))]
    assert amounts == [2**256 - 2, 2**256 - 1]
    assert run_audit(session, CHAIN_CHECKS, now_ms=0).clean
    session.commit()


def test_a_wallet_linked_while_its_deposit_becomes_final_is_credited_once(chained):
    """The cursor's lock lets one of the two see the other, whichever is first."""

    def link(number: int) -> None:
        with Session(chained) as session:
            ledger = Ledger(session, ManualClock())
            link_wallet(session, ledger, f"0x{number:040x}", f"customer-{number}", at_ms=0)
            session.commit()

    def finalise(number: int) -> None:
        with Session(chained) as session:
            index = Index(session)
            index.cursor(lock=True)
            crediting.book(session, Ledger(session, ManualClock()), index.events(number))
            index.finalise(number)
            session.commit()

    numbers = range(1, 7)
    with Session(chained) as session:
        follow(session, *[5] * len(numbers))
        session.commit()
    with ThreadPoolExecutor(2) as pool:
        for number in numbers:
            order = (link, finalise) if number % 2 else (finalise, link)
            for done in [pool.submit(act, number) for act in order]:
                done.result(timeout=60)
    with Session(chained) as session:
        for number in numbers:
            assert Book(session).balance(accounts.available(f"customer-{number}")) == 5


def test_rows_and_keys_in_bulk_are_what_they_are_on_sqlite(engine, bulk_table, bulk_check):
    with engine.connect() as connection, Session(connection) as session:
        bulk_table.metadata.create_all(connection)
        bulk_check(session)


def test_all_rows_of_a_question_are_what_they_are_on_sqlite(engine, fetch_check):
    with engine.connect() as connection, Session(connection) as session:
        fetch_check(session)


def test_a_hold_that_ends_while_a_top_up_waits_gets_nothing_more(funded, session, engine, clock, settings):
    """The top-up has asked for the lock before the release is committed, and reads what there is after it."""
    session.commit()
    held = funded.balance("alice").held
    assert held > 0
    funded.release_hold("lease-1")

    def top_up():
        with Session(engine) as other:
            Ledger(other, clock, settings).top_up("lease-1", 50, "top-up/late")
            other.commit()

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(top_up)
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        with engine.connect() as watching:
            deadline = time.monotonic() + 20
            while not watching.execute(waiting).scalar() and time.monotonic() < deadline:
                watching.rollback()
                time.sleep(0.02)
        session.commit()
        with pytest.raises(NoHold):
            late.result(timeout=20)
    assert funded.balance("alice").held == 0
    assert run_audit(session, LEDGER_CHECKS, now_ms=clock.now_ms()).clean
