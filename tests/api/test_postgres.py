"""Two control planes on one PostgreSQL: one truth, no overselling, no overspending, whole transactions again."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from scripted import Agent, Fabric, TestClient, bootstrap_file, gpu, nodes
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel import Session, select
from starlette.testclient import WebSocketDenialResponse
from test_metering import UNFIT, refuse_unfit
from test_slots import WALLET, issue, money

from api import conduct, keys
from api.app import create_app
from api.database import Database, say
from api.enrolment_tables import OperatorWalletRow
from api.listening import Listener
from api.plane import Plane, build
from api.reputation import DayFacts, score
from api.schema import migrate
from api.settings import Settings
from api.tables import FactRow, GpuRow
from fabric.wire import link
from fabric.wire.clock import ManualClock
from fabric.wire.receipts import ReceiptKind
from ledger.errors import InsufficientFunds, PoolTermsRefused
from ledger.leaves import gpu_id_hex
from ledger.poolbook import PoolBook, Signed
from ledger.pools import Entrance
from ledger.split import PoolTerms

pytest.importorskip("psycopg", reason="needs the PostgreSQL driver")
pytestmark = pytest.mark.postgres

GPU_POOLED = gpu_id_hex("GPU-pooled")
CONFLICT = text("DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$")


@pytest.fixture
def planes(postgresql_url, tmp_path) -> Iterator[list[Plane]]:
    """Two control planes, built one after the other on the same database."""
    clock = ManualClock()
    made = [build(Settings(state_dir=tmp_path / name, database_url=postgresql_url), clock) for name in ("a", "b")]
    yield made
    for plane in made:
        plane.database.close()


def app_on(url: str, folder: Path, clock: ManualClock) -> FastAPI:
    settings = Settings(
        state_dir=folder / "plane", database_url=url, bootstrap=bootstrap_file(folder), allow_simulated=True
    )
    return create_app(settings, clock, tick_s=None)


def test_two_control_planes_migrate_once_and_are_one_fabric(planes):
    one, two = planes
    assert one.fabric_id == two.fabric_id
    assert one.life != two.life


def test_a_database_whose_rows_were_checked_one_by_one_becomes_as_a_new_one(planes):
    database = planes[0].database
    new = _checks(database)
    with database.write() as session:
        for table, column, named in _KEYS:
            session.execute(text(f"ALTER TABLE {table} ADD FOREIGN KEY ({column}) REFERENCES {named} (id)"))
        for table in {table for table, _, _ in _KEYS}:
            session.execute(text(f"DROP TRIGGER {table}_whole ON {table}"))
            session.execute(text(f"DROP FUNCTION {table}_whole"))
        session.execute(text("UPDATE alembic_version SET version_num = 'totals'"))
    assert _checks(database) != new
    migrate(database)
    assert _checks(database) == new


def _checks(database: Database) -> set[tuple[str, str]]:
    """What the database checks of rows of the ledger: constraints and triggers, with the tables they are of."""
    with database.read() as session:
        found = session.execute(
            text(
                "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype <> 't' "
                "UNION SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"
            )
        )
        return {(table, check) for table, check in found if table.startswith("ledger_")}


_KEYS = [
    ("ledger_dc_posting", "entry_id", "ledger_entry"),
    ("ledger_dc_posting", "account_id", "ledger_account"),
    ("ledger_bct_posting", "entry_id", "ledger_entry"),
    ("ledger_bct_posting", "account_id", "ledger_account"),
    ("ledger_usage", "entry_id", "ledger_entry"),
    ("ledger_usage", "meter_id", "ledger_meter"),
    ("ledger_link", "entry_id", "ledger_entry"),
]
"""Foreign keys of an earlier schema: (table, column, table named)."""


def test_two_control_planes_accept_each_others_tokens(planes):
    one, two = planes
    token = keys.blob_token(one.token_key, "op-1", one.now_ms())
    assert keys.read_blob_token(two.token_key, token, two.now_ms()) == "op-1"
    assert bytes(one.token_key) == bytes(two.token_key)


def test_sixty_four_clients_of_two_control_planes_never_overspend_one_wallet(planes):
    with planes[0].database.write() as session:
        planes[0].ledger(session).credit_test("alice", 1_000, "t")

    def hold(number: int) -> bool:
        plane = planes[number % 2]
        try:
            with plane.database.write() as session:
                plane.ledger(session).hold(f"l{number}", f"r{number}", "alice", 30, f"h{number}")
        except InsufficientFunds:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(hold, range(64))) == 33
    with planes[1].database.read() as session:
        assert planes[1].ledger(session).balance("alice").available == 10


def test_a_transaction_that_met_a_conflict_is_done_again_as_a_whole(planes):
    tried: list[int] = []

    def work(session: Session) -> str:
        tried.append(len(tried))
        session.add(FactRow(name=f"try-{len(tried)}", value="x"))
        session.flush()
        if len(tried) < 3:
            session.execute(CONFLICT)
        return "done"

    assert planes[0].database.transact(work) == "done"
    with planes[1].database.read() as session:
        assert [session.get(FactRow, f"try-{n}") is not None for n in (1, 2, 3)] == [False, False, True]


def test_another_fault_is_not_tried_again(planes):
    tried: list[int] = []

    def work(session: Session) -> None:
        tried.append(1)
        session.add(FactRow(name="fabric_id", value="x"))
        session.flush()

    with pytest.raises(IntegrityError):
        planes[0].database.transact(work)
    assert len(tried) == 1


def test_a_conflict_that_does_not_end_is_raised(planes):
    with pytest.raises(DBAPIError, match="conflict"):
        planes[0].database.transact(lambda session: session.execute(CONFLICT))


def test_what_one_control_plane_commits_wakes_the_other(planes, postgresql_url):
    heard: list[str] = []
    ready, came = threading.Event(), threading.Event()

    def note(topic: str) -> None:
        heard.append(topic)
        came.set()

    listener = Listener(postgresql_url, note, ready.set)
    listener.start()
    assert ready.wait(10)
    with planes[0].database.write() as session:
        say(session, "cluster:c", "cluster:c")
    assert came.wait(10)
    listener.close()
    assert heard == ["cluster:c"]


def test_a_database_that_is_not_there_is_listened_for_again(postgresql_url):
    calls: list[int] = []
    listener = Listener(postgresql_url.replace("/postgres", "/nowhere"), lambda _: None, lambda: calls.append(1))
    listener.start()
    listener.close()
    assert calls == []


def test_two_brokers_that_race_for_the_same_gpus_never_oversell(postgresql_url, tmp_path):
    clock, bootstrap = ManualClock(), bootstrap_file(tmp_path)
    settings = Settings(
        state_dir=tmp_path / "shared",
        database_url=postgresql_url,
        bootstrap=bootstrap,
        allow_simulated=True,
        public_url="http://x",
    )
    apps = [create_app(settings, clock, tick_s=None) for _ in range(2)]
    with contextlib.ExitStack() as resources:
        clients = [resources.enter_context(TestClient(app)) for app in apps]
        brokers = [
            resources.enter_context(Fabric(app, client, clock)) for app, client in zip(apps, clients, strict=True)
        ]
        offered = [gpu(number) for number in range(801, 807)]
        agent = Agent(brokers[0], cluster="raced", nodes=nodes(*offered[:3]) + nodes(*offered[3:], name="node-2"))
        agent.connect()
        with ThreadPoolExecutor(
            8
        ) as pool:  # one and two GPUs at a time, so that both brokers want what the other wants
            wanted = [["H100:2"] if number % 3 == 0 else ["H100"] for number in range(24)]
            runs = list(
                pool.map(lambda n: brokers[n % 2].submit(gpu=wanted[n], who=("alice", "bob")[n % 2]), range(24))
            )
        leased = [one["uuid"] for run in runs for lease in run["leases"] for one in lease["gpus"]]
        assert len(leased) == len(set(leased))
        with apps[1].state.plane.database.read() as session:
            used = session.scalars(select(GpuRow.used_milli).where(GpuRow.cluster == "op-1/raced")).all()
        assert sorted(used) == sorted([1000] * len(leased) + [0] * (6 - len(leased)))
        assert len(leased) >= 4  # and what was free was sold: at most one account waits at its limit of unopened leases
        assert {run["state"] for run in runs} == {"STARTING", "QUEUED"}
        for number, run in enumerate(runs):  # what still waits would take the GPUs of the tests that come after
            brokers[0].call("POST", f"/v1/runs/{run['id']}/cancel", who=("alice", "bob")[number % 2])


def test_a_route_names_the_control_plane_whose_relay_leads_to_the_agent(postgresql_url, tmp_path):
    clock, apps = ManualClock(), {}
    bootstrap = bootstrap_file(tmp_path)
    for name in ("one", "two"):
        settings = Settings(
            state_dir=tmp_path / "shared",
            database_url=postgresql_url,
            bootstrap=bootstrap,
            allow_simulated=True,
            public_url=f"https://{name}.example",
        )
        apps[name] = create_app(settings, clock, tick_s=None)
    with (
        TestClient(apps["one"]) as one,
        TestClient(apps["two"]) as two,
        Fabric(apps["one"], one, clock) as here,
        Fabric(apps["two"], two, clock) as there,
    ):
        agent = Agent(here, cluster="relayed", gateway="", fingerprint="ab" * 32)
        agent.connect()
        run = here.submit(gpu=["L4"], who="carol")  # the others' unopened leases are as many as they may have
        (route,) = there.call("GET", f"/v1/runs/{run['id']}/route", who="carol")["routes"]
        assert (route["gateway"], route["fingerprint"]) == ("", "ab" * 32)
        assert route["relay"] == "https://one.example/v1/relay"
        with (
            pytest.raises(WebSocketDenialResponse) as denied,
            two.websocket_connect("/v1/relay", headers={"Authorization": f"Bearer {route['token']}"}),
        ):
            pass
        assert denied.value.status_code == 503
        assert "not connected to this control plane" in denied.value.text


def test_a_receipt_that_no_row_can_hold_is_refused_and_what_comes_beside_it_is_taken(postgresql_url, tmp_path):
    clock = ManualClock()
    app = app_on(postgresql_url, tmp_path, clock)
    with TestClient(app) as client, Fabric(app, client, clock) as here:
        agent = Agent(here, cluster="unfit", nodes=nodes(*(gpu(1001 + number) for number in range(len(UNFIT) + 1))))
        agent.connect()
        agent.beat(1_000)

        def opened() -> tuple[str, link.Grant]:
            run = here.submit(who="carol", operators_allow=["op-1"])["id"]
            grant = agent.expect(link.Grant)
            agent.open(grant)
            return run, grant

        _, beside = opened()
        for make in UNFIT.values():
            run, grant = opened()
            agent.beat(1_000)
            refuse_unfit(agent, agent.signed(grant, ReceiptKind.TICK, 1_000, **make(run)).to_bytes(), grant, beside)
            assert agent.expect(link.Release).lease == grant.lease


@pytest.mark.parametrize("said", ["hello", "inventory"])
def test_an_agent_whose_nodes_no_row_can_hold_is_told_so(postgresql_url, tmp_path, said):
    app = app_on(postgresql_url, tmp_path, ManualClock())
    wrong = nodes(gpu(1101, "H\0"))
    with TestClient(app) as client, Fabric(app, client, app.state.plane.clock) as here:
        agent = Agent(here, cluster=f"told-{said}", nodes=wrong if said == "hello" else nodes(gpu(1101)))
        answer = agent.connect()
        if said == "inventory":
            agent.send(link.Inventory(nodes=wrong))
            answer = agent.expect(link.Refuse)
        assert "NUL" in answer.reason


TERMS = PoolTerms(0, 0, 10_000)


def test_a_gpu_that_two_control_planes_let_join_is_in_one_pool_and_leaves_it_once(planes):
    signed = Signed("0x" + "11" * 20, b"s", 0)
    with planes[0].database.write() as session:
        for name in ("red", "blue"):
            PoolBook(session, planes[0].pool_rules).found(name, TERMS, Entrance.OPEN, now_epoch=0, signed=signed)

    def book(number: int, act: str) -> bool:
        plane = planes[number % 2]
        try:
            with plane.database.write() as session:
                pools = PoolBook(session, plane.pool_rules)
                if act == "join":
                    pools.join(("red", "blue")[number % 2], GPU_POOLED, now_epoch=1, signed=signed)
                else:
                    pools.kick(GPU_POOLED, 4_999, now_epoch=2, signed=signed)
        except PoolTermsRefused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda n: book(n, "join"), range(16))) == 1
        assert all(pool.map(lambda n: book(n, "kick"), range(16)))
    with planes[1].database.read() as session:
        [stay] = PoolBook(session, planes[1].pool_rules).stays(GPU_POOLED)
    assert (stay.from_epoch, stay.until_epoch) == (2, 3 + planes[0].pool_rules.exit_delay_epochs)


def test_a_slot_that_many_buy_at_two_control_planes_is_sold_once_and_paid_once(postgresql_url, tmp_path):
    clock = ManualClock()
    settings = Settings(
        state_dir=tmp_path / "shared",
        database_url=postgresql_url,
        bootstrap=bootstrap_file(tmp_path),
        allow_simulated=True,
        public_url="http://x",
    )
    apps = [create_app(settings, clock, tick_s=None) for _ in range(2)]
    with contextlib.ExitStack() as resources:
        clients = [resources.enter_context(TestClient(app)) for app in apps]
        brokers = [
            resources.enter_context(Fabric(app, client, clock)) for app, client in zip(apps, clients, strict=True)
        ]
        agent = Agent(brokers[0], cluster="slotted", nodes=nodes(gpu(901)))
        agent.connect()
        with brokers[0].plane.database.write() as session:
            session.merge(OperatorWalletRow(operator="op-1", wallet=WALLET.address))
        for _ in range(2):
            agent.beat(1000)
        slot = issue(brokers[0], gpu=gpu_id_hex("GPU-901"))
        before = {who: sum(money(brokers[0], who)) for who in ("alice", "bob")}

        def buy(number: int) -> int:
            who = ("alice", "bob")[number // 2 % 2]
            headers = {"Authorization": f"Bearer key-{who}"}
            return brokers[number % 2].client.post(f"/v1/slots/{slot['id']}/buy", headers=headers).status_code

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(buy, range(16)))
        assert sorted(set(answers)) == [200, 409]
        assert answers.count(200) == 8, "the buyer's repeats are answered as the first"
        held = {who: money(brokers[1], who)[1] for who in ("alice", "bob")}
        assert int(slot["price_dc"]) in (held["alice"], held["bob"]) or sum(held.values()) >= int(slot["price_dc"])
        assert {who: sum(money(brokers[1], who)) for who in before} == before, "a sale sets money aside, and no more"


def test_reputations_are_made_of_the_same_facts_here(planes, postgresql_url, tmp_path):
    clock = ManualClock()
    app = app_on(postgresql_url, tmp_path, clock)
    with TestClient(app) as client, Fabric(app, client, clock) as here:
        conduct.sweep(app.state.plane)
        answer = here.call("GET", "/v1/operators/op-2/reputation")
    assert answer["reputation"] == score([DayFacts(**day) for day in answer["days"]], answer["today"]).value


def test_text_that_postgresql_cannot_hold_is_refused_and_no_fault(postgresql_url, tmp_path):
    app = app_on(postgresql_url, tmp_path, ManualClock())
    with TestClient(app, raise_server_exceptions=False) as client, Fabric(app, client, app.state.plane.clock) as here:
        for path in ("runs/a%00", "ledger/pools/%00", "gpus/%00"):
            assert "NUL" in here.call("GET", f"/v1/{path}", expect=422)["detail"]
