"""What `python -P -m api` refuses to start with, its exit code, and what it says; how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import structlog
from scripted import bootstrap_file

from api.__main__ import EXIT_PORT, EXIT_SETTINGS, EXIT_UNUSABLE, main


@pytest.fixture
def start(monkeypatch, tmp_path, capsys):
    """Start with these keys; returns the exit code and what was said."""
    monkeypatch.setenv("FABRIC_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("FABRIC_PORT", "0")

    def begin(**keys):
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr().err

    yield begin
    structlog.reset_defaults()


def test_a_taken_port_is_refused_before_anything_is_made(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = start(FABRIC_PORT=str(taken.getsockname()[1]))
    assert code == EXIT_PORT
    assert "set FABRIC_PORT to a free port" in said
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_nobody_knows_is_refused_with_the_nearest_name(start):
    code, said = start(FABRIC_EPOCHS_S="5")
    assert code == EXIT_SETTINGS
    assert "did you mean FABRIC_EPOCH_S?" in said


@pytest.mark.parametrize("keys", [{"FABRIC_EPOCH_S": "soon"}, {"FABRIC_LOG_LEVEL": "loud"}])
def test_a_value_that_makes_no_sense_is_refused(start, keys):
    code, said = start(**keys)
    assert code == EXIT_SETTINGS
    assert next(iter(keys.values())) in said


def test_a_damaged_database_or_bootstrap_file_is_refused(start, tmp_path):
    code, said = start(FABRIC_BOOTSTRAP=str(tmp_path / "none.json"))
    assert (code, "none.json" in said) == (EXIT_UNUSABLE, True)
    (tmp_path / "fabric.db").write_bytes(b"junk" * 5000)
    (tmp_path / "fabric.db-wal").unlink(missing_ok=True)
    code, said = start()
    assert (code, "cannot be opened as a database" in said) == (EXIT_UNUSABLE, True)


def test_who_waits_in_a_long_poll_is_answered_when_it_ends(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keys = {"FABRIC_STATE_DIR": tmp_path, "FABRIC_PORT": port, "FABRIC_BOOTSTRAP": bootstrap_file(tmp_path)}
    environ = os.environ | {name: str(value) for name, value in keys.items()}
    process = subprocess.Popen([sys.executable, "-P", "-m", "api"], env=environ)
    headers = {"Authorization": "Bearer key-alice"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=40) as client:
        try:
            while not answers(client):
                assert process.poll() is None
                time.sleep(0.05)
            waits = {"id": "run_1", "session": "ses", "python": "3.11", "retry": {"on": ["no_capacity"], "max": 1}}
            client.post("/v1/runs", json=waits).raise_for_status()
            with ThreadPoolExecutor() as threads:
                poll = threads.submit(client.get, "/v1/runs/run_1/route", params={"wait_s": 25})
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
                assert poll.result().status_code == 200
            assert poll.result().json()["routes"] == []
        finally:
            process.terminate()
            process.wait()


def answers(client):
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:
        return False
