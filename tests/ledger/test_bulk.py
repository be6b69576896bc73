"""Rows and keys in bulk: the same on SQLite, and on PostgreSQL in `test_postgres`."""

import pytest
from sqlalchemy import create_engine
from sqlmodel import Session


@pytest.fixture
def session(bulk_table):
    engine = create_engine("sqlite://")
    bulk_table.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_rows_are_written_found_changed_and_left_alone(session, bulk_check):
    bulk_check(session)
