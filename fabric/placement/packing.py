"""Whether a demand fits into what is free of each row, what it spoils there, and which GPUs of a row it takes.

It knows nothing of prices, tiers or places (`screen`). `packing` remembers its answers per demand and works out again
only the rows that have changed since.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.placement.fleet import Fleet
from fabric.placement.grammar import WHOLE_MILLI
from fabric.placement.outlook import CELLS, STEP_MILLI, Tables

SCORE_CEILING = 1024.0

_UNFIT = 255

Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]


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
    free, room = fleet.free[:, rows], fleet.room[:, rows]
    if evicting:
        free, room = free + fleet.spot[:, rows], room + fleet.spot_room[:, rows]
    enough = np.logical_and.reduce(room >= _wanted(demand))
    if demand.count:
        enough &= (free >= demand.milli).sum(axis=0) >= demand.count
    return enough


def scores(fleet: Fleet, demand: Demand) -> Floats:
    """Per row, what placing the demand there costs the others, in [0, 1024); inf where it does not fit."""
    tables = fleet.outlook.tables(fleet)
    packing = fleet.memo.recall(demand)
    if not isinstance(packing, _Packing):
        packing = _Packing(demand)
        fleet.memo.keep(demand, packing, fleet.rows)
    packing.follow(fleet, tables)
    return packing.score


def choose_gpus(fleet: Fleet, demand: Demand, row: int) -> list[int]:
    """Positions of the row's GPUs to take.

    A share goes where the remaining hole loses least, whole GPUs are all alike; of equal ones the least used is taken.
    """
    free, used = fleet.free[:, row].tolist(), fleet.used_gpu_ms[:, row].tolist()
    able = [column for column in range(len(free)) if free[column] >= demand.milli]
    if demand.milli == WHOLE_MILLI:
        able.sort(key=lambda column: (used[column], column))
    else:
        ranks = _ranks(fleet.outlook.tables(fleet), demand).rank[fleet.cell[:, row]].tolist()
        able.sort(key=lambda column: (ranks[column], free[column], used[column], column))
    return able[: demand.count]


class _Packing:
    """The scores of one demand, brought up to date row by row."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.score: Floats = np.zeros(0)
        self._seen = (-1, -1)
        self._cursor = -1
        self._ranks: _Ranks | None = None

    def follow(self, fleet: Fleet, tables: Tables) -> None:
        state = (fleet.outlook.version, fleet.rows)
        changed = fleet.changed_since(self._cursor) if state == self._seen else None
        if changed is None:
            self._ranks = _ranks(tables, self.demand) if self.demand.count else None
            self.score = self._of(fleet, tables, slice(0, fleet.rows))
        elif changed:
            rows = np.fromiter(set(changed), np.intp)
            self.score[rows] = self._of(fleet, tables, rows)
        self._seen, self._cursor = state, fleet.now_at

    def _of(self, fleet: Fleet, tables: Tables, rows: Rows | slice) -> Floats:
        demand = self.demand
        cells = fleet.cell[:, rows]
        model = fleet.model[rows]
        room = fleet.room[:, rows]
        before = np.take(tables.cell, cells, axis=0).sum(axis=0).T
        able = np.logical_and.reduce(room >= _wanted(demand))
        after = before
        if demand.milli == WHOLE_MILLI:
            if demand.count:
                able &= before[3] >= demand.count
                after = before - demand.count * tables.cell[model * CELLS + CELLS - 1].T
        elif self._ranks is not None:
            best = self._ranks.rank[cells].min(axis=0)
            able &= (
                (best != _UNFIT)
                if demand.milli % STEP_MILLI == 0
                else (fleet.free[:, rows] >= demand.milli).any(axis=0)
            )
            after = before - self._ranks.loss[model * (_UNFIT + 1) + best].T
        left = room[:2] - ((demand.cpu_milli,), (demand.memory_bytes,))
        lost = _worth(tables, model, before, room) - _worth(tables, model, after, left)
        lost += tables.scarcity[model] * (demand.count * demand.milli)
        return np.where(able, np.clip(lost / 64 + 16, 0, SCORE_CEILING - 1), np.inf)


@dataclass(frozen=True, slots=True)
class _Ranks:
    """For a share: in which order free shares are preferred, and what each loses (as columns of `Tables.cell`)."""

    rank: npt.NDArray[np.uint8]
    loss: Floats


def _ranks(tables: Tables, demand: Demand) -> _Ranks:
    """Holes by what they lose when the share is cut from them; the smaller hole first where that is equal."""
    models = tables.cell.shape[0] // CELLS
    cell = tables.cell.reshape(models, CELLS, 4)
    step = demand.milli // STEP_MILLI
    rank = np.full((models, CELLS), _UNFIT, np.uint8)
    loss = np.zeros((models, _UNFIT + 1, 4))
    cut = cell[:, step:] - cell[:, : CELLS - step]
    order = np.argsort(cut[:, :, 0], axis=1, kind="stable")
    places = np.arange(order.shape[1], dtype=np.uint8)
    np.put_along_axis(rank, order + step, np.broadcast_to(places, order.shape), axis=1)
    loss[:, : order.shape[1]] = np.take_along_axis(cut, order[:, :, None], axis=1)
    return _Ranks(rank.reshape(-1), loss.reshape(-1, 4))


def _worth(tables: Tables, model: npt.NDArray[np.int32], sums: Floats, room: npt.NDArray[np.int64]) -> Floats:
    """Milli-GPU that arrivals would come to fill: all of `sums[0]` while CPU and memory last, less as they run short.

    The three limits are joined smoothly (an 8-norm), because arrivals vary: a node with just enough CPU on average
    runs out of it before its GPUs are full about half of the time.
    """
    need = sums[1:3] / np.maximum(room[:2], 1)
    need *= need
    need *= need
    need *= need
    short = need[0] + need[1] + 1
    filled = sums[0] / np.sqrt(np.sqrt(np.sqrt(short)))
    return filled + tables.gang[model, sums[3].astype(np.intp)]


def _wanted(demand: Demand) -> tuple[tuple[int], tuple[int], tuple[int]]:
    return ((demand.cpu_milli,), (demand.memory_bytes,), (demand.disk_bytes,))
