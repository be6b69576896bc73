"""Someone with full access to the database goes around its triggers; the audit still names what was touched."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from fabric.wire.clock import ManualClock
from ledger.audit import AuditReport, run_audit
from ledger.checks import LEDGER_CHECKS
from ledger.closing import EpochTerms
from ledger.database import open_engine
from ledger.leaves import gpu_id_hex
from ledger.sealer import Sealer
from ledger.settings import LedgerSettings
from ledger.split import PoolTerms
from ledger.store import Ledger
from ledger.tables import create_schema, ledger_tables
from ledger.usage import Usage

HOUR = 3_600_000
ALICE_HOLDER, BOB_HOLDER = "0x" + "11" * 20, "0x" + "22" * 20
GPUS = [gpu_id_hex(f"GPU-{n}") for n in range(3)]
BOOKED = [table for table in ledger_tables() if not table.name.startswith("ledger_pool")]  # those carry signatures
TABLES = {table.name: table for table in BOOKED}
COLUMNS = [(table.name, column.name) for table in BOOKED for column in table.columns]


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> bytes:
    """Two customers, three GPUs, an undo, a change of holder, a claim, an exit, two closed epochs, an open hold."""
    path = tmp_path_factory.mktemp("ledger") / "history.db"
    engine = open_engine(f"sqlite:///{path}")
    clock = ManualClock()
    with engine.begin() as connection:
        create_schema(connection)
    with Session(engine) as session:
        ledger = Ledger(session, clock, LedgerSettings(genesis_ms=clock.now_ms(), epoch_ms=HOUR))
        _live(ledger, clock)
        Sealer(session).seal(clock.now_ms())
        session.commit()
    engine.dispose()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return raw.serialize()


@pytest.fixture
def tampered(history, tmp_path) -> Iterator[Callable[[Callable[[sqlite3.Connection], None]], AuditReport]]:
    """Changes a copy of the history behind the triggers' back, and audits it."""
    path = tmp_path / "copy.db"

    def change_and_audit(
        change: Callable[[sqlite3.Connection], None], known_heads: dict[int, bytes] | None = None
    ) -> AuditReport:
        path.write_bytes(history)
        _behind_the_triggers(path, change)
        engine = open_engine(f"sqlite:///{path}")
        try:
            with Session(engine) as session:
                return run_audit(
                    session, LEDGER_CHECKS, now_ms=ManualClock().now_ms() + 10 * HOUR, known_heads=known_heads
                )
        finally:
            engine.dispose()

    return change_and_audit


def test_the_untouched_history_is_clean(tampered):
    report = tampered(lambda raw: None)
    assert report.clean, report
    assert (report.sealed > 30, report.unsealed_tail) == (True, 0)


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_an_edited_column_is_named(tampered, table, column):
    report = tampered(lambda raw: _edit(raw, table, column))
    assert _named(report), (table, column)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("table", TABLES)
def test_a_deleted_row_is_named(tampered, table, place):
    seen = tampered(lambda raw: None)
    report = tampered(
        lambda raw: raw.execute(f"DELETE FROM {table} WHERE rowid = ?", (_rowid(raw, table, place),)),
        {seen.sealed: seen.head},
    )
    assert _named(report), (table, place)


@pytest.mark.parametrize("table", TABLES)
def test_an_inserted_row_is_named(tampered, table):
    report = tampered(lambda raw: _insert_copy(raw, table))
    assert _named(report), (table, report)


@pytest.mark.parametrize(
    ("table", "column", "check"),
    [
        ("ledger_dc_posting", "entry_id", "entries are whole"),
        ("ledger_dc_posting", "account_id", "entries are whole"),
        ("ledger_bct_posting", "entry_id", "entries are whole"),
        ("ledger_bct_posting", "account_id", "entries are whole"),
        ("ledger_usage", "entry_id", "usage is whole"),
        ("ledger_usage", "meter_id", "usage is whole"),
        ("ledger_link", "entry_id", "sealed chain"),
    ],
)
def test_a_row_that_names_what_is_not_there_is_named_without_the_seal_too(tampered, table, column, check):
    report = tampered(lambda raw: _edit(raw, table, column))
    named = {result.name: {finding.table for finding in result.findings} for result in report.results}
    assert named[check] & {table, "ledger_entry"}


def test_an_account_in_wait_that_bears_anothers_name_is_named(tampered):
    report = tampered(
        lambda raw: raw.execute(
            "INSERT INTO ledger_account (name, kind, owner, sub) VALUES ('available/carol/', 'available', 'bob', '')"
        )
    )
    assert [finding.table for finding in _named(report)] == ["ledger_account"]


