"""Keeps the agent running on the head: starts it, starts it again when it ends, and ends with Ray.

`python -m fabric.operator.keeper FOLDER COMMAND…` runs in a session of its own, so that the end of the ssh connection
that started it does not end it. One keeper per folder (a lock); `keeper.pid` and `agent.pid` say who is there. When the
cluster's GCS has been gone for a while, keeper and agent end: nothing of ours outlives `ray down`.
"""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fabric.operator.processes import Process, is_agent, own_processes

FIRST_DELAY_S = 1
LONGEST_DELAY_S = 60
GOOD_RUN_S = 60
GCS_GRACE_S = 20
_POLL_S = 0.5
_STOP_S = 20
_log = logging.getLogger(__name__)


def next_delay(delay_s: int, ran_s: float) -> int:
    """Seconds before the next start: doubled after each short run, up to a minute; the first again after a long one."""
    if ran_s >= GOOD_RUN_S:
        return FIRST_DELAY_S
    return min(delay_s * 2, LONGEST_DELAY_S)


@dataclass(slots=True)
class Keeper:
    """The loop. `alive` says whether the cluster's GCS lives; `wait` passes time between starts; `now` is monotonic
    seconds; `poll_s` is how often the running agent is looked at.
    """

    folder: Path
    command: Sequence[str]
    alive: Callable[[], bool]
    wait: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic
    poll_s: float = _POLL_S
    stopping: bool = False

    def run(self) -> None:
        """Keep the agent until told to stop, or until Ray has been gone for `GCS_GRACE_S`."""
        delay = FIRST_DELAY_S
        while not self.stopping and self.alive():
            started = self.now()
            with subprocess.Popen(self.command, stdin=subprocess.DEVNULL) as agent:
                (self.folder / "agent.pid").write_text(str(agent.pid), encoding="ascii")
                self._watch(agent)
            if self.stopping:
                break
            ran = self.now() - started
            _log.warning("the agent ended with status %s; starting it again in %s s", agent.returncode, delay)
            self._pause(delay)
            delay = next_delay(delay, ran)
        (self.folder / "agent.pid").unlink(missing_ok=True)

    def stop(self, *_: object) -> None:
        """Ask the loop to end; also a signal handler."""
        self.stopping = True

    def _watch(self, agent: subprocess.Popen[bytes]) -> None:
        seen = self.now()
        while agent.poll() is None:
            if self.alive():
                seen = self.now()
            if self.stopping or self.now() - seen > GCS_GRACE_S:
                self.stopping = True
                end(agent)
                return
            with suppress(subprocess.TimeoutExpired):
                agent.wait(self.poll_s)

    def _pause(self, seconds: float) -> None:
        until = self.now() + seconds
        while not self.stopping and self.now() < until:
            self.wait(self.poll_s)


def end(agent: subprocess.Popen[bytes]) -> None:
    """Ask the agent to end, and kill it when it has not within `_STOP_S`."""
    agent.terminate()
    try:
        agent.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()


def gcs_alive() -> bool:
    """Whether a GCS of this user runs on this host."""
    return any("gcs_server" in process.arguments[0] for process in own_processes())


def start(folder: Path, command: Sequence[str]) -> None:
    """Start a keeper for `command` in the background, unless one is there already."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "agent.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-P", "-m", "fabric.operator.keeper", str(folder), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def stop(folder: Path) -> bool:
    """End keeper and agent, at last by force. True when nothing of them is left."""
    pid = _read_pid(folder / "keeper.pid")
    if pid is not None:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S + 5
    while _agents() and time.monotonic() < deadline:
        if not any("fabric.operator.keeper" in process.arguments for process in _agents()):
            _signal_all(signal.SIGTERM)  # a keeper killed before left its agent behind
        time.sleep(_POLL_S)
    _signal_all(signal.SIGKILL)
    time.sleep(_POLL_S)
    return not _agents()


def status(folder: Path) -> int | None:
    """The agent's process id, None when it does not run."""
    pid = _read_pid(folder / "agent.pid")
    return pid if pid in {process.pid for process in _agents()} else None


def _agents() -> list[Process]:
    return [process for process in own_processes() if is_agent(process)]


def _signal_all(number: int) -> None:
    for process in _agents():
        _signal(process.pid, number)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def main(arguments: Sequence[str]) -> int:
    """Be the keeper of one folder; ends at once when another one is."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper: %(message)s")
    folder, command = Path(arguments[0]), arguments[1:]
    with (folder / "keeper.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another keeper is at work here")
            return 0
        keeper = Keeper(folder, command, gcs_alive)
        signal.signal(signal.SIGTERM, keeper.stop)
        signal.signal(signal.SIGINT, keeper.stop)
        pid_file = folder / "keeper.pid"
        pid_file.write_text(str(os.getpid()), encoding="ascii")
        keeper.run()
        pid_file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
