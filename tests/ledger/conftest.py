"""A ledger on an in-memory SQLite, a clock that moves when told, and usage as a control plane would pass it."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
)
from sqlmodel import Session

from fabric.wire.clock import ManualClock
from ledger.bulk import among, fetch, insert_returning, insert_rows, insert_tuples, update_rows, upsert_rows
from ledger.database import open_engine
from ledger.leaves import gpu_id_hex
from ledger.settings import LedgerSettings
from ledger.store import Ledger
from ledger.tables import Wei, create_schema
from ledger.usage import Usage

GENESIS_MS = 1_700_000_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(GENESIS_MS)


@pytest.fixture
def settings() -> LedgerSettings:
    return LedgerSettings(genesis_ms=GENESIS_MS, epoch_ms=3_600_000)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = open_engine("sqlite://")
    with engine.begin() as connection:
        create_schema(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@pytest.fixture
def ledger(session: Session, clock: ManualClock, settings: LedgerSettings) -> Ledger:
    return Ledger(session, clock, settings)


@pytest.fixture
def use(clock: ManualClock) -> Callable[..., Usage]:
    """Usage of one H100 at USD 2 an hour; any field by keyword."""

    def make(seq: int, cumulative_gpu_ms: int, *, gpu: str = "GPU-1", **fields) -> Usage:
        given = {
            "lease_id": "lease-1",
            "generation": 1,
            "run_id": "run-1",
            "customer": "alice",
            "operator": "op-1",
            "pool": "op-1",
            "holder": "0x" + "11" * 20,
            "model": "H100",
            "share_milli": 1000,
            "price_dc_per_gpu_hour": 200_000,
            "at_ms": clock.now_ms(),
        }
        return Usage(seq=seq, cumulative_gpu_ms=cumulative_gpu_ms, gpu_id=gpu_id_hex(gpu), **(given | fields))

    return make


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    """A ledger in which alice has 1,000,000 DC, 40,000 of them held for lease-1 of run-1."""
    ledger.credit_test("alice", 1_000_000, "test/alice")
    ledger.hold("lease-1", "run-1", "alice", 40_000, "hold/lease-1")
    return ledger


@pytest.fixture
def bulk_table() -> Table:
    """A table of nobody's."""
    return Table(
        "bulk_things",
        MetaData(),
        Column("name", String, primary_key=True),
        Column("size", BigInteger, nullable=False, default=7),
        Column("note", String),
    )


@pytest.fixture
def bulk_check(bulk_table: Table) -> Callable[[Session], None]:
    """What `ledger.bulk` must do on both databases."""

    def check(session: Session) -> None:
        table = bulk_table
        odd = 'it\'s \\ "quoted", ünïcode, %s :given'
        insert_rows(session, table, [{"name": "a", "note": None}, {"name": odd, "note": odd}])
        insert_rows(session, table, [])
        found = {row.name: tuple(row) for row in session.execute(select(table))}
        assert found == {"a": ("a", 7, None), odd: (odd, 7, odd)}
        insert_rows(
            session, table, [{"name": "a", "size": 1, "note": "x"}, {"name": "b", "size": 2, "note": "y"}], or_skip=True
        )
        rows = insert_returning(
            session, table, [{"name": n, "size": 2**62, "note": ""} for n in "cd"], ("name", "size")
        )
        assert sorted(tuple(row) for row in rows) == [("c", 2**62), ("d", 2**62)]
        again = [{"name": name, "note": "again"} for name in ("f", "a", "g")]
        assert sorted(row.name for row in insert_returning(session, table, again, ("name",), or_skip=True)) == [
            "f",
            "g",
        ]
        insert_tuples(session, table, ("note", "name"), (("", f"many-{n}") for n in range(10_001)))
        many = table.c.name.like("many-%")
        assert session.execute(select(func.count(), func.max(table.c.size)).where(many)).one() == (10_001, 7)
        session.execute(delete(table).where(many | among(table.c.name, ["f", "g"])))
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
        assert set(session.execute(names.where(among(table.c.size, [20, 2**62]))).scalars()) == {"b", "d"}
        for column in (table.c.name, table.c.size):
            assert session.execute(names.where(among(column, []))).all() == []
        assert set(session.execute(names.where(~among(table.c.name, ["a", "b", "c"]))).scalars()) == {"d", "e", odd}

    return check


@pytest.fixture
def fetch_check() -> Callable[[Session], None]:
    """What `ledger.bulk.fetch` must do on both databases: answer what the statement answers, in its order."""

    def check(session: Session) -> None:
        table = Table(
            "bulk_kinds",
            MetaData(),
            Column("number", BigInteger, primary_key=True),
            Column("words", String),
            Column("data", LargeBinary),
            Column("wei", Wei),
            Column("said", Boolean),
        )
        table.metadata.create_all(session.connection())
        odd = 'it\'s \\ "quoted",\n\x01 ünïcode \U0001f600 {"a": [1]}'
        rows = [
            (2**63 - 1, odd, b"\x00\xff", 2**254, True),
            (-(2**63), "", b"", -(2**254), False),
            (7, None, None, None, None),
        ]
        session.execute(insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in rows])
        wanted = select(table).where(table.c.number >= bindparam("least")).order_by(table.c.number.desc())
        assert fetch(session, wanted, {"least": -(2**63)}) == [rows[0], rows[2], rows[1]]
        assert fetch(session, wanted.limit(bindparam("size")), {"least": 7, "size": 1}) == [rows[0]]
        assert fetch(session, wanted.where(table.c.words == "nobody"), {"least": 7}) == []

    return check
