"""How much memory a process uses, and whether the kernel killed it because memory ran out.

The second says yes only when a counter of such kills has grown.
"""

import signal
from pathlib import Path

import psutil

from fabric.agent.exits import Exit

_VMSTAT = Path("/proc/vmstat")


class OomWatch:
    """Remembers the machine's count of such kills from when a child was started."""

    def __init__(self) -> None:
        self._before = _kills()

    def killed(self, ended: Exit) -> bool:
        """True when the process died of SIGKILL and the kernel has killed for memory since; not proof, but no guess."""
        return ended.signal == signal.SIGKILL and _kills() > self._before


def resident_bytes(pid: int) -> int:
    """Memory of a process and all it started."""
    used = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            used += each.memory_info().rss
    except psutil.Error:
        return used
    return used


def _kills() -> int:
    """`oom_kill` of /proc/vmstat: processes killed on this machine, those by a cgroup's limit included."""
    try:
        for line in _VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except (OSError, ValueError):
        return 0
    return 0
