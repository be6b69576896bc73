"""`fabric operator drain | undrain | price set` against a control plane in a thread of this process."""

import json
import socket
import threading

import pytest
import uvicorn
from nacl.signing import SigningKey
from typer.testing import CliRunner

from api.app import create_app
from api.notice_tables import DrainRow, NoticeRow
from api.orders import current_prices
from api.settings import Settings
from api.tables import ClusterRow, CustomerRow, GpuRow, LeaseRow, NodeRow, PriceRow, RunRow, SessionRow
from fabric.operator import init, orders
from fabric.operator.cli import app as command
from fabric.operator.folder import OperatorFolder, write_private
from fabric.operator.orders_cli import orders_of
from fabric.wire.clock import ManualClock
from ledger.leaves import gpu_id_hex

KEY = SigningKey(b"\x07" * 32)


class World:
    """A control plane with one cluster of two nodes, and the operator's folder."""

    def __init__(self, tmp_path):
        self.clock = ManualClock()
        declared = tmp_path / "bootstrap.json"
        key = bytes(KEY.verify_key).hex()
        payout = "0x" + "ab" * 20
        declared.write_text(
            json.dumps({"operators": [{"id": "op-1", "name": "One", "session_key": key, "payout": payout}]})
        )
        served = create_app(Settings(state_dir=tmp_path / "state", bootstrap=declared), self.clock, tick_s=None)
        self.plane = served.state.plane
        self._stock()
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(served, log_level="error", ws="none"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        self.place = OperatorFolder(tmp_path / "op")
        self.place.lay_out()
        site = init.Site(
            url=f"http://127.0.0.1:{self.listener.getsockname()[1]}",
            cluster="gpus",
            head="10.0.0.1",
            workers=("10.0.0.2",),
            region="eu",
            ssh_user="fabric",
            ssh_key="~/.ssh/id",
            prices={"H100": {"on_demand": "2.49", "spot": "0.99"}},
            nodes={},
            venv="",
            index="",
            offline=False,
        )
        init.write_cluster_file(self.place, site, "op-1")
        write_private(self.place.session_key_file, bytes(KEY).hex())

    def _stock(self):
        with self.plane.database.write() as session:
            values = {"gateway": "", "version": "1", "connection": "", "connected": True, "last_heard_ms": 2**50}
            session.add(ClusterRow(id="op-1/gpus", operator="op-1", name="gpus", **values))
            session.add(CustomerRow(id="alice", name="Alice", test=True, created_ms=0))
            session.flush()
            shape = {"vendor": "nvidia", "model": "H100", "name": "H100", "memory_bytes": 8 * 10**10}
            state = {"healthy": True, "present": True, "problem": "", "driver": "", "pcie": "", "simulated": True}
            for number in (1, 2):
                machine = {"region": "eu", "cpu_milli": 1, "memory_bytes": 1, "disk_bytes": 1, "python": "3.11"}
                session.add(
                    NodeRow(
                        cluster="op-1/gpus",
                        name=f"n{number}",
                        address=f"10.0.0.{number}",
                        cloudpickle="3",
                        present=True,
                        lost=False,
                        **machine,
                    )
                )
                uuid, place = f"GPU-{number}", {"cluster": "op-1/gpus", "node": f"n{number}"}
                session.add(
                    GpuRow(
                        uuid=uuid,
                        id=gpu_id_hex(uuid),
                        operator="op-1",
                        used_milli=0,
                        first_seen_ms=0,
                        share_sizes_milli=[1000],
                        **place,
                        **shape,
                        **state,
                    )
                )
            for tier, dc in (("on_demand", 249_000), ("spot", 99_000)):
                key = {"cluster": "op-1/gpus", "model": "H100", "tier": tier}
                session.add(PriceRow(price_dc_per_gpu_hour=dc, since_ms=0, **key))

    def lease(self, node):
        """An open lease there, of a run that is running."""
        with self.plane.database.write() as session:
            session.add(SessionRow(id="ses", customer="alice", created_ms=0, last_heard_ms=0))
            session.flush()
            about = {"customer": "alice", "session": "ses", "tier": "spot"}
            session.add(
                RunRow(
                    id="run",
                    kind="run",
                    name="",
                    state="RUNNING",
                    detached=False,
                    request={},
                    own_lease=False,
                    created_ms=0,
                    queued_until_ms=0,
                    **about,
                )
            )
            session.flush()
            place = {"operator": "op-1", "cluster": "op-1/gpus", "node": node, "region": "eu"}
            numbers = dict.fromkeys(
                ("price_dc_per_gpu_hour", "cpu_milli", "memory_bytes", "disk_bytes", "grant_nonce", "topped_up_ms"), 1
            )
            session.add(
                LeaseRow(
                    id="lease",
                    generation=1,
                    run="run",
                    state="OPEN",
                    notice_ms=30_000,
                    startup_timeout_ms=1,
                    granted_ms=1,
                    **numbers,
                    **about,
                    **place,
                )
            )

    def row(self, kind, key):
        with self.plane.database.read() as session:
            found = session.get(kind, key)
            if found is not None:
                session.expunge(found)
            return found

    def prices(self):
        with self.plane.database.read() as session:
            return current_prices(session, "op-1/gpus")["H100"]

    def __call__(self, *words):
        self.clock.advance(1)
        return CliRunner().invoke(command, [*words, "-C", str(self.place.path)])


@pytest.fixture
def fabric(tmp_path, monkeypatch):
    made = World(tmp_path)
    monkeypatch.setattr("fabric.operator.orders_cli.SystemClock", lambda: made.clock)
    yield made
    made.server.should_exit = True
    made.thread.join()
    made.listener.close()


def test_a_node_is_drained_with_notice_and_taken_back(fabric):
    fabric.lease("n2")
    done = fabric("drain", "10.0.0.2", "--notice", "120", "--json")
    assert done.exit_code == 0, done.output
    assert [one["lease"] for one in json.loads(done.output.splitlines()[-1])["leases"]] == ["lease"]
    notice = fabric.row(NoticeRow, "lease")
    assert (notice.reason, notice.until_ms - notice.given_ms) == ("operator_drain", 120_000)
    assert fabric.row(DrainRow, ("op-1/gpus", "n2")).draining
    assert "takes new leases again; 1 leave still" in fabric("undrain", "n2").output
    assert not fabric.row(DrainRow, ("op-1/gpus", "n2")).draining


def test_what_drain_refuses(fabric):
    for words, says in (
        (("drain",), "name one node, or the whole cluster with --all"),
        (("drain", "n1", "--all"), "name one node"),
        (("drain", "n9"), "there is n1, n2"),
        (("drain", "n1", "--notice", "604801"), "0 to 604800 s are possible"),
        (("drain", "n1", "--notice", "-1"), "0 to 604800 s are possible"),
    ):
        refused = fabric(*words)
        assert says in refused.output, words
        assert refused.exit_code != 0
    assert fabric.row(DrainRow, ("op-1/gpus", "n1")) is None
    fabric.place.session_key_file.unlink()
    assert "session.key is missing" in fabric("drain", "n1").output
    assert not fabric.place.session_key_file.exists(), "a key that nobody delegated to helps nobody"


def test_a_stop_drains_the_cluster_and_waits_and_the_next_start_takes_it_back(fabric):
    fabric.lease("n1")
    mark, given, waits = fabric.place.path / "mark", orders_of(fabric.place), []

    def leave(seconds):
        waits.append(seconds)
        fabric.clock.advance(1_000)
        if len(waits) == 2:
            with fabric.plane.database.write() as session:
                session.get_one(LeaseRow, "lease").state = "CLOSED"

    assert given.empty("", 30, wait=leave) == []
    assert len(waits) == 2
    fabric.clock.advance(1)
    assert orders.drained_for_stop(given, 30, mark) == []
    assert fabric.row(DrainRow, ("op-1/gpus", "")).draining
    fabric.clock.advance(1)
    orders.back_after_stop(given, mark)
    assert not fabric.row(DrainRow, ("op-1/gpus", "")).draining
    fabric.clock.advance(1)
    fabric("drain", "--all")
    orders.back_after_stop(given, mark)
    assert fabric.row(DrainRow, ("op-1/gpus", "")).draining, "another drain than that of a stop stays"


def test_a_lease_that_does_not_leave_is_named_when_the_time_is_up(fabric):
    fabric.lease("n1")
    left = orders_of(fabric.place).empty("n1", 30, wait=lambda _: fabric.clock.advance(10_000))
    assert [one["lease"] for one in left] == ["lease"]


def test_prices_are_set_from_now_on_and_kept_in_the_cluster_file(fabric):
    before = fabric.place.cluster_file.read_text().splitlines()
    done = fabric("price", "set", "H100:on_demand=3.10", "h100:spot=off", "H100:reserved=2")
    assert done.exit_code == 0, done.output
    assert fabric.prices() == {"on_demand": 310_000, "reserved": 200_000}
    assert fabric.place.cluster().prices == {"H100": {"on_demand": 310_000, "reserved": 200_000}}
    after = fabric.place.cluster_file.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    assert changed[0][1].partition("#")[2] == changed[0][0].partition("#")[2] != ""


def test_prices_on_several_lines_are_left_to_the_operator(fabric):
    text = fabric.place.cluster_file.read_text()
    line = next(line for line in text.splitlines() if line.startswith("    prices:"))
    own = "    prices:\n      H100: {on_demand: 2.49}"
    fabric.place.cluster_file.write_text(text.replace(line, own))
    done = fabric("price", "set", "H100:on_demand=3")
    assert "do not stand on one line" in done.output
    assert own in fabric.place.cluster_file.read_text()
    assert fabric.prices()["on_demand"] == 300_000


def test_bad_prices_change_nothing(fabric):
    before = fabric.prices(), fabric.place.cluster_file.read_text()
    for price, says in (
        ("H100:on_demand=0", "more than nothing"),
        ("H100:on_demand=-1", "H100:on_demand=-1"),
        ("H100:on_demand=0.000001", "more than nothing"),
        ("H100:on_demand=1e30", "the largest amount"),
        ("H100:on_demand=99999999", "at most"),
        ("H100:on_demand=free", "H100:on_demand=free"),
        ("H100=2", "MODEL:TIER=USD"),
        ("H100:cheap=2", "'cheap' does not exist"),
        ("B200:spot=2", "has no B200; there is H100"),
    ):
        refused = fabric("price", "set", price)
        assert refused.exit_code != 0, price
        assert says in refused.output, (price, refused.output)
    assert "has a price already" in fabric("price", "set", "H100:spot=1", "H100:spot=2").output
    assert (fabric.prices(), fabric.place.cluster_file.read_text()) == before


def test_a_selftest_here_says_what_came_of_it(fabric):
    done = fabric("selftest", "--here", "--simulated", "L4:1", "--json")
    assert done.exit_code == 0, done.output
    (one,) = json.loads(done.output.splitlines()[-1])["here"]
    assert (one["model"], one["problem"]) == ("L4", "")
    assert "passed: product" in fabric("selftest", "--here", "--simulated", "L4:1").output
    assert "for --here alone" in fabric("selftest", "--simulated", "L4:1").output


def test_a_stop_waits_for_nobody_whom_no_agent_can_tell(fabric):
    fabric.lease("n1")
    with fabric.plane.database.write() as session:
        session.get_one(ClusterRow, "op-1/gpus").connected = False
    waits = []
    left = orders_of(fabric.place).empty("", 30, wait=waits.append)
    assert ([one["lease"] for one in left], waits) == (["lease"], [])
