"""Starting: migrations, damaged and newer databases, the bootstrap file, settings that may not change."""

import json

import pytest
from scripted import bootstrap_file

from api.app import create_app
from api.bootstrap import BootstrapError
from api.database import Database, DatabaseUnusable
from api.schema import migrate
from api.settings import Settings
from api.tables import api_tables
from fabric.wire.clock import ManualClock
from fabric.wire.keys import KNOWN_KEYS
from ledger.leaves import gpu_id_hex
from ledger.settings import LedgerSettings
from ledger.store import Ledger
from ledger.usage import Usage


def create(tmp_path, **settings):
    app = create_app(Settings(state_dir=tmp_path, **settings), ManualClock(), tick_s=None)
    app.state.plane.database.close()
    return app


def test_an_empty_database_gets_every_table_and_a_second_start_changes_nothing(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/x.db")
    migrate(database)
    with database.read() as session:
        names = {row[0] for row in session.connection().exec_driver_sql("SELECT name FROM sqlite_master")}
        before = session.connection().exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar()
    assert {table.name for table in api_tables()} | {"ledger_entry", "ledger_entry_no_update"} <= names
    migrate(database)
    with database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar() == before
    database.close()


def test_a_database_of_an_earlier_schema_becomes_as_a_new_one_with_the_totals_of_its_usage(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/x.db")
    migrate(database)
    used_for_hours(database)
    new = schema_and_totals(database)
    with database.write() as session:
        for statement in (
            "DROP TABLE ledger_gpu_total",
            "DROP INDEX ledger_account_pending",
            "DROP INDEX ledger_entry_of_lease",
            "DROP INDEX ledger_entry_no_charge",
            "DROP INDEX ledger_meter_of_gpu",
            "DROP INDEX ledger_usage_meter_accepted",
            "DROP INDEX ledger_finality_of_epoch",
            "CREATE INDEX ledger_entry_lease ON ledger_entry (lease_id, kind)",
            "CREATE INDEX ledger_meter_gpu ON ledger_meter (gpu_id)",
            "CREATE INDEX ledger_usage_run ON ledger_usage (run_id)",
            "CREATE INDEX ledger_finality_epoch ON ledger_finality (epoch)",
            "UPDATE alembic_version SET version_num = 'untold'",
        ):
            session.connection().exec_driver_sql(statement)
    migrate(database)
    assert schema_and_totals(database) == new
    database.close()


def used_for_hours(database):
    clock = ManualClock()
    with database.write() as session:
        ledger = Ledger(session, clock, LedgerSettings(genesis_ms=clock.now_ms()))
        ledger.credit_test("alice", 1_000_000, "test")
        ledger.hold("lease-1", "run-1", "alice", 500_000, "hold")
        for seq in range(1, 4):
            clock.advance(3_600_000)
            ledger.charge("lease-1", usage(seq, clock.now_ms()))
            ledger.finalise_usage()


def usage(seq, at_ms):
    return Usage(
        lease_id="lease-1",
        generation=1,
        seq=seq,
        run_id="run-1",
        customer="alice",
        gpu_id=gpu_id_hex("GPU-1"),
        operator="op-1",
        pool="op-1",
        holder="0x" + "11" * 20,
        model="H100",
        share_milli=1000,
        price_dc_per_gpu_hour=100_000,
        cumulative_gpu_ms=seq * 3_600_000,
        at_ms=at_ms,
    )


def schema_and_totals(database):
    with database.read() as session:
        raw = session.connection()
        schema = set(raw.exec_driver_sql("SELECT name, sql FROM sqlite_master"))
        totals = list(raw.exec_driver_sql("SELECT * FROM ledger_gpu_total ORDER BY through_ms"))
    assert len(totals) == 2
    return schema, totals


def test_a_newer_schema_is_refused(tmp_path):
    create(tmp_path)
    database = Database(f"sqlite:///{tmp_path}/fabric.db")
    with database.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(DatabaseUnusable, match="start the newer version"):
        create(tmp_path)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    (tmp_path / "fabric.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(DatabaseUnusable, match="cannot be opened as a database"):
        create(tmp_path)
    assert (tmp_path / "fabric.db").read_bytes().startswith(b"not a database")


def test_secrets_are_their_owners_only(tmp_path):
    create(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "token.key").stat().st_mode & 0o777 == 0o600


def test_applying_the_bootstrap_file_twice_changes_nothing(fabric, start):
    before = fabric.call("GET", "/v1/account")
    assert start().call("GET", "/v1/account") == before
    assert before["test"]


@pytest.mark.parametrize("text", ["{", '{"customer": []}', '{"customers": [{"id": "a/b"}]}'])
def test_a_wrong_bootstrap_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "bootstrap.json"
    path.write_text(text)
    with pytest.raises(BootstrapError, match=r"bootstrap\.json"):
        create(tmp_path, bootstrap=path)


def test_keys_are_stored_hashed(fabric):
    data = (fabric.plane.settings.state_dir / "fabric.db").read_bytes()
    assert b"key-alice" not in data
    assert json.loads(bootstrap_file(fabric.plane.settings.state_dir).read_text())["customers"]


def test_the_length_of_epochs_cannot_change_under_a_ledger(tmp_path):
    create(tmp_path, epoch_s=60)
    create(tmp_path, epoch_s=60)
    with pytest.raises(DatabaseUnusable, match="FABRIC_EPOCH_S"):
        create(tmp_path, epoch_s=61)


def test_every_setting_is_a_known_key():
    assert {f"FABRIC_{name.upper()}" for name in Settings.model_fields} <= KNOWN_KEYS


def test_health_readiness_metrics_and_the_api_description(fabric):
    for path in ("/healthz", "/readyz"):
        answer = fabric.client.get(path).json()
        assert (answer["status"], answer["fabric_id"]) == ("ok", fabric.plane.fabric_id)
    assert "fabric_http_seconds" in fabric.client.get("/metrics").text
    described = fabric.client.get("/openapi.json").json()
    operations = [one for path in described["paths"].values() for one in path.values()]
    assert all(one.get("summary") and one.get("tags") for one in operations)


def test_a_missing_or_wrong_key_is_401_and_a_customers_key_on_an_admin_route_403(fabric):
    assert fabric.client.get("/v1/account").status_code == 401
    assert fabric.call("GET", "/v1/account", who="nobody", expect=401)["type"] == "/problems/auth"
    assert fabric.call("GET", "/v1/audit", expect=403)["type"] == "/problems/permission-denied"
    assert fabric.call("POST", "/v1/ledger/epochs/close", expect=403)["status"] == 403
    assert fabric.call("GET", "/v1/nothing", expect=404)["type"] == "/problems/not-found"
