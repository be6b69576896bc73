"""Linux processes as the embedded fabric needs them: children that die with their parent, orphans that come to us."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(number: int, parent: int) -> None:
    """Be sent this signal when the thread that started us ends; at once if it already has."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def spawn(
    command: Sequence[str], environ: Mapping[str, str], cwd: Path, log: Path, death_signal: int
) -> "subprocess.Popen[bytes]":
    """A child in a session of its own, its output appended to `log`; call from the main thread only.

    `death_signal` is sent to it when this process ends, however that happens.
    """
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        die_with_parent(death_signal, parent)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environ),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - the supervisor has one thread
        )


def reap() -> dict[int, int]:
    """Exit codes of children that have ended, by pid; negative for a signal."""
    ended: dict[int, int] = {}
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def descendants(root: int) -> list[int]:
    """All processes below `root`, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _parent(int(entry.name))
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(root, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def find_descendant(root: int, name: str) -> int | None:
    """A living process of this name (its first 15 bytes) below `root`."""
    return next((pid for pid in descendants(root) if is_alive(pid, name)), None)


def is_alive(pid: int, name: str) -> bool:
    """Whether `pid` is a process of this name that has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.partition("(")[2].rpartition(")")[0] == name and stat.rpartition(")")[2].split()[0] != "Z"


def kill_tree(root: int) -> None:
    """Kill a process and everything below it."""
    for pid in [root, *descendants(root)]:
        _send(pid, signal.SIGKILL)


def kill_orphans(known: Collection[int]) -> None:
    """Kill what we adopted: children of this process that are none of the known ones, and everything below them."""
    me = os.getpid()
    for pid in descendants(me):
        if _parent(pid) == me and pid not in known:
            kill_tree(pid)


def end_descendants(grace_s: float) -> None:
    """End everything below this process: asked first, killed after `grace_s` seconds; returns when nothing is left.

    This process must adopt orphans, so that what a dying parent leaves behind becomes a child of ours.
    """
    for pid in descendants(os.getpid()):
        _send(pid, signal.SIGTERM)
    until = time.monotonic() + grace_s
    while descendants(os.getpid()):
        reap()
        if time.monotonic() >= until:
            for pid in descendants(os.getpid()):
                _send(pid, signal.SIGKILL)
        time.sleep(0.02)


def _parent(pid: int) -> int | None:
    """The pid of its parent; None for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1])


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
