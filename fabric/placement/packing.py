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

_UNFIT = 2**30
_FEW = 256
_SPREAD = SCORE_CEILING / 2 - 1

Rows = npt.NDArray[np.intp]
Ints = npt.NDArray[np.int64]
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
            self._score = self._of(fleet, tables, self._cut, slice(0, fleet.rows), _standing(fleet, tables))
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

    def _of(
        self, fleet: Fleet, tables: Tables, cut: "_Cut", rows: Rows | slice, standing: "_Standing | None" = None
    ) -> Floats:
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
            best = np.minimum.reduce(cut.rank.take(state[:, 5:].T), axis=0)
            able &= best < _UNFIT
            if demand.milli % STEP_MILLI:
                able &= (fleet.free[:, rows] >= demand.milli).any(axis=0)
        if not np.count_nonzero(able):
            return np.full(able.size, np.inf)
        if standing is None and able.size <= _FEW:
            score = self._lost(tables, cut, state, best)
            score[~able] = np.inf
            return score
        found = np.flatnonzero(able)
        score = np.full(able.size, np.inf)
        known = None if standing is None else standing.of(found)
        best = None if best is None else best.take(found)
        score[found] = self._lost(tables, cut, state.take(found, axis=0), best, known)
        return score

    def _lost(
        self,
        tables: Tables,
        cut: "_Cut",
        state: Ints,
        best: npt.NDArray[np.int32] | None,
        known: tuple[Floats, Floats] | None = None,
    ) -> Floats:
        """What rows of this state would be worth less; `known` are their sums and their worth where they are known."""
        model = state[:, 3]
        lost = cut.loss.take(model if best is None else best, axis=0, mode="clip")
        left = state[:, :2] - self._wanted[:2]
        if known is None:
            sums, room = np.empty((2, model.size, 4)), np.empty((2, model.size, 2))
            before, room[0], room[1] = sums[0], state[:, :2], left
            np.add.reduce(tables.cell.take(state[:, 5:].T, axis=0), axis=0, out=before)
            np.subtract(before, lost, out=sums[1])
            worth = _worth(tables, model, sums, room)
            score = worth[0] - worth[1]
        else:
            score = known[1] - _worth(tables, model, known[0] - lost, left.astype(np.float64))
        if cut.toll is not None:
            score += cut.toll.take(model)
        score *= tables.scale * _SPREAD
        return score


class _Standing:
    """What each row holds and is worth as it stands, whatever is asked: a demand that weighs every row starts here."""

    def __init__(self) -> None:
        self._seen = (-1, -1)
        self._cursor = -1
        self._sums: Floats = np.zeros((0, 4))
        self._worth: Floats = np.zeros(0)

    def follow(self, fleet: Fleet, tables: Tables) -> None:
        """Work out again what has changed."""
        state = (fleet.outlook.version, fleet.rows)
        changed = fleet.changed_since(self._cursor) if state == self._seen else None
        if changed is None or len(changed) > fleet.rows:
            self._sums, self._worth = self._of(tables, fleet.state[: fleet.rows])
        elif changed:
            rows = np.array([*{*changed}], np.intp)
            self._sums[rows], self._worth[rows] = self._of(tables, fleet.state.take(rows, axis=0))
        self._seen, self._cursor = state, fleet.now_at

    def of(self, rows: Rows) -> tuple[Floats, Floats]:
        return self._sums.take(rows, axis=0), self._worth.take(rows)

    def _of(self, tables: Tables, state: Ints) -> tuple[Floats, Floats]:
        sums = np.add.reduce(tables.cell.take(state[:, 5:].T, axis=0), axis=0)
        return sums, _worth(tables, state[:, 3], sums, state[:, :2].astype(np.float64))


def _standing(fleet: Fleet, tables: Tables) -> _Standing:
    """The fleet's, up to date."""
    known = fleet.packings.recall("standing")
    if not isinstance(known, _Standing):
        known = _Standing()
        fleet.packings.keep("standing", known, fleet.rows)
    known.follow(fleet, tables)
    return known


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a demand takes out of a row, by the tables of the outlook.

    Attributes:
        rank: for a share, per cell in which order the free shares of its model are preferred, counted on from model
            to model, `_UNFIT` where it does not fit; None for whole GPUs.
        loss: as columns of `Tables.cell`, what a model's GPUs lose: for a share per rank, else per model.
        toll: per model, what its scarcity adds; None when all are equally scarce.
    """

    rank: npt.NDArray[np.int32] | None
    loss: Floats
    toll: Floats | None


def _cut(tables: Tables, demand: Demand) -> _Cut:
    """What the demand takes, shared by all that want the same of GPUs."""
    key = (demand.count, demand.milli)
    known = tables.cuts.get(key)
    if not isinstance(known, _Cut):
        known = tables.cuts[key] = _made_cut(tables, demand)
    return known


def _made_cut(tables: Tables, demand: Demand) -> _Cut:
    """Holes by what they lose when the share is cut from them; the smaller hole first where that is equal."""
    toll = tables.scarcity * (demand.count * demand.milli) if tables.scarcity.any() else None
    if demand.milli == WHOLE_MILLI:
        return _Cut(None, demand.count * tables.cell[CELLS - 1 :: CELLS], toll)
    models = tables.cell.shape[0] // CELLS
    cell = tables.cell.reshape(models, CELLS, 4)
    step = demand.milli // STEP_MILLI
    rank = np.full((models, CELLS), _UNFIT, np.int32)
    less = cell[:, step:] - cell[:, : CELLS - step]
    order = np.argsort(less[:, :, 0], axis=1, kind="stable")
    places = np.arange(order.size, dtype=np.int32).reshape(order.shape)
    np.put_along_axis(rank, order + step, places, axis=1)
    loss = np.take_along_axis(less, order[:, :, None], axis=1)
    return _Cut(rank.reshape(-1), loss.reshape(-1, 4), toll)


def _worth(tables: Tables, model: Ints, sums: Floats, room: Floats) -> Floats:
    """Milli-GPU that arrivals would come to fill: the sums' first while CPU and memory last, less as they run short,
    and what whole free GPUs mean to those who want several.

    The three limits are joined smoothly (an 8-norm), because arrivals vary: a node with just enough CPU on average
    runs out of it before its GPUs are full about half of the time.

    Args:
        tables: the outlook's.
        model: per row.
        sums: (…, row, 4), as `Tables.cell` summed over a row's GPUs.
        room: (…, row, 2), free CPU and memory; overwritten.
    """
    np.maximum(room, 1, out=room)
    need = np.divide(sums[..., 1:3], room, out=room)
    need *= need
    need *= need
    need *= need
    short = need[..., 0] + need[..., 1]
    short += 1
    np.sqrt(short, out=short)
    np.sqrt(short, out=short)
    np.sqrt(short, out=short)
    worth = np.divide(sums[..., 0], short, out=short)
    worth += tables.gang.take(model * tables.gang.shape[1] + sums[..., 3].astype(np.intp))
    return worth


def _wanted(demand: Demand) -> tuple[tuple[int], tuple[int], tuple[int]]:
    return ((demand.cpu_milli,), (demand.memory_bytes,), (demand.disk_bytes,))