def test_an_entry_booked_after_the_last_seal_is_reported_as_tail(tampered):
    def book(raw: sqlite3.Connection) -> None:
        raw.execute("INSERT INTO ledger_entry (source_id, kind, at_ms) VALUES ('close/x', 'close', 0)")

    assert tampered(book).unsealed_tail == 1


@pytest.mark.parametrize("table", TABLES)
def test_two_swapped_rows_are_named(tampered, table):
    report = tampered(lambda raw: _exchange(raw, table, {column.name for column in TABLES[table].primary_key}))
    assert _named(report), table


@pytest.mark.parametrize("table", TABLES)
def test_swapped_values_of_one_column_are_named(tampered, history, tmp_path, table):
    """Whatever sums they belong to stays what it was."""
    columns = _varied(history, tmp_path / "look.db", table)
    reports = {name: tampered(lambda raw, name=name: _exchange(raw, table, {name})) for name in columns}
    assert [name for name, report in reports.items() if not _named(report)] == []


def test_a_tail_cut_off_with_all_its_rows_and_links_is_named_by_a_head_seen_before(tampered):
    def cut(raw: sqlite3.Connection) -> None:
        (last,) = raw.execute("SELECT max(id) FROM ledger_entry WHERE kind = 'charge'").fetchone()
        for table, column in (
            ("ledger_dc_posting", "entry_id"),
            ("ledger_usage", "entry_id"),
            ("ledger_link", "entry_id"),
            ("ledger_entry", "id"),
        ):
            raw.execute(f"DELETE FROM {table} WHERE {column} >= ?", (last,))

    seen = tampered(lambda raw: None)
    assert not _named(tampered(cut))  # the database alone cannot show it
    named = _named(tampered(cut, {seen.sealed: seen.head}))
    assert [(finding.table, finding.key) for finding in named] == [("ledger_head", "seen before")]


def test_a_chain_sealed_anew_over_edited_rows_is_named_by_the_epochs_head(tampered):
    def reseal(raw: sqlite3.Connection) -> None:
        raw.execute("UPDATE ledger_entry SET at_ms = at_ms + 1 WHERE id = 5")
        raw.execute("DELETE FROM ledger_link")
        raw.commit()
        (path,) = (row[2] for row in raw.execute("PRAGMA database_list"))
        engine = open_engine(f"sqlite:///{path}")
        with Session(engine) as session:
            Sealer(session).seal(0)
            session.commit()
        engine.dispose()

    named = _named(tampered(reseal))
    assert "ledger_head" in {finding.table for finding in named}


def test_removed_triggers_are_named(tampered, history, tmp_path):
    path = tmp_path / "bare.db"
    path.write_bytes(history)
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER ledger_entry_no_update")
    engine = open_engine(f"sqlite:///{path}")
    with Session(engine) as session:
        named = _named(run_audit(session, LEDGER_CHECKS, now_ms=0))
    engine.dispose()
    assert [(finding.table, finding.key) for finding in named] == [("ledger_entry", "*")]


def test_the_first_bad_row_is_the_one_that_was_edited(tampered):
    report = tampered(lambda raw: raw.execute("UPDATE ledger_entry SET at_ms = at_ms + 1 WHERE id IN (7, 9)"))
    seal = next(result for result in report.results if result.name == "sealed chain")
    assert [(finding.table, finding.key) for finding in seal.findings] == [("ledger_entry", "7")]


def _live(ledger: Ledger, clock: ManualClock) -> None:
    for customer in ("alice", "bob"):
        ledger.credit_test(customer, 1_000_000, f"test/{customer}")
    ledger.record_bct_burned(10**18, "burned/1")
    for number, customer in enumerate(("alice", "bob", "alice")):
        ledger.hold(f"lease-{number}", f"run-{number}", customer, 40_000, f"hold/{number}")
    for seq in range(1, 4):
        clock.advance(60_000)
        ledger.charge_many([_use(clock, number, seq) for number in range(3)])
    ledger.undo("lease-1", 1, GPUS[1], 90_000, "undo/1")
    ledger.top_up("lease-0", 100, "top/0")
    ledger.release_hold("lease-0")
    clock.advance(HOUR - 180_000)
    terms = EpochTerms(pools={"pool-1": PoolTerms(1000, 0, 9000, "0x" + "99" * 20)}, payer_salt=b"salt")
    first = ledger.close_epoch(0, terms)
    ledger.charge_many([_use(clock, number, 4, holder=BOB_HOLDER) for number in (1, 2)])
    ledger.record_claim(GPUS[0], ALICE_HOLDER, next(p.wei for p in first.payouts if p.gpu_id == GPUS[0]), "claim/1")
    ledger.request_exit("bob", 500, "exit/1")
    clock.advance(HOUR)
    ledger.close_epoch(1)
    ledger.charge_many([_use(clock, 1, 5)])


