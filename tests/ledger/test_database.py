import sqlite3

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from fabric.wire.clock import ManualClock
from ledger.database import open_engine
from ledger.store import Ledger
from ledger.tables import create_schema, ledger_tables


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def test_sqlite_writes_ahead_syncs_fully_and_keeps_foreign_keys(url):
    engine = open_engine(url)
    with engine.connect() as connection:
        pragmas = [connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in
                   ("journal_mode", "synchronous", "foreign_keys")]  # fmt: skip
    engine.dispose()
    assert pragmas == ["wal", 2, 1]


def test_a_transaction_has_the_write_lock_from_its_start(url):
    engine, other = open_engine(url), open_engine(url, timeout_s=0)
    with engine.begin(), pytest.raises(OperationalError, match="locked"), other.begin():
        pass
    with other.begin() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()
    other.dispose()


def test_what_is_not_committed_is_gone_and_what_is_committed_stays(url):
    engine = open_engine(url)
    with engine.begin() as connection:
        create_schema(connection)
    with Session(engine) as session:
        ledger = Ledger(session, ManualClock())
        ledger.credit_test("alice", 5, "kept")
        session.commit()
        ledger.credit_test("alice", 7, "lost")
        session.rollback()
    engine.dispose()
    again = open_engine(url)
    with Session(again) as session:
        assert Ledger(session, ManualClock()).balance("alice").available == 5
    again.dispose()


def test_creating_the_schema_again_changes_nothing(url, tmp_path):
    engine = open_engine(url)
    for _ in range(2):
        with engine.begin() as connection:
            create_schema(connection)
    engine.dispose()
    with sqlite3.connect(tmp_path / "ledger.db") as raw:
        assert raw.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone() == (
            2 * len(ledger_tables()),
        )
