"""User numbers for children that root starts: one of its own for each, so that the kernel counts its processes apart.

Two children that meet in one number all the same are still isolated; they only share a count.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

_UNUSED = range(0x7000_0000, 0x7FFF_FFFF)
"""Neither people nor system services nor containers' ranges (systemd's table of UIDs)."""
_SMALL = range(61_184, 65_520)
"""What systemd gives to dynamic users: the best there is inside a container that maps 65,536 numbers."""


def fresh_uids(uid_map: str | None = None, chance: random.Random | None = None) -> Iterator[int]:
    """Endless numbers, consecutive from a random start, of those in ``uid_map`` (default: this process's own)."""
    text = Path("/proc/self/uid_map").read_text() if uid_map is None else uid_map
    highest = max(int(inside) + int(count) for inside, _, count in map(str.split, text.splitlines()))
    numbers = _UNUSED if highest > _UNUSED.stop else _SMALL
    start = (chance or random.SystemRandom()).randrange(len(numbers))
    return (numbers[(start + step) % len(numbers)] for step in itertools.count())