def _use(clock: ManualClock, number: int, seq: int, holder: str = ALICE_HOLDER) -> Usage:
    return Usage(
        lease_id=f"lease-{number}",
        generation=1,
        seq=seq,
        run_id=f"run-{number}",
        customer=("alice", "bob", "alice")[number],
        gpu_id=GPUS[number],
        operator="op-1",
        pool="pool-1",
        holder=holder,
        model="H100",
        share_milli=1000,
        price_dc_per_gpu_hour=200_000,
        cumulative_gpu_ms=seq * 60_000,
        at_ms=clock.now_ms(),
        receipt_hash=bytes([seq]) * 32,
        utilised_gpu_ms=50_000,
        energy_mj=7,
    )


def _named(report: AuditReport) -> list[Any]:
    return [finding for result in report.results for finding in result.findings]


def _behind_the_triggers(path: Path, change: Callable[[sqlite3.Connection], None]) -> None:
    raw = sqlite3.connect(path)
    triggers = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        raw.execute(f"DROP TRIGGER {name}")
    raw.execute("PRAGMA foreign_keys = OFF")
    raw.execute("PRAGMA ignore_check_constraints = ON")
    change(raw)
    for _, sql in triggers:
        raw.execute(sql)
    raw.commit()
    raw.close()


def _rowid(raw: sqlite3.Connection, table: str, place: str = "middle") -> int:
    rowids = [rowid for (rowid,) in raw.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
    return {"first": rowids[0], "middle": rowids[len(rowids) // 2], "last": rowids[-1]}[place]


def _edit(raw: sqlite3.Connection, table: str, column: str) -> None:
    rowid = _rowid(raw, table)
    (value,) = raw.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (rowid,)).fetchone()
    raw.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (_other(value), rowid))


def _other(value: Any) -> Any:
    if value is None:
        return 1
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    return value + 1_000 if isinstance(value, int) else value + "x"


def _insert_copy(raw: sqlite3.Connection, table: str) -> None:
    """A copy of a row with other values in every column that is part of a key or unique."""
    raw.row_factory = sqlite3.Row
    rows = raw.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()
    raw.row_factory = None
    row = dict(rows[len(rows) // 2])
    unique = {"id", "source_id", "nth", "line", "position", "n", "epoch", "through_ms", "reverses_id"}
    if table == "ledger_usage":
        row["entry_id"] = raw.execute("SELECT id FROM ledger_entry WHERE kind = 'hold'").fetchone()[0]
    elif table == "ledger_link":
        row["entry_id"] = 999_999
    elif table in {"ledger_hold", "ledger_meter"}:
        row["lease_id"] = "lease-x"
    elif table == "ledger_account":
        row["name"] = "available/x/"
    for column in unique & row.keys():
        row[column] = _other(row[column])
    if table == "ledger_entry":
        row["id"] = -1
    marks = ",".join("?" * len(row))
    raw.execute(f"INSERT INTO {table} ({','.join(row)}) VALUES ({marks})", tuple(row.values()))


def _varied(history: bytes, path: Path, table: str) -> list[str]:
    """The columns in which a table's rows differ."""
    path.write_bytes(history)
    names = [column.name for column in TABLES[table].columns]
    counts = ", ".join(f"count(DISTINCT {name}) + (count({name}) < count(*))" for name in names)
    with closing(sqlite3.connect(path)) as raw:
        found = raw.execute(f"SELECT {counts} FROM {table}").fetchone()
    return [name for name, count in zip(names, found, strict=True) if count > 1]


def _exchange(raw: sqlite3.Connection, table: str, columns: set[str]) -> None:
    """Two rows that differ in these columns and in others exchange their values in them; the first two that can."""
    raw.row_factory = sqlite3.Row
    rows = [dict(row) for row in raw.execute(f"SELECT * FROM {table} ORDER BY rowid")]
    for first, second in combinations(rows, 2):
        differ = {name for name in first if first[name] != second[name]}
        if differ & columns and differ - columns:
            raw.execute("SAVEPOINT pair")
            try:
                _replace(raw, table, [first, second], [_mixed(first, second, columns), _mixed(second, first, columns)])
            except sqlite3.IntegrityError:
                raw.execute("ROLLBACK TO pair")
            else:
                return
    raise AssertionError(f"no two rows of {table} can exchange {columns}")


def _mixed(row: dict[str, Any], other: dict[str, Any], columns: set[str]) -> dict[str, Any]:
    return row | {name: other[name] for name in columns}


def _replace(raw: sqlite3.Connection, table: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    keys = [column.name for column in TABLES[table].primary_key]
    for row in old:
        where = " AND ".join(f"{key} = ?" for key in keys)
        raw.execute(f"DELETE FROM {table} WHERE {where}", [row[key] for key in keys])
    for row in new:
        raw.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
