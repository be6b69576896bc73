"""How fast the ledger answers people while it is large: latency at a given rate of mixed questions.

A ledger, a SQLite file unless a URL is given, is filled with leases that were held, charged by receipt and released,
and with closed epochs; then questions arrive at a fixed rate and each is timed from the moment it was due, so waiting
counts. Asked are a page of a customer's entries, a lease's entries, a GPU with its cash flow, an operator's earnings,
epochs and a balance, through `ledger.queries`, without HTTP.
"""

import argparse
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlmodel import Session

from fabric.wire.clock import ManualClock
from ledger import accounts, queries
from ledger.accounts import Account
from ledger.book import ACCOUNT, ENTRY, POSTINGS
from ledger.closing import EPOCH, REWARD
from ledger.database import open_engine
from ledger.leaves import gpu_id_hex
from ledger.meters import METER, USAGE
from ledger.queries import Party
from ledger.store import HOLD, Ledger
from ledger.tables import Wei, create_schema

_CUSTOMERS, _OPERATORS, _EPOCHS = 500, 50, 30
_CHARGES_PER_LEASE = 500
_GENESIS_MS = 1_767_225_600_000
_BATCH_LEASES = 100
_DC = POSTINGS[accounts.Asset.DC]
_CHARGE_DC = 56
_HELD_DC = _CHARGES_PER_LEASE * _CHARGE_DC

Row = tuple[object, ...]


class Filler:
    """Writes rows as `ledger.store` would, in bulk: running balances, numbers and keys agree."""

    def __init__(self, engine: Engine, gpus: int) -> None:
        self._engine = engine
        self._gpus = [gpu_id_hex(f"GPU-{n}") for n in range(gpus)]
        self._ends: dict[Account, list[int]] = {}
        self._rows: dict[Table, list[Row]] = {}
        self._entry = 0
        self._accounts = 0

    def fill(self, leases: int) -> int:
        """Returns the number of entries written."""
        for customer in range(_CUSTOMERS):
            self._book("test_credit", f"t{customer}", f"c{customer}", None,
                       accounts.test_credit(), accounts.available(f"c{customer}"), 10**12)  # fmt: skip
        for lease in range(leases):
            self._lease(lease)
            if lease % _BATCH_LEASES == 0:
                self._flush()
        self._epochs()
        self._flush()
        return self._entry

    def _lease(self, number: int) -> None:
        name, customer, gpu = f"lease-{number}", f"c{number % _CUSTOMERS}", self._gpus[number % len(self._gpus)]
        available, held, pending = (
            accounts.available(customer),
            accounts.held(customer, name),
            accounts.usage_pending(gpu),
        )
        self._book("hold", f"hold/{name}", customer, name, available, held, _HELD_DC)
        self._add(HOLD, (name, f"run-{number}", customer, _GENESIS_MS, _GENESIS_MS))
        operator = f"op-{number % _OPERATORS}"
        self._add(METER, (number + 1, name, 1, gpu, customer, operator, "H100", 1000, _CHARGE_DC * 3600, 1))
        for seq in range(1, _CHARGES_PER_LEASE + 1):
            self._book("charge", f"charge/{name}/1/{gpu}/{seq}/0", customer, name, held, pending, _CHARGE_DC)
            at_ms = _GENESIS_MS + seq * 1000
            self._add(USAGE, (self._entry, number + 1, seq, 0, f"run-{number}", operator, "0x" + "11" * 20, seq * 1000,
                              1000, _CHARGE_DC, seq * _CHARGE_DC, 0, at_ms, at_ms, bytes(32), 900, 700))  # fmt: skip

        self._entry += 1
        self._add(ENTRY, (self._entry, f"release/{name}", "release", _GENESIS_MS, name, customer, None))

    def _book(
        self, kind: str, source_id: str, customer: str, lease: str | None, source: Account, target: Account, dc: int
    ) -> None:
        self._entry += 1
        self._add(ENTRY, (self._entry, source_id, kind, _GENESIS_MS, lease, customer, None))
        for line, (account, amount) in enumerate(((source, -dc), (target, dc))):
            end = self._end(account)
            end[1], end[2] = end[1] + 1, end[2] + amount
            self._add(_DC, (self._entry, line, end[0], end[1], amount, end[2], int(account.is_source)))

    def _end(self, account: Account) -> list[int]:
        if account not in self._ends:
            self._accounts += 1
            self._ends[account] = [self._accounts, 0, 0]
            self._add(ACCOUNT, (self._accounts, account.name, account.kind.value, account.owner, account.sub))
        return self._ends[account]

    def _epochs(self) -> None:
        wei = 10**18
        for n in range(_EPOCHS):
            self._add(EPOCH, (n, n, n + 1, n + 1, 1, 1, wei, "test", *([wei] * 5), 500, *([bytes(32)] * 4), "test"))
            for number, gpu in enumerate(self._gpus):
                operator = f"op-{number % _OPERATORS}"
                self._add(REWARD, (n, gpu, "0x" + "11" * 20, operator, operator, 1000, 56, wei))

    def _add(self, table: Table, row: Row) -> None:
        self._rows.setdefault(table, []).append(row)

    def _flush(self) -> None:
        order = (ACCOUNT, ENTRY, _DC, HOLD, METER, USAGE, EPOCH, REWARD)
        with self._engine.begin() as connection:
            for table in (table for table in order if table in self._rows):
                _insert(connection, table, self._rows.pop(table))


