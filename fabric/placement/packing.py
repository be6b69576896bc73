"""Whether a demand fits into what is free of each row, how well it packs there, and which GPUs of a row it takes.

It knows nothing of prices, tiers or places (`screen`). Lower scores pack better.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.placement.fleet import Fleet
from fabric.placement.grammar import WHOLE_MILLI

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Demand:
    """What one node has to give: `count` GPUs of `milli` each, and CPU, memory and disk."""

    count: int
    milli: int
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int


def fits(fleet: Fleet, demand: Demand, rows: Rows, *, evicting: bool = False) -> npt.NDArray[np.bool_]:
    """Whether the demand fits into each of the rows now, or after all spot leases there had gone."""
    free, room = fleet.free[rows], fleet.room[rows]
    if evicting:
        free, room = free + fleet.spot[rows], room + fleet.spot_room[rows]
    enough = (room >= (demand.cpu_milli, demand.memory_bytes, demand.disk_bytes)).all(axis=1)
    if demand.count:
        enough &= np.count_nonzero(free >= demand.milli, axis=1) >= demand.count
    return enough


def scores(fleet: Fleet, demand: Demand, rows: Rows) -> npt.NDArray[np.float64]:
    """How much each row is spoilt for others if the demand goes there; only meaningful where it fits. In [0, 1000)."""
    free = fleet.free[rows]
    left = free.sum(axis=1) - demand.count * demand.milli
    return left / (WHOLE_MILLI * (free.shape[1] + 1)) * 999


def choose_gpus(fleet: Fleet, demand: Demand, row: int) -> list[int]:
    """Columns of the row's GPUs to take: the tightest that still hold the share, of equal ones the least used."""
    free, used = fleet.free[row].tolist(), fleet.used_gpu_ms[row].tolist()
    able = [column for column in range(len(free)) if free[column] >= demand.milli]
    able.sort(key=lambda column: (free[column], used[column], column))
    return able[: demand.count]
