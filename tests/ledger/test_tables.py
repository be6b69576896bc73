import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlmodel import Session, select

from ledger.poolbook import PoolBook, Signed
from ledger.pools import PoolRules, distributed
from ledger.tables import APPEND_ONLY, BctPostingRow, ledger_tables, protection_ddl, table_of

EVERY_TABLE = [table_of(row).name for row in APPEND_ONLY]


@pytest.fixture
def filled(funded, session, use, clock) -> Session:
    """At least one row in every table."""
    funded.charge("lease-1", use(1, 1000))
    funded.release_hold("lease-1")
    funded.record_bct_burned(10**18, "burn/1")
    clock.advance(3_600_000)
    funded.close_epoch(0)
    pools = PoolBook(session, PoolRules())
    signed = Signed("0x" + "11" * 20, b"signature", 0)
    pools.found("p", *distributed(), now_epoch=0, signed=signed)
    pools.join("p", "0xg", now_epoch=1, signed=signed)
    session.commit()
    return session


@pytest.mark.parametrize("table", EVERY_TABLE)
def test_the_database_refuses_to_change_or_delete_a_row(filled, table):
    column = filled.execute(text(f"SELECT name FROM pragma_table_info('{table}')")).scalars().first()
    assert filled.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() > 0
    for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
        with pytest.raises(DatabaseError, match="immutable"):
            filled.execute(text(statement))
        filled.rollback()


@pytest.mark.parametrize(
    "change", ["run_id = 'x'", "customer = 'x'", "opened_ms = 0", "closed_ms = 5", "closed_ms = NULL", "lease_id = 'x'"]
)
def test_a_hold_that_has_ended_cannot_be_changed(filled, change):
    with pytest.raises(DatabaseError, match="only by its end"):
        filled.execute(text(f"UPDATE ledger_hold SET {change}"))


def test_an_open_hold_can_end_and_nothing_else(funded, session):
    for change in ("run_id = 'x', closed_ms = 5", "opened_ms = 0"):
        with pytest.raises(DatabaseError, match="only by its end"):
            session.execute(text(f"UPDATE ledger_hold SET {change}"))
    session.execute(text("UPDATE ledger_hold SET closed_ms = 5"))


@pytest.mark.parametrize("balance", [-1, -(2**200)])
def test_the_database_refuses_a_balance_below_zero_in_either_asset(filled, balance):
    dc = "INSERT INTO ledger_dc_posting VALUES (1, 9, 1, 999, -1, :balance, :source)"
    with pytest.raises(IntegrityError, match="solvent"):
        filled.execute(text(dc), {"balance": max(balance, -5), "source": False})
    filled.rollback()
    row = BctPostingRow(entry_id=1, line=9, account_id=1, nth=999, amount=-1, balance=balance, is_source=False)
    filled.add(row)
    with pytest.raises(IntegrityError, match="solvent"):
        filled.flush()
    filled.rollback()
    filled.add(BctPostingRow(entry_id=1, line=9, account_id=1, nth=999, amount=-1, balance=balance, is_source=True))
    filled.flush()


@pytest.mark.parametrize("wei", [0, 1, -1, 2**254, -(2**254), 10**27])
def test_wei_come_back_as_they_went_in(filled, wei):
    filled.add(BctPostingRow(entry_id=1, line=9, account_id=1, nth=99, amount=wei, balance=wei, is_source=True))
    filled.flush()
    filled.expire_all()
    assert filled.exec(select(BctPostingRow).where(BctPostingRow.nth == 99)).one().amount == wei


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_every_table_has_its_protection_on_both_databases(dialect):
    statements = " ".join(protection_ddl(dialect))
    for table in ledger_tables():
        assert f" ON {table.name} " in statements
