"""Fills a database with a large ledger, quickly: the database makes the rows that `ledger.store` would have written.

GPUs are always leased, one lease after the other, each held, charged every second and released; the last ones go on.
Running balances, numbers, keys and the order of time agree, so an audit finds nothing in them. Rewards of closed epochs
are invented. Usage is made final by the ledger itself, all but the last ten minutes.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Engine, MetaData, Table, Text, create_engine, event, insert, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlmodel import Session

from fabric.wire.clock import ManualClock
from ledger import accounts
from ledger.accounts import Asset
from ledger.book import ACCOUNT, ENTRY, POSTINGS
from ledger.closing import EPOCH, REWARD
from ledger.database import open_engine
from ledger.leaves import gpu_id_hex
from ledger.settings import LedgerSettings
from ledger.store import Ledger
from ledger.tables import create_schema, ledger_tables

CUSTOMERS, OPERATORS, EPOCHS = 500, 50, 30
GENESIS_MS = 1_767_225_600_000
_SECONDS, _LEASES_PER_GPU = 500, 40
_ENTRIES_PER_LEASE = _SECONDS + 2
_FINALISED_EVERY_MS = 600_000
_WEI = 10**18
_HOLDER = "0x" + "11" * 20


@dataclass(frozen=True, slots=True)
class Size:
    """So many GPUs that each had so many leases."""

    gpus: int
    turns: int

    @classmethod
    def of(cls, entries: int) -> "Size":
        gpus = max(10, entries // (_LEASES_PER_GPU * _ENTRIES_PER_LEASE))
        return cls(gpus, max(1, entries // (gpus * _ENTRIES_PER_LEASE)))

    @property
    def leases(self) -> int:
        return self.gpus * self.turns

    @property
    def end_ms(self) -> int:
        return GENESIS_MS + self.turns * _SECONDS * 1000


def fill(url: str, size: Size) -> int:
    """Returns the number of entries. A crash may lose them: nothing is synced, no key checked, indexes come last."""
    engine = create_engine(url)
    event.listen(engine, "connect", _careless)
    with engine.begin() as connection:
        create_schema(connection)
        indexes = [tuple(row) for row in connection.exec_driver_sql(_INDEXES[engine.dialect.name])]
        for sql in (*(f"DROP INDEX {name}" for name, _ in indexes), *_unlogged(engine)):
            connection.exec_driver_sql(sql)
        _helpers(connection, size)
        numbers = _numbers(size)
        for sql in map(text, _LEASES.split(";")):
            connection.execute(sql, {name: numbers[name] for name in sql.compile().params})
        _rewards(connection, size)
        for _, sql in indexes:
            connection.exec_driver_sql(sql)
    _analyse(engine)
    engine.dispose()
    _finalise(url, size)
    with engine.connect() as connection:
        written = connection.exec_driver_sql("SELECT count(*) FROM ledger_entry").scalar_one()
    engine.dispose()
    return int(written)


_INDEXES = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes i WHERE schemaname = current_schema() "
    "AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conname = i.indexname)",
}
_CARELESS = {
    "sqlite": ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = OFF", "PRAGMA cache_size = -1000000",
               "PRAGMA temp_store = MEMORY"),
    "postgresql": ("SET synchronous_commit = off", "SET session_replication_role = replica",
                   "SET maintenance_work_mem = '512MB'"),
}  # fmt: skip


def _careless(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    for statement in _CARELESS["sqlite" if isinstance(connection, sqlite3.Connection) else "postgresql"]:
        cursor.execute(statement)
    cursor.close()
    connection.commit()


def _unlogged(engine: Engine) -> Iterator[str]:
    """What is asked afterwards is only read, and a table without a log is read like any other."""
    if engine.dialect.name == "postgresql":
        yield from (f"ALTER TABLE {table.name} SET UNLOGGED" for table in reversed(ledger_tables()))


def _helpers(connection: Connection, size: Size) -> None:
    """Tables of customers, GPUs, turns, leases, and the seconds of a lease, to be multiplied with each other."""
    for name, count in (("turn", size.turns), ("second", _ENTRIES_PER_LEASE), ("customer", CUSTOMERS), ("leg", 2)):
        table = Table(name, MetaData(), Column("n", BigInteger), prefixes=["TEMPORARY"])
        table.create(connection)
        connection.execute(insert(table), [{"n": n} for n in range(count)])
    _LEASE.create(connection)
    connection.execute(insert(_LEASE), [_lease(size, n) for n in range(size.leases)])


_LEASE = Table(
    "lease",
    MetaData(),
    Column("turn", BigInteger, index=True),
    *(Column(name, BigInteger) for name in ("gpu", "meter", "first", "begin", "nth", "available", "held", "pending")),
    *(Column(name, Text) for name in ("name", "run", "customer", "gpu_id", "operator")),
    prefixes=["TEMPORARY"],
)


def _lease(size: Size, number: int) -> dict[str, Any]:
    """``first`` is its first entry, the next is as many further as there are GPUs; ``nth`` of its customer's."""
    turn, gpu = divmod(number, size.gpus)
    nth, customer = divmod(number, CUSTOMERS)
    return {
        "turn": turn,
        "gpu": gpu,
        "meter": number + 1,
        "first": CUSTOMERS + turn * _ENTRIES_PER_LEASE * size.gpus + gpu + 1,
        "begin": GENESIS_MS + turn * _SECONDS * 1000,
        "nth": nth,
        "available": 2 + customer,
        "pending": 2 + CUSTOMERS + gpu,
        "held": 2 + CUSTOMERS + size.gpus + number,
        "name": f"lease-{number}",
        "run": f"run-{number}",
        "customer": f"c{customer}",
        "gpu_id": gpu_id_hex(f"GPU-{gpu}"),
        "operator": f"op-{gpu % OPERATORS}",
    }


