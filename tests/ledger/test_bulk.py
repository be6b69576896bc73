"""Rows and keys in bulk: the same on SQLite, and on PostgreSQL in `test_postgres`."""

import pytest
from sqlalchemy import create_engine, select
from sqlmodel import Session

from ledger.bulk import among, among_given


@pytest.fixture
def session(bulk_table):
    engine = create_engine("sqlite://")
    bulk_table.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_rows_are_written_found_changed_and_left_alone(session, bulk_check):
    bulk_check(session)


def test_all_rows_of_a_question_are_what_the_database_says(session, fetch_check):
    fetch_check(session)


@pytest.mark.parametrize("values_are_given_later", [False, True])
def test_rows_of_many_keys_are_found_by_index(session, bulk_table, values_are_given_later):
    name = bulk_table.c.name
    wanted = among_given(name, "names") if values_are_given_later else among(name, ["a", "b"])
    query = select(bulk_table.c.size).where(wanted, bulk_table.c.size > 0).compile(session.get_bind())
    plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", ('["a"]', 0)).all()
    assert plan[0].detail.startswith("SEARCH bulk_things USING INDEX"), plan
