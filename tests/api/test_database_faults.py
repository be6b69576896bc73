"""A database that is read-only, full, damaged or of a newer schema: what is said, and that nothing is half done."""

import sqlite3

import pytest
from scripted import H100_PRICE, KEY, Agent, done
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, OperationalError

from api.database import Database, DatabaseUnusable
from api.database_faults import fault
from api.metering import Arrived
from api.plane import build
from api.schema import migrate
from api.settings import Settings
from fabric.wire import link
from fabric.wire.clock import ManualClock
from fabric.wire.receipts import ReceiptKind

PADDING = ["x" * 180 + str(number) for number in range(200)]
"""Enough that a request needs pages of its own."""


class Room:
    """How many pages the database may have, for connections of one control plane."""

    def __init__(self, database: Database) -> None:
        self._engine = database.writer
        self.pages = 2**30
        event.listen(self._engine, "begin", self._limit)

    def _limit(self, connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {self.pages}")

    def fill(self) -> None:
        """No page more than there are."""
        self.pages = 1

    def empty(self) -> None:
        self.pages = 2**30


def begin(folder, url: str):
    return build(Settings(state_dir=folder, database_url=url, allow_simulated=True), ManualClock())


def test_a_read_only_database_is_refused_at_the_start_and_left_as_it_was(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    begin(tmp_path, url).database.close()
    before = (tmp_path / "x.db").read_bytes()
    with pytest.raises(DatabaseUnusable, match=r"is read-only; give the control plane's user write permission"):
        begin(tmp_path, f"sqlite:///file:{tmp_path}/x.db?mode=ro&uri=true")
    assert (tmp_path / "x.db").read_bytes() == before


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatabaseUnusable, match=r"none/x\.db cannot be opened; check that its folder exists"):
        begin(tmp_path, f"sqlite:///{tmp_path}/none/x.db")


def test_a_full_disk_at_the_first_start_leaves_no_half_schema(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/x.db")
    room = Room(database)
    room.pages = 20
    with pytest.raises(DatabaseUnusable, match="has no room"):
        migrate(database)
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM sqlite_master")).scalar() == 0
    room.empty()
    migrate(database)
    database.close()


def test_a_page_that_was_overwritten_is_found_at_the_start(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    begin(tmp_path, url).database.close()
    path = tmp_path / "x.db"
    data = bytearray(path.read_bytes())
    data[4096 * 5 : 4096 * 9] = b"\xff" * 4096 * 4
    path.write_bytes(data)
    with pytest.raises(DatabaseUnusable, match=r"(?s)is damaged.*restore it from a copy"):
        begin(tmp_path, url)


def test_a_disk_that_runs_full_refuses_a_run_whole_and_goes_on_when_there_is_room(start):
    fabric = start()
    agent = Agent(fabric)
    agent.connect()
    room = Room(fabric.plane.database)
    room.fill()
    before = fabric.call("GET", "/v1/account")
    refused = [fabric.call("POST", "/v1/runs", body(number), expect=503) for number in range(3)]
    for one in refused:
        assert one["type"] == "/problems/service"
        assert "has no room" in one["detail"]
        assert "nothing was changed" in one["detail"]
        assert one["retryable"] is True
    assert fabric.call("GET", "/v1/account") == before
    assert fabric.call("GET", "/v1/runs")["runs"] == []
    room.empty()
    assert fabric.audit() == []
    fabric.call("POST", "/v1/runs", body(0), expect=201)
    assert agent.expect(link.Grant)


def body(number: int) -> dict:
    return {
        "id": f"run_{number:026d}",
        "session": "ses-alice",
        "python": "3.11",
        "gpu": ["H100"],
        "operators_deny": PADDING,
    }


def test_receipts_that_found_no_room_are_not_acknowledged_and_count_once_when_sent_again(start):
    fabric = start()
    agent = Agent(fabric)
    agent.connect()
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.beat(10_000)
    room = Room(fabric.plane.database)
    room.fill()
    tasks = tuple(done(grant.run, number) for number in range(300))
    signed = agent.signed(grant, ReceiptKind.TICK, 10_000, tasks=tasks)
    ingest = fabric.app.state.ingest
    with pytest.raises(DBAPIError):
        ingest.metering.take([arrived(signed.to_bytes())])
    room.empty()
    answers = ingest.metering.take([arrived(signed.to_bytes())])
    assert [type(answer) for _, answer in answers] == [link.Ack]
    fabric.tick()
    (run,) = fabric.call("GET", "/v1/runs")["runs"]
    assert int(run["cost"]["accrued_dc"]) == 10_000 * H100_PRICE // 3_600_000
    assert fabric.audit() == []


def arrived(data: bytes):
    return Arrived("op-1", (bytes(KEY.verify_key),), data)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("SQLITE_READONLY_DIRECTORY", "read-only"),
        ("SQLITE_FULL", "no room"),
        ("SQLITE_CORRUPT_INDEX", "damaged"),
        ("SQLITE_IOERR_WRITE", "disk"),
        ("SQLITE_BUSY", "locked by another program"),
        ("SQLITE_CONSTRAINT_UNIQUE", None),
    ],
)
def test_sqlites_own_codes_are_understood(code, says):
    error = sqlite3.OperationalError("x")
    error.sqlite_errorname = code
    found = fault(OperationalError("SELECT 1", {}, error))
    assert found is None if says is None else says in found


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("25006", "read-only"),
        ("53100", "no room"),
        ("08006", "cannot be reached"),
        ("28P01", "password"),
        ("57P01", "shutting down"),
        ("XX001", "damaged"),
        ("40001", None),
        ("23505", None),
    ],
)
def test_postgresqls_codes_are_understood(state, says):
    class Raised(Exception):
        sqlstate = state

    found = fault(OperationalError("SELECT 1", {}, Raised()))
    assert found is None if says is None else says in found


def test_a_postgresql_that_is_not_there_is_refused_with_what_to_check(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(DatabaseUnusable, match=r"cannot be reached; check that the server runs"):
        begin(tmp_path, "postgresql+psycopg://u:secret@127.0.0.1:1/x")


def test_no_refusal_says_the_password(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(DatabaseUnusable) as refused:
        begin(tmp_path, "postgresql+psycopg://u:secret@127.0.0.1:1/x")
    assert "secret" not in str(refused.value)
