"""Which spot leases have to go so that a demand fits, such that the least work is lost.

Work lost = GPU-milliseconds since each evicted lease last stored its state, summed over all its GPUs: a gang loses
everything when one of its nodes goes. It chooses; it evicts nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.placement.fleet import Fleet
from fabric.placement.inventory import Held
from fabric.placement.packing import Demand

_ROWS_LOOKED_AT = 16
_GROUPS_LOOKED_AT = 4

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Eviction:
    """Rows to use, the GPUs there, and the leases to evict, the one that loses least first."""

    rows: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    leases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _OnRow:
    loss: int
    row: int
    columns: tuple[int, ...]
    leases: tuple[str, ...]


def cheapest_eviction(
    fleet: Fleet, groups: list[Rows], nodes: int, demand_at: Callable[[int], Demand], now_ms: int
) -> Eviction | None:
    """The `nodes` rows of one group on which making room loses least; None when no group has so many.

    Looks closely at the rows of each group that look best from afar (16, or twice the nodes). There the leases go one
    by one, least loss first, until the demand fits; then those that turned out not to be in the way are kept.
    """
    most = max(_ROWS_LOOKED_AT, 2 * nodes)
    promising = [
        _promising(fleet, rows, demand_at(int(rows[0])), now_ms, most) for rows in groups if rows.size >= nodes
    ]
    promising.sort(key=lambda pair: sum(pair[1][:nodes]))
    gangs = [_in_group(fleet, rows, nodes, demand_at, now_ms) for rows, _ in promising[:_GROUPS_LOOKED_AT]]
    full = [gang for gang in gangs if len(gang) == nodes]
    if not full:
        return None
    found = min(full, key=lambda gang: sum(one.loss for one in gang))
    leases = {lease for one in found for lease in one.leases}
    order = sorted(leases, key=lambda lease: (loss_gpu_ms(fleet.leases[lease], now_ms), lease))
    return Eviction(tuple(one.row for one in found), tuple(one.columns for one in found), tuple(order))


def loss_gpu_ms(held: Held, now_ms: int) -> int:
    """GPU-milliseconds (whole GPUs) that evicting the lease now would throw away, rounded down."""
    milli = sum(share.milli for assignment in held.assignments for share in assignment.gpus)
    return max(now_ms - held.safe_ms, 0) * milli // 1000


def _promising(fleet: Fleet, rows: Rows, demand: Demand, now_ms: int, most: int) -> tuple[list[int], list[float]]:
    """The rows where least seems to be lost, and how much: the part of the spot work there that has to go."""
    spot = fleet.spot_milli[rows]
    at_risk = np.maximum(spot * now_ms - fleet.spot_safe[rows], 0)
    displaced = np.maximum(demand.count * demand.milli - fleet.free[:, rows].sum(axis=0), 0)
    loss = at_risk * np.minimum(displaced / np.maximum(spot, 1), 1.0)
    best = np.argsort(loss, kind="stable")[:most]
    return rows[best].tolist(), loss[best].tolist()


def _in_group(
    fleet: Fleet, rows: list[int], nodes: int, demand_at: Callable[[int], Demand], now_ms: int
) -> list[_OnRow]:
    found = [one for row in rows if (one := _on_row(fleet, row, demand_at(row), now_ms)) is not None]
    return sorted(found, key=lambda one: (one.loss, one.row))[:nodes]


def _on_row(fleet: Fleet, row: int, demand: Demand, now_ms: int) -> _OnRow | None:
    node = fleet.name_at(row)
    spots = [held for held in fleet.leases_on(node) if held.tier == "spot"]
    spots.sort(key=lambda held: (loss_gpu_ms(held, now_ms), held.lease))
    gone: list[Held] = []
    for held in spots:
        if _columns(fleet, row, demand, node, gone) is not None:
            break
        gone.append(held)
    for held in reversed(list(gone)):
        without = [other for other in gone if other is not held]
        if _columns(fleet, row, demand, node, without) is not None:
            gone = without
    columns = _columns(fleet, row, demand, node, gone)
    if columns is None:
        return None
    leases = tuple(held.lease for held in gone)
    return _OnRow(sum(loss_gpu_ms(held, now_ms) for held in gone), row, columns, leases)


def _columns(fleet: Fleet, row: int, demand: Demand, node: str, gone: list[Held]) -> tuple[int, ...] | None:
    """The GPUs to take once the leases in `gone` have left; None while the demand does not fit."""
    free, room = fleet.free[:, row].tolist(), fleet.room[:, row].tolist()
    for held in gone:
        for assignment in held.assignments:
            if assignment.node != node:
                continue
            room = [room[0] + assignment.cpu_milli, room[1] + assignment.memory_bytes, room[2] + assignment.disk_bytes]
            for share in assignment.gpus:
                seat = fleet.seat(share.uuid)
                if seat is not None and seat[0] == row:
                    free[seat[1]] += share.milli
    wanted = (demand.cpu_milli, demand.memory_bytes, demand.disk_bytes)
    if any(have < want for have, want in zip(room, wanted, strict=True)):
        return None
    able = sorted((milli, column) for column, milli in enumerate(free) if milli >= demand.milli)
    return tuple(column for _, column in able[: demand.count]) if len(able) >= demand.count else None
