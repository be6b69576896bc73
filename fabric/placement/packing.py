"""Whether a demand fits into what is free of each row, what it spoils there, and which GPUs of a row it takes.

It knows nothing of prices, tiers or places (`screen`).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.placement.fleet import Fleet
from fabric.placement.grammar import WHOLE_MILLI
from fabric.placement.outlook import CELLS, STEP_MILLI, Tables

SCORE_CEILING = 1024.0

_UNFIT = 255
_FEW = 256
_SPREAD = SCORE_CEILING / 2 - 1

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


def packing(fleet: Fleet, demand: Demand) -> "Packing":
    """The demand's packing, shared by all requests that differ only in what they allow."""
    known = fleet.packings.recall(demand)
    if isinstance(known, Packing):
        return known
    made = Packing(demand)
    fleet.packings.keep(demand, made, fleet.rows)
    return made


class Packing:
    """One demand against every row; what was worked out is kept, and only rows that changed are worked out again."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self._score: Floats = np.zeros(0)
        self._wanted = np.array(_wanted(demand)).ravel()
        self._seen = (-1, -1)
        self._cursor = -1
        self._cut: _Cut | None = None

    def scores(self, fleet: Fleet) -> Floats:
        """Per row, what placing the demand there costs the others, within ±`SCORE_CEILING` / 2; inf where it does not
        fit.

        The array is the packing's own.
        """
        tables = fleet.outlook.tables(fleet)
        state = (fleet.outlook.version, fleet.rows)
        changed = fleet.changed_since(self._cursor) if state == self._seen else None
        if changed is None or len(changed) > fleet.rows:
            self._cut = _cut(tables, self.demand)
            self._score = self._of(fleet, tables, self._cut, slice(0, fleet.rows))
        elif changed and self._cut is not None:
            rows = np.array([*{*changed}], np.intp)
            self._score[rows] = self._of(fleet, tables, self._cut, rows)
        self._seen, self._cursor = state, fleet.now_at
        return self._score

    def choose(self, fleet: Fleet, row: int, count: int) -> list[int]:
        """Positions of `count` GPUs of the row, after `scores` has found that the demand fits there.

        A share goes where the remaining hole loses least, whole GPUs are all alike; of equal ones the least used is
        taken.
        """
        free, milli = fleet.free[:, row].tolist(), self.demand.milli
        able = [column for column, has in enumerate(free) if has >= milli] if count else []
        if fleet.tracks_use:
            able.sort(key=fleet.used_gpu_ms[:, row].tolist().__getitem__)
        if self._cut is not None and self._cut.rank is not None:
            ranks = self._cut.rank.take(fleet.cell[:, row]).tolist()
            able.sort(key=lambda column: (ranks[column], free[column]))
        return able[:count]

    def _of(self, fleet: Fleet, tables: Tables, cut: "_Cut", rows: Rows | slice) -> Floats:
        """Scores of some rows. Of many rows only those with room are weighed."""
        state = fleet.state[rows] if isinstance(rows, slice) else fleet.state.take(rows, axis=0)
        demand = self.demand
        able = state[:, 0] >= demand.cpu_milli
        able &= state[:, 1] >= demand.memory_bytes
        if demand.disk_bytes:
            able &= state[:, 2] >= demand.disk_bytes
        best = None
        if cut.rank is None:
            able &= state[:, 4] >= demand.count
        else:
            best = cut.rank.take(state[:, 5:].T).min(axis=0)
            able &= best != _UNFIT
            if demand.milli % STEP_MILLI:
                able &= (fleet.free[:, rows] >= demand.milli).any(axis=0)
        if able.size <= _FEW:
            score = self._lost(tables, cut, state, best)
            score[~able] = np.inf
            return score
        found = np.flatnonzero(able)
        score = np.full(able.size, np.inf)
        score[found] = self._lost(tables, cut, state.take(found, axis=0), None if best is None else best.take(found))
        return score

    def _lost(
        self, tables: Tables, cut: "_Cut", state: npt.NDArray[np.int64], best: npt.NDArray[np.uint8] | None
    ) -> Floats:
        model = state[:, 3]
        sums = np.empty((2, model.size, 4))
        before, after = sums
        np.add.reduce(tables.cell.take(state[:, 5:].T, axis=0), axis=0, out=before)
        lost = cut.loss.take(model if best is None else model * (_UNFIT + 1) + best, axis=0)
        np.subtract(before, lost, out=after)
        room = np.empty((2, model.size, 2))
        room[0] = state[:, :2]
        np.subtract(state[:, :2], self._wanted[:2], out=room[1])
        worth = _worth(sums, np.maximum(room, 1, out=room))
        worth += tables.gang.take(model * tables.gang.shape[1] + sums[:, :, 3].astype(np.intp))
        score = worth[0] - worth[1]
        if cut.toll is not None:
            score += cut.toll.take(model)
        score *= tables.scale * _SPREAD
        return score


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a demand takes out of a row, by the tables of the outlook.

    Attributes:
        rank: for a share, per cell in which order free shares are preferred, `_UNFIT` where it does not fit; None for
            whole GPUs.
        loss: as columns of `Tables.cell`, what a model's GPUs lose: for a share per model and rank, else per model.
        toll: per model, what its scarcity adds; None when all are equally scarce.
    """

    rank: npt.NDArray[np.uint8] | None
    loss: Floats
    toll: Floats | None


def _cut(tables: Tables, demand: Demand) -> _Cut:
    """Holes by what they lose when the share is cut from them; the smaller hole first where that is equal."""
    toll = tables.scarcity * (demand.count * demand.milli) if tables.scarcity.any() else None
    if demand.milli == WHOLE_MILLI:
        return _Cut(None, demand.count * tables.cell[CELLS - 1 :: CELLS], toll)
    models = tables.cell.shape[0] // CELLS
    cell = tables.cell.reshape(models, CELLS, 4)
    step = demand.milli // STEP_MILLI
    rank = np.full((models, CELLS), _UNFIT, np.uint8)
    loss = np.zeros((models, _UNFIT + 1, 4))
    less = cell[:, step:] - cell[:, : CELLS - step]
    order = np.argsort(less[:, :, 0], axis=1, kind="stable")
    places = np.arange(order.shape[1], dtype=np.uint8)
    np.put_along_axis(rank, order + step, np.broadcast_to(places, order.shape), axis=1)
    loss[:, : order.shape[1]] = np.take_along_axis(less, order[:, :, None], axis=1)
    return _Cut(rank.reshape(-1), loss.reshape(-1, 4), toll)


def _worth(sums: Floats, room: Floats) -> Floats:
    """Milli-GPU that arrivals would come to fill: the sums' first while CPU and memory last, less as they run short.

    The three limits are joined smoothly (an 8-norm), because arrivals vary: a node with just enough CPU on average
    runs out of it before its GPUs are full about half of the time.

    Args:
        sums: (…, row, 4), as `Tables.cell` summed over a row's GPUs.
        room: (…, row, 2), free CPU and memory, at least 1.
    """
    need = sums[:, :, 1:3] / room
    need *= need
    need *= need
    need *= need
    short = need[:, :, 0] + need[:, :, 1]
    short += 1
    np.sqrt(short, out=short)
    np.sqrt(short, out=short)
    np.sqrt(short, out=short)
    return sums[:, :, 0] / short


def _wanted(demand: Demand) -> tuple[tuple[int], tuple[int], tuple[int]]:
    return ((demand.cpu_milli,), (demand.memory_bytes,), (demand.disk_bytes,))
