"""Nothing outlives the supervisor, however it goes: real processes, killed for real."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fabric.local.home import is_locked
from fabric.local.processes import descendants

PROGRAM = textwrap.dedent(
    """
    import os, signal, subprocess, sys
    from pathlib import Path
    from fabric.local.guard import guard
    from fabric.local.home import Status, Home
    from fabric.local.processes import adopt_orphans, end_descendants
    from fabric.local.settings import LocalSettings

    def supervise(settings, start):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        adopt_orphans()
        home = Home(settings.home)
        stubborn = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
        orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}])"
        subprocess.Popen([sys.executable, "-c", stubborn])
        subprocess.run([sys.executable, "-c", orphan])
        home.write_status(Status("ready", start, pids={"supervisor": os.getpid(), "guard": os.getppid()}))
        signal.sigwait({signal.SIGTERM})
        end_descendants(0.2)
        home.write_status(Status("stopped", start))
        return 0

    sys.exit(guard(LocalSettings(Path(sys.argv[1])), "start_1", supervise))
    """
)


@pytest.fixture
def guarded(home):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(home.root)])
    eventually(lambda: home.read_status().state == "ready" and len(descendants(process.pid)) == 3)
    family = descendants(process.pid)
    yield home, process, family
    for pid in [process.pid, *family]:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_when_the_supervisor_is_killed_everything_below_it_goes(guarded):
    home, process, family = guarded
    os.kill(home.read_status().pids["supervisor"], signal.SIGKILL)
    assert process.wait(20) != 0
    assert not any(alive(pid) for pid in family)
    assert home.read_status().state == "stopped"
    assert not is_locked(home.alive_lock)


def test_when_the_guard_is_killed_the_supervisor_ends_everything(guarded):
    home, process, family = guarded
    process.kill()
    process.wait()
    eventually(lambda: not any(alive(pid) for pid in family))
    assert not is_locked(home.alive_lock)


def test_told_to_end_it_ends_in_good_order(guarded):
    home, process, family = guarded
    process.terminate()
    assert process.wait(20) == 0
    assert not any(alive(pid) for pid in family)
    assert home.read_status().state == "stopped"


def test_a_second_guard_of_the_same_folder_refuses(guarded):
    home, _, _ = guarded
    second = subprocess.run([sys.executable, "-c", PROGRAM, str(home.root)], capture_output=True, check=False)
    assert second.returncode == 1
    assert b"another embedded fabric lives" in second.stderr


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
