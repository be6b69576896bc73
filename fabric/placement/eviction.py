"""Which spot leases have to go so that a demand fits, such that the least work is lost.

Work lost = GPU-milliseconds since each lease last stored its state. The leases of a gang lose their work together: when
one of them goes, the others start again too, however many nodes they are on. It chooses; it evicts nobody.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from fabric.placement.fleet import Fleet
from fabric.placement.inventory import Held
from fabric.placement.packing import Demand

_ROWS_LOOKED_AT = 16
_GROUPS_LOOKED_AT = 4
_SETS_LOOKED_AT = 256
"""So many sets of leases of a row are tried at most: all of eight leases."""
_SEEDS = 4

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


@dataclass(frozen=True, slots=True)
class _Spot:
    """A lease that may go, with what a row gets back from it."""

    lease: str
    loss: int
    room: tuple[int, int, int]
    shares: tuple[tuple[int, int], ...]


def cheapest_eviction(
    fleet: Fleet, groups: list[Rows], nodes: int, demand_at: Callable[[int], Demand], now_ms: int
) -> Eviction | None:
    """The `nodes` rows of one group on which making room loses least; None when no group has so many.

    Looks closely at the rows of each group that look best from afar (16, or twice the nodes). There it tries sets of
    leases, those that lose least first. Rows are chosen one after the other; a gang that has to go anyway is lost once.
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
    found = min(full, key=lambda gang: _lost(fleet, gang, now_ms))
    leases = {lease for one in found for lease in one.leases}
    order = sorted(leases, key=lambda lease: (loss_gpu_ms(fleet, lease, now_ms), lease))
    return Eviction(tuple(one.row for one in found), tuple(one.columns for one in found), tuple(order))


def loss_gpu_ms(fleet: Fleet, lease: str, now_ms: int) -> int:
    """GPU-milliseconds (whole GPUs) that evicting the lease now would throw away, those of its gang included."""
    return sum(_own_loss(held, now_ms) for held in fleet.together(lease))


def _own_loss(held: Held, now_ms: int) -> int:
    milli = sum(share.milli for assignment in held.assignments for share in assignment.gpus)
    return max(now_ms - held.safe_ms, 0) * milli // 1000


def _lost(fleet: Fleet, rows: Sequence[_OnRow], now_ms: int) -> int:
    """What all their evictions throw away; a gang counts once."""
    going = {held.lease: held for one in rows for lease in one.leases for held in fleet.together(lease)}
    return sum(_own_loss(held, now_ms) for held in going.values())


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
    """The rows to use, fewer than `nodes` when there are not so many; tried also as if each gang had to go anyway."""
    gone = [frozenset[str](), *_gangs_across(fleet, rows, now_ms)] if nodes > 1 else [frozenset[str]()]
    plans = [_one_by_one(fleet, rows, nodes, demand_at, now_ms, lost) for lost in gone]
    return min(plans, key=lambda plan: (-len(plan), _lost(fleet, plan, now_ms)))


def _gangs_across(fleet: Fleet, rows: list[int], now_ms: int) -> list[frozenset[str]]:
    """The leases of spot gangs that are on several of the rows, the gangs that lose least first."""
    found: dict[frozenset[str], int] = {}
    there = {held.lease for row in rows for held in fleet.leases_on(fleet.name_at(row)) if held.tier == "spot"}
    for lease in there:
        gang = frozenset(held.lease for held in fleet.together(lease))
        if len(gang & there) > 1:
            found[gang] = loss_gpu_ms(fleet, lease, now_ms)
    return sorted(found, key=lambda gang: (found[gang], sorted(gang)))[:_SEEDS]


def _one_by_one(
    fleet: Fleet,
    rows: list[int],
    nodes: int,
    demand_at: Callable[[int], Demand],
    now_ms: int,
    lost: frozenset[str],
) -> list[_OnRow]:
    """Rows in the order of what each loses beyond what is lost already."""
    plans = {row: _on_row(fleet, row, demand_at(row), now_ms, lost) for row in rows}
    chosen: list[_OnRow] = []
    while len(chosen) < nodes:
        able = [one for one in plans.values() if one is not None]
        if not able:
            return chosen
        best = min(able, key=lambda one: (one.loss, one.row))
        chosen.append(best)
        del plans[best.row]
        more = lost.union(*(_names(fleet.together(lease)) for lease in best.leases))
        for row, one in plans.items():
            if one is not None and (more - lost).intersection(_names(fleet.leases_on(fleet.name_at(row)))):
                plans[row] = _on_row(fleet, row, demand_at(row), now_ms, more)
        lost = more
    return chosen


