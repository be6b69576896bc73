"""One alternative of a request against the fleet: which rows are open, which have room, which of them is best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.placement.answer import Alternative, Explain, Offer, Placement, Reason
from fabric.placement.eviction import cheapest_eviction
from fabric.placement.fleet import Fleet
from fabric.placement.grammar import WHOLE_MILLI
from fabric.placement.inventory import Assignment, GpuShare
from fabric.placement.packing import Demand, Packing, fits, packing
from fabric.placement.policy import Policy
from fabric.placement.request import Request
from fabric.placement.screen import Screen, screen

_TIE = 1e-6

Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Best:
    """The rows to use, one per node of the gang, and the row that came next."""

    rows: tuple[int, ...]
    second: int | None
    eligible: int


class Choice:
    """What one spec of a request finds in the fleet as it is now."""

    def __init__(self, fleet: Fleet, request: Request, index: int, policy: Policy) -> None:
        self.fleet, self.request, self.index, self.policy = fleet, request, index, policy
        self.spec = request.gpu.specs[index]
        self.screen: Screen = screen(fleet, request, self.spec, policy)
        self.packings = {milli: packing(fleet, self._demand(milli)) for milli in self.screen.sizes}

    def best(self) -> Best | None:
        """The best place now, None when there is no room."""
        if not self.screen.open_count:
            return None
        orders = self._orders()
        return self._single(orders) if self.request.nodes == 1 else self._gang(orders)

    def placement(self, best: Best) -> Placement:
        fleet, screened, count = self.fleet, self.screen, self._count(best.rows)
        chooser = self.packings[screened.milli[fleet.kind[best.rows[0]]]]
        return self._placement(best, [chooser.choose(fleet, row, count) for row in best.rows], ())

    def evicting(self, now_ms: int) -> Placement | None:
        """The placement that loses least spot work, if making room would help."""
        rows = self.screen.open_rows()
        able = rows[self._fits(rows)]
        if able.size < self.request.nodes:
            return None
        groups = [able] if self.request.nodes == 1 else self._by_group(able)
        found = cheapest_eviction(self.fleet, groups, self.request.nodes, self.demand_at, now_ms)
        if found is None:
            return None
        return self._placement(Best(found.rows, None, int(able.size)), found.columns, found.leases)

    def emptiest(self) -> frozenset[str]:
        """The nodes of one cluster and kind where least is held, as many as wanted; empty when there are too few."""
        nodes, best = self.request.nodes, (float("inf"), frozenset[str]())
        for rows in self._by_group(self.screen.open_rows()):
            if rows.size < nodes:
                continue
            held = self.fleet.size[rows] * WHOLE_MILLI - self.fleet.free[:, rows].sum(axis=0)
            least = np.argsort(held, kind="stable")[:nodes]
            names = frozenset(self.fleet.name_at(int(row)) for row in rows[least])
            best = min(best, (float(held[least].sum()), names), key=lambda pair: pair[0])
        return best[1]

    def offers(self) -> list[Offer]:
        orders = self._orders()
        rows = np.flatnonzero(np.isfinite(orders))
        made = [self._offer(group.tolist()) for group in self._by_group(rows)]
        return [offer for offer in made if offer.available]

    def demand_at(self, row: int) -> Demand:
        """What the row would have to give; a share grows to the next size that its kind enforces."""
        return self.packings[self.screen.milli[self.fleet.kind[row]]].demand

    def _demand(self, milli: int) -> Demand:
        request = self.request
        return Demand(self.spec.count_min, milli, request.cpu_milli, request.memory_bytes, request.disk_bytes)

    def _orders(self) -> Floats:
        """Per row, what to prefer (lower), inf where it is closed or has no room now. A fresh array."""
        order, packings = self.screen.order, self.packings
        if len(packings) == 1:
            return order + self._scores(next(iter(packings.values())))
        granted = np.array(self.screen.milli)[self.fleet.kind[: self.fleet.rows]]
        score = np.full(order.size, np.inf)
        for milli, one in packings.items():
            same = granted == milli
            score[same] = self._scores(one)[same]
        return order + score

    def _scores(self, one: Packing) -> Floats:
        score = one.scores(self.fleet)
        return score if self.policy.packs else np.where(np.isfinite(score), 0.0, np.inf)

    def _single(self, orders: Floats) -> Best | None:
        first = int(orders.argmin())
        lowest = orders[first]
        if lowest == np.inf:
            return None
        if self.fleet.tracks_use:
            first = self._least_used(np.flatnonzero(orders <= lowest + _TIE))
        eligible = int(np.count_nonzero(orders < np.inf))
        orders[first] = np.inf
        return Best((first,), int(orders.argmin()) if eligible > 1 else None, eligible)

    def _least_used(self, rows: Rows) -> int:
        used = self.fleet.used_gpu_ms[:, rows].sum(axis=0) / np.maximum(self.fleet.size[rows], 1)
        return int(rows[used.argmin()])

    def _gang(self, orders: Floats) -> Best | None:
        """The best rows of the best cluster and kind that has enough different nodes."""
        nodes = self.request.nodes
        able = np.flatnonzero(orders < np.inf)
        ranked = able[np.lexsort((able, orders[able], self.fleet.group[able]))]
        groups, starts, sizes = np.unique(self.fleet.group[ranked], return_index=True, return_counts=True)
        starts = starts[sizes >= nodes]
        if not groups.size or not starts.size:
            return None
        members = ranked[starts[:, None] + np.arange(nodes)]
        by_cost = np.argsort(orders[members].sum(axis=1), kind="stable")
        best = members[by_cost[0]]
        second = int(members[by_cost[1]][0]) if by_cost.size > 1 else None
        return Best(tuple(best.tolist()), second, int(able.size))

    def _fits(self, rows: Rows) -> npt.NDArray[np.bool_]:
        granted = np.array(self.screen.milli)[self.fleet.kind[rows]]
        keep = np.zeros(rows.size, np.bool_)
        for milli, one in self.packings.items():
            same = granted == milli
            keep[same] = fits(self.fleet, one.demand, rows[same], evicting=True)
        return keep

    def _by_group(self, rows: Rows) -> list[Rows]:
        """Rows of one cluster and kind together."""
        group = self.fleet.group[rows]
        ranked = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[ranked])) + 1
        return [part for part in np.split(rows[ranked], starts) if part.size]

    def _count(self, rows: tuple[int, ...]) -> int:
        spec = self.spec
        if self.request.objective == "cost" or spec.count_max == spec.count_min:
            return spec.count_min
        whole = min(int(np.count_nonzero(self.fleet.free[:, row] >= WHOLE_MILLI)) for row in rows)
        return whole if spec.count_max is None else min(whole, spec.count_max)

    def _placement(self, best: Best, taken: Sequence[Sequence[int]], evicts: tuple[str, ...]) -> Placement:
        fleet, request, first = self.fleet, self.request, best.rows[0]
        kind_id, profile_id = fleet.kind.item(first), fleet.profile.item(first)
        kind, profile, milli = fleet.kinds[kind_id], fleet.profiles[profile_id], self.screen.milli[kind_id]
        assignments = [
            Assignment(
                fleet.name_at(row),
                tuple([GpuShare(fleet.uuid_at(row, column), milli) for column in columns]),
                request.cpu_milli,
                request.memory_bytes,
                request.disk_bytes,
            )
            for row, columns in zip(best.rows, taken, strict=True)
        ]
        return Placement(
            assignments=tuple(assignments),
            operator=profile.operator,
            cluster=profile.cluster,
            region=profile.region,
            vendor=kind.vendor,
            model=kind.model,
            memory_bytes=kind.memory_bytes,
            gpus_per_node=len(taken[0]),
            milli=milli,
            tier=request.tier,
            price_dc_per_gpu_hour=self.screen.price[kind_id],
            rtt_ms=self._rtt(profile_id),
            simulated=kind.simulated,
            ends_at_ms=kind.ends_at_ms if request.tier == "on_demand" else None,
            evicts=evicts,
            alternative=self.index,
            explain=self._explain(best),
        )

    def _explain(self, best: Best) -> Explain:
        taken = self.screen.open_count - best.eligible
        rejected = (*self.screen.rejected, (Reason.TAKEN, taken)) if taken else self.screen.rejected
        following = None if best.second is None else self._alternative(best.second)
        return Explain(self.screen.considered, rejected, best.eligible, self.policy.because, following)

    def _rtt(self, profile_id: int) -> float | None:
        rtt_ms = self.screen.rtt_ms[profile_id]
        return None if rtt_ms == np.inf else rtt_ms

    def _alternative(self, row: int) -> Alternative:
        fleet = self.fleet
        kind_id, profile_id = fleet.kind.item(row), fleet.profile.item(row)
        profile = fleet.profiles[profile_id]
        price, rtt_ms = self.screen.price[kind_id], self._rtt(profile_id)
        model = fleet.kinds[kind_id].model
        return Alternative(fleet.name_at(row), profile.operator, profile.cluster, model, price, rtt_ms)

    def _offer(self, rows: list[int]) -> Offer:
        fleet, request, first = self.fleet, self.request, rows[0]
        kind_id, profile_id = fleet.kind.item(first), fleet.profile.item(first)
        kind, profile = fleet.kinds[kind_id], fleet.profiles[profile_id]
        per_row = [_times(fleet, self.demand_at(row), row) for row in rows]
        return Offer(
            operator=profile.operator,
            cluster=profile.cluster,
            region=profile.region,
            vendor=kind.vendor,
            model=kind.model,
            memory_bytes=kind.memory_bytes,
            nodes=request.nodes,
            gpus_per_node=self.spec.count_min,
            milli=self.screen.milli[kind_id],
            tier=request.tier,
            price_dc_per_gpu_hour=self.screen.price[kind_id],
            rtt_ms=self._rtt(profile_id),
            ends_at_ms=kind.ends_at_ms if request.tier == "on_demand" else None,
            simulated=kind.simulated,
            reputation=profile.reputation,
            verification=profile.verification,
            available=sum(per_row) if request.nodes == 1 else _gangs(per_row, request.nodes),
        )


def _times(fleet: Fleet, demand: Demand, row: int) -> int:
    """How often the demand fits into the row, one lease after the other."""
    wanted = (demand.cpu_milli, demand.memory_bytes, demand.disk_bytes)
    limits = [have // want for have, want in zip(fleet.room[:, row].tolist(), wanted, strict=True) if want]
    if demand.count:
        shares = sum(free // demand.milli for free in fleet.free[:, row].tolist())
        limits.append(shares // demand.count)
    return min(limits, default=1)


def _gangs(per_row: list[int], nodes: int) -> int:
    """How many gangs of different nodes can be drawn: the largest n with Σ min(times, n) ≥ n · nodes."""
    n = sum(per_row) // nodes
    while n and sum(min(times, n) for times in per_row) < n * nodes:
        n -= 1
    return n
