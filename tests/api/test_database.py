"""The control plane's transactions: all or nothing, and what is said only after a commit."""

import pytest
from sqlmodel import Session

from api.database import Database, say
from api.tables import FactRow
from ledger.tables import table_of


@pytest.fixture
def heard():
    return []


@pytest.fixture
def database(tmp_path, heard):
    database = Database(f"sqlite:///{tmp_path}/x.db", lambda *topics: heard.extend(topics))
    with database.writer.begin() as connection:
        table_of(FactRow).create(connection)
    yield database
    database.close()


def _note(session: Session) -> None:
    session.add(FactRow(name="half", value="x"))
    session.flush()
    say(session, "a", "a")


def _fail(session: Session) -> None:
    _note(session)
    raise KeyError


def test_what_is_committed_is_said_once(database, heard):
    database.transact(_note)
    with database.read() as session:
        assert session.get(FactRow, "half") is not None
    assert heard == ["a"]


def test_half_a_transaction_leaves_nothing_and_wakes_nobody(database, heard):
    with pytest.raises(KeyError):
        database.transact(_fail)
    with database.read() as session:
        assert session.get(FactRow, "half") is None
    assert heard == []
