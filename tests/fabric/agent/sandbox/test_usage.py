import subprocess
import sys
from contextlib import contextmanager

from fabric.agent.sandbox.usage import memory_bytes

MIB = 1 << 20
FAMILY = r"""
import mmap, os, sys
shared, *sizes = map(int, sys.argv[1:])
together = mmap.mmap(-1, shared or 1)
for size in sizes:
    if os.fork() == 0:
        own = bytearray(b"x") * size
        together.write(b"x" * shared)
        break
os.write(1, b"ready\n")
sys.stdin.read()
"""


@contextmanager
def family(*sizes, shared=0):
    """The pid of a process with one child for each size, each of which touches so much memory."""
    command = [sys.executable, "-S", "-c", FAMILY, str(shared), *map(str, sizes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        for _ in (first, *sizes):
            assert first.stdout.readline() == b"ready\n"
        yield first.pid


def test_memory_of_all_processes_is_added_up():
    with family(1, 1) as small, family(20 * MIB, 30 * MIB) as large:
        assert 49 * MIB <= memory_bytes(large) - memory_bytes(small) <= 51 * MIB


def test_shared_memory_counts_once():
    with family(1, 1, 1) as separate, family(1, 1, 1, shared=20 * MIB) as together:
        assert 19 * MIB <= memory_bytes(together) - memory_bytes(separate) <= 21 * MIB


def test_a_sandbox_that_is_gone_holds_nothing():
    with family(1) as first:
        assert memory_bytes(first) > 0
    assert memory_bytes(first) == 0