def _insert(connection: Connection, table: Table, rows: list[Row]) -> None:
    columns = ",".join(column.name for column in table.columns)
    rows = _bound(connection, table, rows)
    if connection.dialect.name == "sqlite":
        marks = ",".join("?" * len(table.columns))
        sql = f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608 - names of our own tables
        connection.exec_driver_sql(sql, rows)
        return
    cursor: Any = connection.connection.cursor()
    with cursor, cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _bound(connection: Connection, table: Table, rows: list[Row]) -> list[Row]:
    """Wei as the database keeps them."""
    dialect = connection.dialect
    kinds: dict[int, Any] = {
        number: column.type.dialect_impl(dialect).bind_processor(dialect)
        for number, column in enumerate(table.columns)
        if isinstance(column.type, Wei)
    }
    if not kinds:
        return rows
    return [tuple(kinds[n](value) if n in kinds else value for n, value in enumerate(row)) for row in rows]


def _fill(url: str, leases: int, gpus: int) -> int:
    """Returns the number of entries. Nobody minds if a crash loses it: no sync, keys unchecked, indexes at the end."""
    engine = create_engine(url)
    event.listen(engine, "connect", _careless)
    with engine.begin() as connection:
        create_schema(connection)
        indexes = [tuple(row) for row in connection.exec_driver_sql(_INDEXES[engine.dialect.name])]
        for name, _ in indexes:
            connection.exec_driver_sql(f"DROP INDEX {name}")
    written = Filler(engine, gpus).fill(leases)
    with engine.begin() as connection:
        for _, sql in indexes:
            connection.exec_driver_sql(sql)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()
    return written


_INDEXES = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes i WHERE schemaname = current_schema() "
    "AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conname = i.indexname)",
}
_CARELESS = {
    "sqlite": ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = OFF", "PRAGMA cache_size = -500000",
               "PRAGMA temp_store = MEMORY"),
    "postgresql": ("SET synchronous_commit = off", "SET session_replication_role = replica"),
}  # fmt: skip


def _careless(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    for statement in _CARELESS["sqlite" if isinstance(connection, sqlite3.Connection) else "postgresql"]:
        cursor.execute(statement)
    cursor.close()
    connection.commit()


def questions(leases: int, gpus: int, seed: int) -> Iterator[Callable[[Session], object]]:
    """An endless mix of what people ask."""
    draw = random.Random(seed)
    clock = ManualClock(_GENESIS_MS)
    while True:
        customer, lease = f"c{draw.randrange(_CUSTOMERS)}", f"lease-{draw.randrange(leases)}"
        gpu, operator = gpu_id_hex(f"GPU-{draw.randrange(gpus)}"), f"op-{draw.randrange(_OPERATORS)}"
        yield draw.choice(
            (
                lambda session, c=customer: queries.entries(session, customer=c, limit=50),
                lambda session, name=lease: queries.entries(session, lease_id=name, limit=50),
                lambda session, g=gpu: queries.gpu_cash_flow(session, g, limit=50),
                lambda session, g=gpu: queries.gpu(session, g),
                lambda session, o=operator: queries.cash_flow(session, Party.OPERATOR, o, limit=50),
                lambda session: queries.epochs(session, limit=30),
                lambda session, c=customer: Ledger(session, clock).balance(c),
            )
        )


def ask(engine: Engine, asked: Iterator[Callable[[Session], object]], *, rate: int, seconds: float) -> list[float]:
    """Latencies in ms, from when each question was due."""
    latencies: list[float] = []
    begin = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        if (early := due - time.perf_counter()) > 0:
            time.sleep(early)
        with Session(engine) as session:
            next(asked)(session)
        latencies.append((time.perf_counter() - due) * 1000)
    return latencies


def measure(folder: Path, *, entries: int, rate: int, seconds: float, seed: int, url: str = "") -> dict[str, float]:
    leases, url = max(1, entries // (_CHARGES_PER_LEASE + 2)), url or f"sqlite:///{folder}/ledger.db"
    gpus = max(10, leases // 4)
    begin = time.perf_counter()
    written = _fill(url, leases, gpus)
    engine = open_engine(url)
    filled = time.perf_counter()
    ask(engine, questions(leases, gpus, seed + 1), rate=rate, seconds=min(1.0, seconds))
    asking = time.perf_counter()
    latencies = ask(engine, questions(leases, gpus, seed), rate=rate, seconds=seconds)
    took = time.perf_counter() - asking
    engine.dispose()
    cuts = statistics.quantiles(latencies, n=100)
    return {
        "entries": written,
        "requests_per_s": round(len(latencies) / took, 1),
        "p50_ms": round(cuts[49], 3),
        "p99_ms": round(cuts[98], 3),
        "fill_s": round(filled - begin, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger_query", description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000, help="the published figure uses 10000000")
    parser.add_argument("--rate", type=int, default=300, help="questions per second (default 300)")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--database-url", default="", help="SQLAlchemy URL of an empty database (default: SQLite file)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), entries=given.entries, rate=given.rate, seconds=given.seconds, seed=given.seed,
                          url=given.database_url)  # fmt: skip
    database = given.database_url.split(":", 1)[0].split("+")[0] or "sqlite"
    if given.json:
        config = {"rate": given.rate, "seconds": given.seconds, "database": database, "python": sys.version.split()[0]}
        print(json.dumps({"name": "ledger_query", "config": config, "figures": figures}))
        return
    for name, value in figures.items():
        print(f"{name:16} {value:>14,}")


if __name__ == "__main__":
    main()
