"""The embedded fabric for real: control plane, Ray and agent as processes, used by scripts that configure nothing."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fabric.local.home import Home
from fabric.local.processes import descendants
from fabric.local.start import is_running

SCRIPT = """
import sys, time
import helper
import fabric

class Scaled:
    def __init__(self, factor): self.factor = factor
    def __call__(self, x): return helper.times(x, self.factor)

def talk():
    print("out of the job")
    print("err of the job", file=sys.stderr)
    return sys.version_info[:2]

def broken():
    raise LookupError("nothing here")

def slow(x):
    time.sleep(0.05)
    return x

if __name__ == "__main__":
    offset = 2
    assert fabric.run(lambda x: x * 20 + offset, 2) == 42
    assert fabric.run(Scaled(3), 14) == 42
    assert list(fabric.map(helper.square, (n for n in range(500)))) == [n * n for n in range(500)]
    assert tuple(fabric.run(talk)) == sys.version_info[:2]
    try:
        fabric.run(broken)
    except LookupError as error:
        assert "in broken" in error.__notes__[0]
    run = fabric.submit(helper.square, 9, budget=1)
    assert run.result(timeout=60) == 81
    fitted = fabric.run(lambda: Scaled(7), trust=True)
    assert isinstance(fitted, Scaled) and fitted(6) == 42
    detached = fabric.submit(lambda: Scaled(6), trust=True)
    assert fabric.attach(detached.id, trust=True).result(timeout=60)(7) == 42
    if sys.argv[1:]:
        import json, os, signal, threading
        pid = json.load(open(os.environ["FABRIC_HOME"] + "/fabric.json"))["pids"]["agent"]
        threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
        seen = list(fabric.map(slow, range(100), ordered=False, max_parallel=1))
        assert sorted(seen) == list(range(100)), seen
    print("all is well")
"""
HELPER = "def square(x):\n    return x * x\n\n\ndef times(x, y):\n    return x * y\n"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "helper.py").write_text(HELPER)
    yield folder
    _cli(folder, "down")


def test_a_script_without_configuration_runs_and_survives_the_agents_death(folder):
    done = _python(folder, "script.py", "kill the agent")
    assert done.returncode == 0, done.stderr
    assert "out of the job" in done.stdout
    assert "err of the job" in done.stderr
    assert "all is well" in done.stdout
    assert "starting the embedded fabric" in done.stderr


def test_a_second_process_finds_the_running_fabric(folder):
    done = _python(folder, "-c", "import fabric; print(fabric.run(lambda: 6 * 7))")
    assert (done.returncode, done.stdout.strip()) == (0, "42"), done.stderr
    assert "starting" not in done.stderr


def test_the_commands_answer(folder):
    assert json.loads(_cli(folder, "status", "--json").stdout)["state"] == "ready"
    offers = json.loads(_cli(folder, "offers", "--json").stdout)
    assert {offer["model"] for offer in offers} >= {"H100", "L4"}
    runs = json.loads(_cli(folder, "ps", "--json").stdout)
    submitted = next(run["id"] for run in runs if run["kind"] == "submit")
    assert "verified:" in _cli(folder, "receipt", submitted, "--verify").stdout
    assert _cli(folder, "run", "--", "sh", "-c", "echo from sh; exit 3").returncode == 3
    assert _cli(folder, "run", "helper.py::times", "6", "--y", "7").stdout.strip() == "42"
    assert _cli(folder, "audit").returncode == 0


def test_nothing_is_left_after_the_supervisor_was_killed(folder):
    home = Home(folder / "home")
    pids = home.read_status().pids
    family = [pids["guard"], *descendants(pids["guard"])]
    os.kill(pids["supervisor"], signal.SIGKILL)
    _eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
    assert not is_running(home)


def test_it_starts_again_and_ends_by_itself_after_its_last_client(folder):
    done = _python(folder, "-c", "import fabric; print(fabric.run(lambda: 1))", FABRIC_EMBEDDED_LINGER_S="1")
    assert done.returncode == 0, done.stderr
    _eventually(lambda: not is_running(Home(folder / "home")))


@pytest.mark.sandbox
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
def test_in_the_sandbox_a_function_sees_neither_this_user_nor_this_machine(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of this machine")
    code = f"import fabric, os; print(fabric.run(lambda: (os.getuid(), os.path.exists({str(secret)!r}))))"
    try:
        done = _python(tmp_path, "-c", code, FABRIC_ISOLATION="bubblewrap")
    finally:
        _cli(tmp_path, "down")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(", False)")
    assert done.stdout.strip() != f"({os.getuid()}, False)"


def test_a_taken_port_is_refused_and_nothing_is_left_running(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = _python(tmp_path, "-c", "import fabric; fabric.run(lambda: 1)", FABRIC_PORT=port)
    assert f"port {port} is taken" in done.stderr
    assert not is_running(Home(tmp_path / "home"))


def test_a_damaged_state_folder_is_refused_and_nothing_is_left_running(tmp_path):
    home = Home(tmp_path / "home")
    home.make()
    (home.agent / "session.key").write_text("damaged")
    done = _cli(tmp_path, "up")
    assert (done.returncode, "is not a key" in done.stderr) == (9, True), done.stderr
    assert not is_running(home)


def _python(folder, *arguments, **environ):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FABRIC_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=inherited | {"FABRIC_HOME": str(folder / "home")} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


def _cli(folder, *arguments):
    return _python(folder, "-m", "fabric.cli", *arguments)


def _eventually(condition, seconds=40):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