def _names(leases: Collection[Held]) -> frozenset[str]:
    return frozenset(held.lease for held in leases)


def _on_row(fleet: Fleet, row: int, demand: Demand, now_ms: int, lost: Collection[str]) -> _OnRow | None:
    """The set of leases that loses least and whose going makes the demand fit; what is lost anyway counts nothing."""
    spots = _spots(fleet, row, now_ms, lost)
    gone = _greedy(fleet, row, demand, spots)
    if gone is None:
        return None
    least = sum(one.loss for one in gone)
    for tried, chosen in enumerate(_sets(spots)):
        loss = sum(one.loss for one in chosen)
        if tried == _SETS_LOOKED_AT or (loss, len(chosen)) >= (least, len(gone)):
            break
        if _columns(fleet, row, demand, chosen) is not None:
            gone, least = chosen, loss
            break
    columns = _columns(fleet, row, demand, gone)
    return None if columns is None else _OnRow(least, row, columns, tuple(one.lease for one in gone))


def _greedy(fleet: Fleet, row: int, demand: Demand, spots: list[_Spot]) -> list[_Spot] | None:
    """Leases go one by one, least loss first, until the demand fits; those that were not in the way are kept."""
    gone: list[_Spot] = []
    for one in spots:
        if _columns(fleet, row, demand, gone) is not None:
            break
        gone.append(one)
    if _columns(fleet, row, demand, gone) is None:
        return None
    for one in reversed(list(gone)):
        without = [other for other in gone if other is not one]
        if _columns(fleet, row, demand, without) is not None:
            gone = without
    return gone


def _sets(spots: list[_Spot]) -> Iterator[list[_Spot]]:
    """Sets of the leases, which are in the order of their loss, by loss and then size: each follows from one before."""
    heap: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]
    while heap:
        loss, size, picked = heappop(heap)
        yield [spots[index] for index in picked]
        following = picked[-1] + 1 if picked else 0
        if following == len(spots):
            continue
        heappush(heap, (loss + spots[following].loss, size + 1, (*picked, following)))
        if picked:
            swapped = loss - spots[picked[-1]].loss + spots[following].loss
            heappush(heap, (swapped, size, (*picked[:-1], following)))


def _spots(fleet: Fleet, row: int, now_ms: int, lost: Collection[str]) -> list[_Spot]:
    """The spot leases on the row's node, the one that loses least first."""
    node = fleet.name_at(row)
    found = [_spot(fleet, row, node, held, now_ms, lost) for held in fleet.leases_on(node) if held.tier == "spot"]
    return sorted(found, key=lambda one: (one.loss, one.lease))


def _spot(fleet: Fleet, row: int, node: str, held: Held, now_ms: int, lost: Collection[str]) -> _Spot:
    loss = sum(_own_loss(other, now_ms) for other in fleet.together(held.lease) if other.lease not in lost)
    parts = [part for part in held.assignments if part.node == node]
    seats = [(fleet.seat(share.uuid), share.milli) for part in parts for share in part.gpus]
    cpu, memory, disk = (
        sum(part.cpu_milli for part in parts),
        sum(part.memory_bytes for part in parts),
        sum(part.disk_bytes for part in parts),
    )
    shares = tuple((seat[1], milli) for seat, milli in seats if seat is not None and seat[0] == row)
    return _Spot(held.lease, loss, (cpu, memory, disk), shares)


def _columns(fleet: Fleet, row: int, demand: Demand, gone: Collection[_Spot]) -> tuple[int, ...] | None:
    """The GPUs to take once the leases in `gone` have left; None while the demand does not fit."""
    free, room = fleet.free[:, row].tolist(), fleet.room[:, row].tolist()
    for one in gone:
        room = [have + back for have, back in zip(room, one.room, strict=True)]
        for column, milli in one.shares:
            free[column] += milli
    wanted = (demand.cpu_milli, demand.memory_bytes, demand.disk_bytes)
    if any(have < want for have, want in zip(room, wanted, strict=True)):
        return None
    able = sorted((milli, column) for column, milli in enumerate(free) if milli >= demand.milli)
    return tuple(column for _, column in able[: demand.count]) if len(able) >= demand.count else None
