"""The ledger on PostgreSQL: the same rules, and many writers at once."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlmodel import Session, SQLModel

from ledger.audit import run_audit
from ledger.checks import LEDGER_CHECKS
from ledger.database import open_engine
from ledger.errors import InsufficientFunds
from ledger.leaves import gpu_id_hex
from ledger.sealer import Sealer
from ledger.store import Balance, Ledger
from ledger.tables import BctPostingRow, create_schema, ledger_tables

pytest.importorskip("psycopg", reason="needs the PostgreSQL driver")
pytestmark = pytest.mark.postgres

BINARIES = Path("/usr/lib/postgresql/15/bin")
GPU = gpu_id_hex("GPU-1")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """A server of its own on loopback, stopped at the end."""
    if not (BINARIES / "initdb").exists():
        pytest.skip("needs PostgreSQL 15 binaries")
    folder = tmp_path_factory.mktemp("pg")
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    for parent in (folder, *folder.parents):
        if os.geteuid() == 0 and parent != Path("/tmp") and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    if as_postgres:
        shutil.chown(folder, "postgres")
    data, port = folder / "data", _free_port()
    run = [*as_postgres, str(BINARIES / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"]
    subprocess.run(run, check=True, capture_output=True)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=100"
    control = [*as_postgres, str(BINARIES / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True)
    yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)


@pytest.fixture
def engine(server) -> Iterator[Engine]:
    engine = open_engine(server)
    with engine.begin() as connection:
        create_schema(connection)
    yield engine
    with engine.begin() as connection:
        SQLModel.metadata.drop_all(connection, tables=ledger_tables())
    engine.dispose()


def test_a_whole_life_of_a_ledger_audits_clean(funded, session, use, clock):
    for seq in range(1, 6):
        funded.charge("lease-1", use(seq, seq * 1000))
    assert funded.charge("lease-1", use(5, 5000)).dc == 55
    funded.undo("lease-1", 1, GPU, 2500, "undo/1")
    funded.record_bct_burned(10**27, "burned/1")
    funded.release_hold("lease-1")
    clock.advance(3_600_000)
    result = funded.close_epoch(0)
    assert result.totals.burned_dc == 139
    clock.advance(3_600_000)
    Sealer(session).seal(clock.now_ms())
    session.commit()
    report = run_audit(session, LEDGER_CHECKS, now_ms=clock.now_ms())
    assert report.clean, report
    assert report.unsealed_tail == 0
    assert funded.close_epoch(0) == result


def test_the_database_refuses_changes_and_balances_below_zero(funded, session, clock):
    session.commit()
    for table in ("ledger_entry", "ledger_dc_posting"):
        for statement in (f"UPDATE {table} SET account_id = 1", f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
            with pytest.raises(DatabaseError):
                session.execute(text(statement))
            session.rollback()
    session.add(BctPostingRow(entry_id=1, line=9, account_id=1, nth=9, amount=-1, balance=-1, is_source=False))
    with pytest.raises(IntegrityError, match="solvent"):
        session.flush()
    session.rollback()
    session.execute(text("UPDATE ledger_hold SET closed_ms = 5"))
    with pytest.raises(DatabaseError, match="immutable"):
        session.execute(text("UPDATE ledger_hold SET closed_ms = 6"))
    session.rollback()


def test_sixty_four_clients_with_one_wallet_never_overspend(engine, clock, settings):
    with Session(engine) as session:
        Ledger(session, clock, settings).credit_test("alice", 1_000, "t")
        session.commit()

    def hold(number: int) -> bool:
        with Session(engine) as session:
            try:
                Ledger(session, clock, settings).hold(f"l{number}", "r", "alice", 30, f"h{number}")
            except InsufficientFunds:
                return False
            session.commit()
            return True

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(hold, range(64)))
    assert granted == 33
    with Session(engine) as session:
        assert Ledger(session, clock, settings).balance("alice") == Balance(10, 990, 0)


def test_one_receipt_sent_to_two_brokers_is_charged_once(engine, clock, settings, use):
    with Session(engine) as session:
        ledger = Ledger(session, clock, settings)
        ledger.credit_test("alice", 100_000, "t")
        ledger.hold("lease-1", "run-1", "alice", 50_000, "h")
        session.commit()

    def charge(_: int) -> int:
        with Session(engine) as session:
            dc = Ledger(session, clock, settings).charge("lease-1", use(1, 1000)).dc
            session.commit()
            return dc

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(charge, range(8))) == [56] * 8
    with Session(engine) as session:
        assert Ledger(session, clock, settings).balance("alice").held == 50_000 - 56


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