_LEASES = """
INSERT INTO ledger_account (id, name, kind, owner, sub) VALUES (1, 'test_credit//', 'test_credit', '', '');

INSERT INTO ledger_account (id, name, kind, owner, sub)
SELECT 2 + n, 'available/c' || n || '/', 'available', 'c' || n, '' FROM customer;

INSERT INTO ledger_account (id, name, kind, owner, sub)
SELECT pending, 'usage_pending/' || gpu_id || '/', 'usage_pending', gpu_id, '' FROM lease WHERE turn = 0;

INSERT INTO ledger_account (id, name, kind, owner, sub)
SELECT held, 'held/' || customer || '/' || name, 'held', customer, name FROM lease;

INSERT INTO ledger_entry (id, source_id, kind, at_ms, lease_id, customer)
SELECT n + 1, 'test/c' || n, 'test_credit', :genesis, NULL, 'c' || n FROM customer;

INSERT INTO ledger_entry (id, source_id, kind, at_ms, lease_id, customer)
SELECT
    first + second.n * :gpus,
    CASE
        WHEN second.n = 0 THEN 'hold/' || name
        WHEN second.n > :seconds THEN 'release/' || name
        ELSE 'charge/' || name || '/1/' || gpu_id || '/' || second.n || '/0'
    END,
    CASE WHEN second.n = 0 THEN 'hold' WHEN second.n > :seconds THEN 'release' ELSE 'charge' END,
    begin + second.n * 1000,
    name,
    customer
FROM turn CROSS JOIN second CROSS JOIN lease
WHERE lease.turn = turn.n AND (turn.n < :last OR second.n <= :seconds);

INSERT INTO ledger_dc_posting (entry_id, line, account_id, nth, amount, balance, is_source)
SELECT n + 1, 0, 1, n + 1, -:credit, -(n + 1) * :credit, TRUE FROM customer;

INSERT INTO ledger_dc_posting (entry_id, line, account_id, nth, amount, balance, is_source)
SELECT n + 1, 1, 2 + n, 1, :credit, :credit, FALSE FROM customer;

INSERT INTO ledger_dc_posting (entry_id, line, account_id, nth, amount, balance, is_source)
SELECT first, 0, available, nth + 2, -:seconds * :dc, :credit - (nth + 1) * :seconds * :dc, FALSE FROM lease;

INSERT INTO ledger_dc_posting (entry_id, line, account_id, nth, amount, balance, is_source)
SELECT first, 1, held, 1, :seconds * :dc, :seconds * :dc, FALSE FROM lease;

INSERT INTO ledger_dc_posting (entry_id, line, account_id, nth, amount, balance, is_source)
SELECT
    first + second.n * :gpus,
    leg.n,
    CASE WHEN leg.n = 0 THEN held ELSE pending END,
    CASE WHEN leg.n = 0 THEN second.n + 1 ELSE turn.n * :seconds + second.n END,
    CASE WHEN leg.n = 0 THEN -:dc ELSE :dc END,
    CASE WHEN leg.n = 0 THEN :seconds - second.n ELSE turn.n * :seconds + second.n END * :dc,
    FALSE
FROM turn CROSS JOIN second CROSS JOIN lease CROSS JOIN leg
WHERE lease.turn = turn.n AND second.n BETWEEN 1 AND :seconds;

INSERT INTO ledger_hold (lease_id, run_id, customer, opened_ms, closed_ms)
SELECT name, run, customer, begin, CASE WHEN turn < :last THEN begin + (:seconds + 1) * 1000 END FROM lease;

INSERT INTO ledger_meter (id, lease_id, generation, gpu_id, customer, operator, model, share_milli,
    price_dc_per_gpu_hour, simulated)
SELECT meter, name, 1, gpu_id, customer, operator, 'H100', 1000, :dc * 3600, TRUE FROM lease;

INSERT INTO ledger_usage (entry_id, meter_id, seq, part, run_id, pool, holder, cumulative_gpu_ms, gpu_ms, dc,
    charged_dc, short_dc, at_ms, accepted_ms, receipt_hash, utilised_gpu_ms, energy_mj)
SELECT first + second.n * :gpus, meter, second.n, 0, run, operator, :holder, second.n * 1000, 1000, :dc,
    second.n * :dc, 0, begin + second.n * 1000, begin + second.n * 1000, :hash, 900, 700
FROM turn CROSS JOIN second CROSS JOIN lease
WHERE lease.turn = turn.n AND second.n BETWEEN 1 AND :seconds
"""
"""In the order of time, so that rows lie where they would: a lease's among those of all that went on beside it."""


