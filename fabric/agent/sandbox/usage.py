"""How much memory a child and everything it started hold together. Reads /proc; decides nothing.

A limit of each process does not bound many processes; whoever holds a `Child` compares this with what was granted.
"""

from collections.abc import Iterator
from pathlib import Path


def memory_bytes(first_pid: int) -> int:
    """Anonymous memory of all processes of a sandbox, and the largest process's share of shared memory.

    Shared pages count once at most, so the workers of a data loader do not count the same batch many times. What lies
    in the private /tmp and /dev/shm without being mapped has its own limit and does not count. 0 when all are gone.
    """
    held = [_held(pid) for pid in _family(first_pid)]
    return sum(anonymous for anonymous, _ in held) + max((shared for _, shared in held), default=0)


def _family(pid: int) -> Iterator[int]:
    """A process and all its descendants; those that end meanwhile are left out."""
    yield pid
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for thread in threads:
        try:
            children = (thread / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _held(pid: int) -> tuple[int, int]:
    """(anonymous, shared) bytes in memory of one process; a process that is gone holds nothing."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    return _kib(fields.get("RssAnon", "0")), _kib(fields.get("RssShmem", "0"))


def _kib(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) << 10
