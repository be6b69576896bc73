"""Where a request goes: `place(fleet, request)` is a `Placement` or a `Refusal`; `offers(fleet, request)` is what could
be bought now. Both use the same screens, so the price shown is the price paid.

Pure and deterministic: no clock, no randomness; nothing is booked (`Fleet.take` books what was decided). The fleet's
`memo` keeps what was worked out for earlier requests; it changes speed, never an answer.

```
place(fleet: Fleet, request: Request, policy: Policy | None = None, *, now_ms: int = 0) -> Placement | Refusal
offers(fleet: Fleet, request: Request) -> list[Offer]
as_held(placement: Placement, lease: str, *, safe_ms: int = 0, until_ms: int | None = None) -> Held
```
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.placement.answer import Alternative, Explain, Offer, Placement, Reason, Refusal, Verdict
from fabric.placement.eviction import cheapest_eviction
from fabric.placement.fleet import Fleet
from fabric.placement.grammar import WHOLE_MILLI, GpuSpec
from fabric.placement.inventory import Assignment, GpuShare, Held
from fabric.placement.nearest import nearest, similar_names
from fabric.placement.packing import Demand, choose_gpus, fits, scores
from fabric.placement.policy import Policy, policy_for
from fabric.placement.request import Request
from fabric.placement.screen import BIT, Screen, screen

_SCORE_CEILING = 1024.0
_PRICE_CEILING = 2.0**31


def place(fleet: Fleet, request: Request, policy: Policy | None = None, *, now_ms: int = 0) -> Placement | Refusal:
    """Decide where the request goes.

    Free GPUs are preferred to GPUs that a spot lease would have to leave, whatever their price below the cap. Of a
    range of counts the objective `cost` takes the smallest and `latency` the largest that is free at the place it chose.

    Args:
        fleet: as it is now.
        request: what is asked.
        policy: what is preferred; None for the default of the request's objective.
        now_ms: ms since the Unix epoch, for what spot leases would lose and for "free in about …"; nothing else.

    Returns:
        A placement that fits as it stands, or a refusal that tells "never", "too dear" and "taken" apart.
    """
    chosen_policy = policy or policy_for(request.objective)
    choices = [_Choice(fleet, request, index, chosen_policy) for index in range(len(request.gpu.specs))]
    winner = _winner([choice for choice in choices if choice.best is not None], ordered=request.gpu.ordered)
    if winner is not None:
        return winner.placement()
    if request.tier != "spot":
        for choice in choices:
            evicting = choice.evicting(now_ms)
            if evicting is not None:
                return evicting
    return _refusal(fleet, request, choices, now_ms)


def offers(fleet: Fleet, request: Request) -> list[Offer]:
    """Everything that `place` could choose now, grouped by cluster and kind of GPU, cheapest first."""
    found: list[Offer] = []
    for index in range(len(request.gpu.specs)):
        found += _Choice(fleet, request, index, policy_for(request.objective)).offers()
    distinct = list(dict.fromkeys(found))
    distinct.sort(key=lambda offer: (offer.price_dc_per_gpu_hour, offer.rtt_ms or 0.0, offer.model, offer.cluster))
    return distinct


def as_held(placement: Placement, lease: str, *, safe_ms: int = 0, until_ms: int | None = None) -> Held:
    """What `Fleet.take` books for a placement."""
    return Held(lease, placement.tier, placement.assignments, safe_ms, until_ms)


@dataclass(frozen=True, slots=True)
class _Best:
    rows: tuple[int, ...]
    order: tuple[float, ...]
    second: int | None


class _Choice:
    """One alternative of a request against the fleet: what is open, what fits, what is best."""

    def __init__(self, fleet: Fleet, request: Request, index: int, policy: Policy) -> None:
        self.fleet, self.request, self.index, self.policy = fleet, request, index, policy
        self.spec: GpuSpec = request.gpu.specs[index]
        self.screen: Screen = screen(fleet, request, self.spec)
        self.able = self._able(evicting=False)
        self.best = self._single() if request.nodes == 1 else self._gang(self.able)

    def demand(self, milli: int) -> Demand:
        request = self.request
        return Demand(self.spec.count_min, milli, request.cpu_milli, request.memory_bytes, request.disk_bytes)

    def placement(self) -> Placement:
        best = self.best
        if best is None:
            raise AssertionError("a placement is made of a choice that found one")
        return self._placement(best.rows, (), best.second)

    def evicting(self, now_ms: int) -> Placement | None:
        """The placement that loses least spot work, if any would do."""
        able = self._able(evicting=True)
        if self.request.nodes > 1:
            gang = self._gang(able)
            rows = gang.rows if gang else ()
        else:
            rows = tuple(able.tolist())
        found = cheapest_eviction(self.fleet, rows, self.request.nodes, self._demand_at, now_ms)
        return None if found is None else self._placement(found.rows, found.leases, None, found.columns)

    def offers(self) -> list[Offer]:
        groups: dict[tuple[int, int], list[int]] = {}
        for row in self.able.tolist():
            groups.setdefault((int(self.fleet.profile[row]), int(self.fleet.kind[row])), []).append(row)
        merged: dict[tuple[str, int], list[int]] = {}
        for (profile, kind), rows in groups.items():
            merged.setdefault((self.fleet.profiles[profile].cluster, kind), []).extend(rows)
        made = [self._offer(rows) for rows in merged.values()]
        return [offer for offer in made if offer.available]

    def explain(self, chosen: int, second: int | None) -> Explain:
        taken = self.screen.open_rows.size - self.able.size
        rejected = self.screen.rejected + (((Reason.TAKEN, taken),) if taken else ())
        because = ", then ".join((*self.policy.order, *(("packing",) if self.policy.packs else ())))
        following = None if second is None or second == chosen else self._alternative(second)
        return Explain(self.screen.considered, rejected, int(self.able.size), because, following)

    def _able(self, *, evicting: bool) -> npt.NDArray[np.intp]:
        rows = self.screen.open_rows
        keep = np.zeros(rows.size, np.bool_)
        milli = self.screen.milli[rows]
        for value in np.unique(milli).tolist():
            same = milli == value
            keep[same] = fits(self.fleet, self.demand(value), rows[same], evicting=evicting)
        return rows[keep]

    def _demand_at(self, row: int) -> Demand:
        return self.demand(int(self.screen.milli[row]))

    def _orders(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """One number per row that sorts as the policy's properties and then the packing do."""
        order = np.zeros(rows.size)
        for name in self.policy.order:
            order = order * _PRICE_CEILING + self._property(name, rows)
        order *= _SCORE_CEILING
        if self.policy.packs:
            milli = self.screen.milli[rows]
            for value in np.unique(milli).tolist():
                same = milli == value
                order[same] += scores(self.fleet, self.demand(value), rows[same])
        return order

    def _property(self, name: str, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        if name == "price":
            return self.screen.price[rows].astype(np.float64)
        if name == "spread":
            return self._crowding(rows)
        if self.screen.rtt_ms is None:
            return np.zeros(rows.size)
        return np.minimum(self.screen.rtt_ms[rows] // self.policy.rtt_band_ms, 4096)

    def _crowding(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """2 where a replica runs on the node, 1 where one runs in the cluster, 0 elsewhere."""
        crowded = np.zeros(rows.size)
        nodes = [self.fleet.nodes[name] for name in self.request.apart_from if name in self.fleet.nodes]
        clusters = {node.cluster for node in nodes}
        in_cluster = np.array([one.cluster in clusters for one in self.fleet.profiles], np.bool_)
        crowded += in_cluster[self.fleet.profile[rows]]
        same = [row for node in nodes for row in self.fleet.rows_of(node.name)]
        return crowded + np.isin(rows, same)

    def _single(self) -> _Best | None:
        if not self.able.size:
            return None
        orders = self._orders(self.able)
        ranked = np.argsort(orders, kind="stable")[:2].tolist()
        second = int(self.able[ranked[1]]) if len(ranked) > 1 else None
        return _Best((int(self.able[ranked[0]]),), (float(orders[ranked[0]]),), second)

    def _gang(self, able: npt.NDArray[np.intp]) -> _Best | None:
        """The best rows of the best cluster and kind that has enough different nodes."""
        orders = self._orders(able)
        by_group: dict[tuple[str, int], dict[str, tuple[float, int]]] = {}
        for order, row in sorted(zip(orders.tolist(), able.tolist(), strict=True)):
            group = (self.fleet.profiles[self.fleet.profile[row]].cluster, int(self.fleet.kind[row]))
            by_group.setdefault(group, {}).setdefault(self.fleet.node_at(row).name, (order, row))
        gangs = [sorted(group.values())[: self.request.nodes] for group in by_group.values()]
        full = sorted(
            (sum(order for order, _ in gang), tuple(row for _, row in gang))
            for gang in gangs
            if len(gang) == self.request.nodes
        )
        if not full:
            return None
        second = full[1][1][0] if len(full) > 1 else None
        return _Best(full[0][1], (full[0][0] / self.request.nodes,), second)

    def _placement(
        self,
        rows: tuple[int, ...],
        evicts: tuple[str, ...],
        second: int | None,
        columns: tuple[tuple[int, ...], ...] | None = None,
    ) -> Placement:
        fleet, request, first = self.fleet, self.request, rows[0]
        kind, profile = fleet.kinds[fleet.kind[first]], fleet.profiles[fleet.profile[first]]
        demand = self._demand_at(first)
        count = demand.count if columns else self._count(rows)
        taken = columns or tuple(
            tuple(choose_gpus(fleet, _with_count(self._demand_at(row), count), row)) for row in rows
        )
        assignments = tuple(
            Assignment(
                fleet.node_at(row).name,
                tuple(GpuShare(fleet.uuid_at(row, column), demand.milli) for column in chosen),
                request.cpu_milli,
                request.memory_bytes,
                request.disk_bytes,
            )
            for row, chosen in zip(rows, taken, strict=True)
        )
        return Placement(
            assignments=assignments,
            operator=profile.operator,
            cluster=profile.cluster,
            region=profile.region,
            vendor=kind.vendor,
            model=kind.model,
            memory_bytes=kind.memory_bytes,
            gpus_per_node=count,
            milli=demand.milli,
            tier=request.tier,
            price_dc_per_gpu_hour=int(self.screen.price[first]),
            rtt_ms=self._rtt(first),
            simulated=kind.simulated,
            ends_at_ms=kind.ends_at_ms if request.tier == "on_demand" else None,
            evicts=evicts,
            alternative=self.index,
            explain=self.explain(first, second),
        )

    def _count(self, rows: tuple[int, ...]) -> int:
        spec = self.spec
        if self.request.objective == "cost" or spec.count_max == spec.count_min:
            return spec.count_min
        whole = min(int(np.count_nonzero(self.fleet.free[row] >= WHOLE_MILLI)) for row in rows)
        return whole if spec.count_max is None else min(whole, spec.count_max)

    def _rtt(self, row: int) -> float | None:
        if self.screen.rtt_ms is None or not np.isfinite(self.screen.rtt_ms[row]):
            return None
        return float(self.screen.rtt_ms[row])

    def _alternative(self, row: int) -> Alternative:
        profile = self.fleet.profiles[self.fleet.profile[row]]
        return Alternative(
            self.fleet.node_at(row).name,
            profile.operator,
            profile.cluster,
            self.fleet.kinds[self.fleet.kind[row]].model,
            int(self.screen.price[row]),
            self._rtt(row),
        )

    def _offer(self, rows: list[int]) -> Offer:
        fleet, request, first = self.fleet, self.request, rows[0]
        kind, profile = fleet.kinds[fleet.kind[first]], fleet.profiles[fleet.profile[first]]
        per_row = [_times(fleet, self._demand_at(row), row) for row in rows]
        return Offer(
            operator=profile.operator,
            cluster=profile.cluster,
            region=profile.region,
            vendor=kind.vendor,
            model=kind.model,
            memory_bytes=kind.memory_bytes,
            nodes=request.nodes,
            gpus_per_node=self.spec.count_min,
            milli=int(self.screen.milli[first]),
            tier=request.tier,
            price_dc_per_gpu_hour=int(self.screen.price[first]),
            rtt_ms=self._rtt(first),
            ends_at_ms=kind.ends_at_ms if request.tier == "on_demand" else None,
            simulated=kind.simulated,
            reputation=profile.reputation,
            verification=profile.verification,
            available=sum(per_row) if request.nodes == 1 else _gangs(per_row, request.nodes),
        )


def _with_count(demand: Demand, count: int) -> Demand:
    return Demand(count, demand.milli, demand.cpu_milli, demand.memory_bytes, demand.disk_bytes)


def _times(fleet: Fleet, demand: Demand, row: int) -> int:
    """How often the demand fits into the row, one lease after the other."""
    room = fleet.room[row].tolist()
    wanted = (demand.cpu_milli, demand.memory_bytes, demand.disk_bytes)
    limits = [have // want for have, want in zip(room, wanted, strict=True) if want]
    if demand.count:
        shares = sum(free // demand.milli for free in fleet.free[row].tolist())
        limits.append(shares // demand.count)
    return min(limits, default=1)


def _gangs(per_row: list[int], nodes: int) -> int:
    """How many gangs of different nodes can be drawn: the largest n with Σ min(times, n) ≥ n · nodes."""
    n = sum(per_row) // nodes
    while n and sum(min(times, n) for times in per_row) < n * nodes:
        n -= 1
    return n


def _winner(found: list[_Choice], *, ordered: bool) -> _Choice | None:
    if ordered or len(found) < 2:
        return found[0] if found else None
    return min(found, key=lambda choice: (choice.placement().price_dc_per_hour_up, choice.index))


def _refusal(fleet: Fleet, request: Request, choices: list[_Choice], now_ms: int) -> Refusal:
    verdicts = [_verdict(choice) for choice in choices]
    order = (Verdict.TAKEN, Verdict.PRICE, Verdict.NEVER_FITS)
    verdict = min(verdicts, key=order.index)
    reasons: Counter[Reason] = Counter()
    for choice in choices:
        reasons.update(dict(choice.screen.rejected))
        reasons[Reason.TAKEN] += int(choice.screen.open_rows.size)
    counted = tuple((reason, reasons[reason]) for reason in Reason if reasons[reason])
    screens = [(choice.spec, choice.screen) for choice in choices]
    near = nearest(fleet, request, screens, now_ms)
    return Refusal(
        verdict, sum(choice.screen.considered for choice in choices), counted, near, similar_names(fleet, request)
    )


def _verdict(choice: _Choice) -> Verdict:
    """What an empty fleet could do, and what it could do at any price."""
    if _enough(choice, 0):
        return Verdict.TAKEN
    return Verdict.PRICE if _enough(choice, BIT[Reason.PRICE]) else Verdict.NEVER_FITS


def _enough(choice: _Choice, forgiven: int) -> bool:
    """Whether so many nodes of one cluster and kind would do, all empty and the forgiven reasons aside."""
    fleet, nodes = choice.fleet, choice.request.nodes
    rows = np.flatnonzero((choice.screen.bits & ~forgiven) == 0)
    if nodes == 1 or rows.size < nodes:
        return rows.size >= nodes
    distinct = {
        (fleet.profiles[fleet.profile[row]].cluster, int(fleet.kind[row]), fleet.node_at(row).name)
        for row in rows.tolist()
    }
    groups = Counter((cluster, kind) for cluster, kind, _ in distinct)
    return max(groups.values()) >= nodes