def _numbers(size: Size) -> Mapping[str, Any]:
    return {
        "genesis": GENESIS_MS,
        "seconds": _SECONDS,
        "gpus": size.gpus,
        "last": size.turns - 1,
        "credit": 10**12,
        "dc": 56,
        "holder": _HOLDER,
        "hash": bytes(32),
    }


def _rewards(connection: Connection, size: Size) -> None:
    """Closed epochs, each with one reward and its pay for every GPU."""
    gpus = [gpu_id_hex(f"GPU-{n}") for n in range(size.gpus)]
    first, emissions = 2 + CUSTOMERS + size.gpus + size.leases, {}
    payable = {gpu_id: first + n for n, gpu_id in enumerate(gpus)}
    named = {account: accounts.payable(gpu_id, _HOLDER) for gpu_id, account in payable.items()}
    for n in range(EPOCHS):
        emissions[n] = first + size.gpus + n
        named[emissions[n]] = accounts.emission(n)
    connection.execute(
        insert(ACCOUNT),
        [{"id": key, "name": one.name, "kind": one.kind.value, "owner": one.owner, "sub": one.sub}
         for key, one in named.items()],
    )  # fmt: skip
    entry = CUSTOMERS + size.turns * _ENTRIES_PER_LEASE * size.gpus
    for n in range(EPOCHS):
        connection.execute(insert(EPOCH), _epoch(n))
        connection.execute(
            insert(REWARD),
            [{"epoch": n, "gpu_id": gpu_id, "holder": _HOLDER, "pool": f"op-{number % OPERATORS}",
              "operator": f"op-{number % OPERATORS}", "gpu_ms": 1000, "dc": 56, "wei": _WEI}
             for number, gpu_id in enumerate(gpus)],
        )  # fmt: skip
        connection.execute(
            insert(ENTRY), {"id": entry + n + 1, "source_id": f"pay/{n}", "kind": "pay", "at_ms": size.end_ms}
        )
        paid = [_posting(entry + n + 1, 0, emissions[n], 1, -size.gpus * _WEI, -size.gpus * _WEI)]
        paid += [
            _posting(entry + n + 1, line, account, n + 1, _WEI, (n + 1) * _WEI)
            for line, account in enumerate(payable.values(), 1)
        ]
        connection.execute(insert(POSTINGS[Asset.BCT]), paid)


def _epoch(n: int) -> dict[str, Any]:
    amounts = dict.fromkeys(("price_usd_e18", "value_wei", "emission_wei", "remintable_wei", "paid_wei", "staking_wei"),
                            _WEI)  # fmt: skip
    roots = dict.fromkeys(("payout_root", "usage_root", "file_hash", "head"), bytes(32))
    times = {"n": n, "start_ms": n, "end_ms": n + 1, "closed_ms": n + 1}
    words = {"price_source": "test", "settlement": "test"}
    return times | amounts | roots | words | {"gpu_ms": 1, "burned_dc": 1, "stake_bps": 500}


def _posting(entry: int, line: int, account: int, nth: int, amount: int, balance: int) -> dict[str, Any]:
    given = {"entry_id": entry, "line": line, "account_id": account, "nth": nth}
    return given | {"amount": amount, "balance": balance, "is_source": balance < 0}


def _analyse(engine: Engine) -> None:
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
            for table in (ACCOUNT, ENTRY):
                connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), (SELECT max(id) FROM {table.name}))"  # noqa: S608
                )


def _finalise(url: str, size: Size) -> None:
    """By the ledger's own steps, as far as it would have come by now."""
    clock = ManualClock(GENESIS_MS)
    engine = open_engine(url)
    settings = LedgerSettings(genesis_ms=GENESIS_MS)
    for now_ms in range(GENESIS_MS + _FINALISED_EVERY_MS, size.end_ms, _FINALISED_EVERY_MS):
        with Session(engine) as session:
            Ledger(session, clock, settings).finalise_usage(now_ms)
            session.commit()
    with Session(engine) as session:
        Ledger(session, clock, settings).finalise_usage(size.end_ms)
        session.commit()
    _analyse(engine)
    engine.dispose()
