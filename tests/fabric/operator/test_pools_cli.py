"""`fabric pool` against a control plane in a thread of this process."""

import json
import socket
import threading
import time

import pytest
import uvicorn

from api.app import create_app
from api.settings import Settings
from fabric.cli import main
from fabric.operator.wallet import from_key
from fabric.wire.clock import SystemClock

KEY = "0x" + "07" * 32


@pytest.fixture
def url(tmp_path, monkeypatch):
    operator = {"id": "op-1", "name": "One", "session_key": "ab" * 32, "payout": from_key(KEY).address}
    declared = tmp_path / "bootstrap.json"
    declared.write_text(json.dumps({"operators": [operator]}))
    app = create_app(Settings(state_dir=tmp_path / "state", bootstrap=declared), SystemClock(), tick_s=None)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    monkeypatch.setenv("FABRIC_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.setenv("OPERATOR_WALLET_KEY", KEY)
    yield
    server.should_exit = True
    thread.join()
    listener.close()


def test_a_pool_is_founded_shown_and_listed(url, capsys):
    shared = ["--used-bps", "6000", "--shared-bps", "4000", "--ceiling", "3.5", "--weight", "H100=10"]
    assert main(["pool", "create", "green", *shared, "--entrance", "invited", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["action"] == "create"
    assert main(["pool", "show", "green", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["next_terms"]["price_ceiling_dc"] == "350000"
    assert shown["operator"] == "op-1"
    assert main(["pool", "list"]) == 0
    assert "green  invited  operator 0, shared 4000, used 6000 bps" in capsys.readouterr().out


def test_refusals_say_what_is_allowed(url, capsys, monkeypatch):
    assert main(["pool", "create", "bad", "--used-bps", "1000", "--shared-bps", "9000"]) != 0
    assert "at least 1250" in capsys.readouterr().err
    assert main(["pool", "create", "bad", "--weight", "H100"]) != 0
    assert "MODEL=WEIGHT" in capsys.readouterr().err
    assert main(["pool", "leave", "none", "0x" + "11" * 32]) != 0
    assert "there is no GPU" in capsys.readouterr().err
    monkeypatch.delenv("OPERATOR_WALLET_KEY")
    assert main(["pool", "create", "bad"]) != 0
    assert "no wallet" in capsys.readouterr().err
