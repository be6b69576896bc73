"""Rows and keys in bulk: the same on SQLite, and on PostgreSQL in `test_postgres`."""

import pytest
from sqlalchemy import BigInteger, Column, MetaData, String, Table, create_engine, select
from sqlmodel import Session

from ledger.bulk import among, insert_returning, insert_rows, update_rows, upsert_rows

TABLE = Table(
    "bulk_things",
    MetaData(),
    Column("name", String, primary_key=True),
    Column("size", BigInteger, nullable=False, default=7),
    Column("note", String),
)


@pytest.fixture
def session():
    engine = create_engine("sqlite://")
    TABLE.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_rows_are_written_found_changed_and_left_alone(session):
    check(session, TABLE)


def check(session: Session, table: Table) -> None:
    """What both databases must do."""
    odd = 'it\'s \\ "quoted", ünïcode, %s :given'
    insert_rows(session, table, [{"name": "a", "note": None}, {"name": odd, "note": odd}])
    insert_rows(session, table, [])
    found = {row.name: tuple(row) for row in session.execute(select(table))}
    assert found == {"a": ("a", 7, None), odd: (odd, 7, odd)}
    insert_rows(
        session, table, [{"name": "a", "size": 1, "note": "x"}, {"name": "b", "size": 2, "note": "y"}], or_skip=True
    )
    rows = insert_returning(session, table, [{"name": n, "size": 2**62, "note": ""} for n in "cd"], ("name", "size"))
    assert sorted(tuple(row) for row in rows) == [("c", 2**62), ("d", 2**62)]
    update_rows(
        session,
        table,
        [{"name": "b", "size": 20, "note": None}, {"name": "nobody", "size": 1, "note": ""}],
        key=("name",),
    )
    upsert_rows(
        session,
        table,
        [{"name": "c", "size": 30, "note": "kept out"}, {"name": "e", "size": 50, "note": "new"}],
        key=("name",),
        changed=("size",),
    )
    found = {row.name: (row.size, row.note) for row in session.execute(select(table).where(table.c.name != odd))}
    assert found == {"a": (7, None), "b": (20, None), "c": (30, ""), "d": (2**62, ""), "e": (50, "new")}
    names = select(table.c.name)
    assert set(session.execute(names.where(among(table.c.name, ["a", odd, "zz"]))).scalars()) == {"a", odd}
    assert set(session.execute(names.where(among(table.c.size, [20, 2**62]))).scalars()) == {"b", "c", "d"}
    for column in (table.c.name, table.c.size):
        assert session.execute(names.where(among(column, []))).all() == []
    assert set(session.execute(names.where(~among(table.c.name, ["a", "b", "c"]))).scalars()) == {"d", "e", odd}
