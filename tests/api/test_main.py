"""What `python -P -m api` refuses to start with, its exit code, and what it says."""

import socket

import pytest
import structlog

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
