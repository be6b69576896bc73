"""`fabric slots` against a control plane in a thread of this process."""

import hashlib
import json
import socket
import threading
import time

import pytest
import uvicorn

from api.app import create_app
from api.settings import Settings
from api.tables import ClusterRow, GpuRow
from fabric.cli import main
from fabric.client import session as client
from fabric.operator.wallet import from_key
from fabric.wire.clock import SystemClock
from ledger.leaves import gpu_id_hex

KEY, GPU = "0x" + "07" * 32, gpu_id_hex("GPU-1")


@pytest.fixture
def market(tmp_path, monkeypatch):
    operator = {"id": "op-1", "name": "One", "session_key": "ab" * 32, "payout": from_key(KEY).address}
    customer = {"id": "alice", "name": "Alice", "test_balance_dc": 10**9}
    customer["api_key_sha256"] = hashlib.sha256(b"key-alice").hexdigest()
    declared = tmp_path / "bootstrap.json"
    declared.write_text(json.dumps({"operators": [operator], "customers": [customer]}))
    app = create_app(Settings(state_dir=tmp_path / "state", bootstrap=declared), SystemClock(), tick_s=None)
    with app.state.plane.database.write() as session:
        values = {"name": "main", "gateway": "", "version": "1", "connection": "", "connected": False}
        session.add(ClusterRow(id="op-1/main", operator="op-1", last_heard_ms=0, **values))
        session.flush()
        shape = {"vendor": "nvidia", "model": "H100", "name": "H100", "memory_bytes": 8 * 10**10, "simulated": False}
        state = {"healthy": True, "present": True, "problem": "", "driver": "", "pcie": "", "share_sizes_milli": []}
        place = {"operator": "op-1", "cluster": "op-1/main", "node": "n", "used_milli": 0, "first_seen_ms": 0}
        session.add(GpuRow(uuid="GPU-1", id=GPU, **shape, **state, **place))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    monkeypatch.setenv("FABRIC_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.setenv("FABRIC_API_KEY", "key-alice")
    monkeypatch.setenv("OPERATOR_WALLET_KEY", KEY)
    yield
    client.end()
    server.should_exit = True
    thread.join()
    listener.close()


def test_a_slot_is_issued_bought_split_and_merged(market, capsys):
    def run(*words: str) -> object:
        assert main(["slots", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    now = time.time_ns() // 1_000_000
    begin, middle, end = (str(now + hours * 3_600_000) for hours in (1, 2, 3))
    slot = run("issue", GPU, "--from", begin, "--to", end, "--price", "2.5")
    assert [one["id"] for one in run("list")] == [slot["id"]]
    assert run("buy", slot["id"])["paid_dc"] == "500000"
    parts = run("split", slot["id"], "--at", middle)
    assert [part["paid_dc"] for part in parts] == ["250000", "250000"]
    assert run("merge", parts[0]["id"], parts[1]["id"])["paid_dc"] == "500000"
    assert main(["slots", "split", slot["id"], "--at", "tomorrow"]) != 0
    assert "is no time" in capsys.readouterr().err
    assert main(["slots", "list", "--mine"]) == 0
    assert "$2.50/h, $5.00 in all" in capsys.readouterr().out
