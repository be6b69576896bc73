"""Which rows a request rules out whatever is free there, and why: one bit per reason; and in which order the rest is
preferred before packing has its say.

It knows nothing of what is free (`packing`). Rows of one sort are judged once, so a screen of a large fleet costs a few
lookups; it is remembered until the fleet's nodes change.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.placement.answer import Reason, Verdict
from fabric.placement.fleet import Fleet
from fabric.placement.grammar import GpuSpec
from fabric.placement.inventory import Kind, Profile
from fabric.placement.packing import SCORE_CEILING
from fabric.placement.policy import Policy
from fabric.placement.request import Request

REASONS = tuple(Reason)
BIT = {reason: 1 << index for index, reason in enumerate(REASONS)}

_PRICE_CEILING = 2.0**27  # DC per GPU-hour, USD 1,342
_RTT_BANDS = 2.0**10
_CROWDING = 4.0

Bits = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


class Screen:
    """One spec of one request against every row.

    Attributes:
        version: the fleet's when this was made.
        order: per row a number that sorts as the policy's properties do, a multiple of `SCORE_CEILING`; inf where there
            is a reason against the row.
        price: per kind, DC per GPU-hour; 0 where the tier is not offered.
        milli: per kind, the share that it would grant, 0 where it grants none.
        sizes: the different grants among open rows.
        rtt_ms: per profile; inf where unknown.
        considered: rows in all.
        open_count: rows with no reason against them.
        rejected: rows by the first reason against them.
    """

    def __init__(self, fleet: Fleet, request: Request, spec: GpuSpec, policy: Policy) -> None:
        sorts = _sorts(fleet)
        self.version = fleet.version
        self.price = [one.price(request.tier) or 0 for one in fleet.kinds]
        self.milli = [one.granted_milli(spec.milli) for one in fleet.kinds]
        self.rtt_ms = [request.rtt_ms.get(one.cluster, np.inf) for one in fleet.profiles]
        self._nodes = request.nodes
        self._by_sort = _judge(fleet, sorts, request, spec)
        self._excluded = [row for name in request.exclude_nodes for row in fleet.rows_of(name)]
        liked = np.where(self._by_sort == 0, _order(request, policy, sorts, self.price, self.rtt_ms), np.inf)
        self.order: Floats = liked[fleet.sort[: fleet.rows]]
        if policy.spreads and request.apart_from:
            _spread(self.order, fleet, request.apart_from)
        self.order[~fleet.alive[: fleet.rows]] = np.inf
        self.order[self._excluded] = np.inf
        self.order *= SCORE_CEILING
        self.considered = int(sorts.rows.sum())
        self.open_count = int(np.count_nonzero(self.order < np.inf))
        self.rejected = self._rejected(sorts)
        open_sorts = np.flatnonzero((self._by_sort == 0) & (sorts.rows > 0))
        self._bits: Bits | None = None
        self._only: dict[Reason, npt.NDArray[np.intp]] = {}
        self.sizes = tuple(sorted({self.milli[kind] for kind in sorts.kind[open_sorts].tolist()}))

    def bits(self, fleet: Fleet) -> Bits:
        """Per row all reasons against it, 0 for none, negative for rows that are no more; never `TAKEN`.

        The array is the screen's own.
        """
        if self._bits is None:
            self._bits = self._by_sort[fleet.sort[: fleet.rows]]
            self._bits[self._excluded] |= BIT[Reason.EXCLUDED]
            self._bits[~fleet.alive[: fleet.rows]] = -1
        return self._bits

    def only(self, fleet: Fleet, reason: Reason) -> npt.NDArray[np.intp]:
        """Rows that this reason alone speaks against. The array is the screen's own."""
        known = self._only.get(reason)
        if known is None:
            known = self._only[reason] = np.flatnonzero(self.bits(fleet) == BIT[reason])
        return known

    def open_rows(self) -> npt.NDArray[np.intp]:
        """Rows with no reason against them."""
        return np.flatnonzero(self.order < np.inf)

    def verdict(self, fleet: Fleet) -> Verdict:
        """What an empty fleet could do, and what it could do at any price."""
        if self.open_count and self._nodes == 1:
            return Verdict.TAKEN
        bits = self.bits(fleet)
        if _enough(fleet, self._nodes, bits):
            return Verdict.TAKEN
        priceless = _enough(fleet, self._nodes, bits & ~BIT[Reason.PRICE])
        return Verdict.PRICE if priceless else Verdict.NEVER_FITS

    def _rejected(self, sorts: "_Sorts") -> tuple[tuple[Reason, int], ...]:
        first = self._by_sort & -self._by_sort
        bits = [(reason, int(sorts.rows[first == bit].sum())) for reason, bit in BIT.items()]
        counts = dict(bits)
        counts[Reason.EXCLUDED] += self.considered - self.open_count - sum(counts.values())
        return tuple((reason, count) for reason, count in counts.items() if count)


def screen(fleet: Fleet, request: Request, spec: GpuSpec, policy: Policy) -> Screen:
    """Look at every row, or remember having done so."""
    key = _key(fleet, request, spec, policy)
    known = fleet.screens.recall(key)
    if isinstance(known, Screen) and known.version == fleet.version:
        return known
    made = Screen(fleet, request, spec, policy)
    fleet.screens.keep(key, made, fleet.rows)
    return made


@dataclass(frozen=True, slots=True)
class _Sorts:
    """The fleet's sorts in columns, with the number of rows of each and what even the smallest node has."""

    version: int
    kind: npt.NDArray[np.int64]
    profile: npt.NDArray[np.int64]
    gpus: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    least: tuple[int, int, int]


def _sorts(fleet: Fleet) -> _Sorts:
    known = fleet.screens.recall("sorts")
    if isinstance(known, _Sorts) and known.version == fleet.version:
        return known
    columns = np.array([(one.kind, one.profile, one.gpus) for one in fleet.sorts], np.int64).reshape(-1, 3).T
    totals = np.array([(one.cpu_milli, one.memory_bytes, one.disk_bytes) for one in fleet.sorts], np.int64)
    alive = fleet.alive[: fleet.rows]
    rows = np.bincount(fleet.sort[: fleet.rows][alive], minlength=len(fleet.sorts))
    total = totals.reshape(-1, 3).T
    least = total[:, rows > 0].min(axis=1, initial=2**62).tolist()
    kind, profile, gpus = columns
    made = _Sorts(fleet.version, kind, profile, gpus, total, rows, (least[0], least[1], least[2]))
    fleet.screens.keep("sorts", made, 1)
    return made


def _key(fleet: Fleet, request: Request, spec: GpuSpec, policy: Policy) -> tuple[object, ...]:
    """All that a screen depends on; of CPU, memory and disk only whether and how some nodes are too small."""
    wanted = (request.cpu_milli, request.memory_bytes, request.disk_bytes)
    least = _sorts(fleet).least
    small = wanted[0] > least[0] or wanted[1] > least[1] or wanted[2] > least[2]
    return (
        spec,
        policy,
        request.nodes,
        wanted if small else None,
        request.tier,
        request.max_price_dc_per_gpu_hour,
        request.region,
        tuple(request.rtt_ms.items()),
        request.max_rtt_ms,
        request.operators,
        request.operators_denied,
        request.min_reputation,
        request.min_verification,
        request.interconnect,
        request.python,
        request.needs,
        request.account,
        request.exclude_nodes,
        request.apart_from,
        request.slot,
        request.allow_simulated,
    )


def _enough(fleet: Fleet, nodes: int, bits: Bits) -> bool:
    """Whether so many nodes of one cluster and kind have no reason against them."""
    rows = np.flatnonzero(bits == 0)
    if nodes == 1 or rows.size < nodes:
        return rows.size >= nodes
    return int(np.bincount(fleet.group[rows]).max()) >= nodes


def _judge(fleet: Fleet, sorts: _Sorts, request: Request, spec: GpuSpec) -> Bits:
    """Per sort, the reasons against it."""
    by_kind = np.array([_against_kind(one, request, spec) for one in fleet.kinds], np.int32)
    by_profile = np.array([_against_profile(one, request) for one in fleet.profiles], np.int32)
    bits = by_kind[sorts.kind] | by_profile[sorts.profile]
    bits[sorts.gpus < spec.count_min] |= BIT[Reason.GPU]
    wanted = ((request.cpu_milli,), (request.memory_bytes,), (request.disk_bytes,))
    bits[(sorts.total < wanted).any(axis=0)] |= BIT[Reason.SIZE]
    return bits


def _against_kind(kind: Kind, request: Request, spec: GpuSpec) -> int:
    bits = 0
    if spec.count_min and not (kind.model and spec.accepts(kind.vendor, kind.model, kind.memory_bytes)):
        bits |= BIT[Reason.GPU]
    if not kind.granted_milli(spec.milli):
        bits |= BIT[Reason.GPU]
    if kind.simulated and not request.allow_simulated:
        bits |= BIT[Reason.SIMULATED]
    if request.tier != "spot" and kind.slot != request.slot:
        bits |= BIT[Reason.SLOT]
    if not spec.count_min:
        return bits
    price = kind.price(request.tier)
    if price is None:
        return bits | BIT[Reason.TIER]
    cap = request.max_price_dc_per_gpu_hour
    return bits | (BIT[Reason.PRICE] if cap is not None and price > cap else 0)


def _against_profile(profile: Profile, request: Request) -> int:
    rtt_ms = request.rtt_ms.get(profile.cluster)
    failed = (
        (Reason.OPERATOR, bool(request.operators) and profile.operator not in request.operators),
        (Reason.OPERATOR, profile.operator in request.operators_denied),
        (Reason.REGION, bool(request.region) and profile.region not in request.region),
        (Reason.REPUTATION, profile.reputation < request.min_reputation),
        (Reason.VERIFICATION, profile.verification < request.min_verification),
        (Reason.INTERCONNECT, bool(request.interconnect) and request.interconnect not in profile.interconnects),
        (Reason.PYTHON, bool(request.python and profile.pythons) and request.python not in profile.pythons),
        (Reason.OWN_WORK, bool(profile.accounts) and request.account not in (None, *profile.accounts)),
        (Reason.NEEDS, not request.needs <= profile.capabilities),
        (Reason.RTT, request.max_rtt_ms is not None and (rtt_ms is None or rtt_ms > request.max_rtt_ms)),
    )
    bits = 0
    for reason, applies in failed:
        bits |= BIT[reason] if applies else 0
    return bits


def _order(request: Request, policy: Policy, sorts: _Sorts, price: list[int], rtt_ms: list[float]) -> Floats:
    """Per sort, the policy's properties as digits of one number, the most important first; room is left for spread.

    Exact up to 2⁵³ / 1024.
    """
    order = np.zeros(sorts.kind.size)
    for name in policy.order:
        if name == "price":
            prices = np.minimum(np.array(price, np.float64), _PRICE_CEILING - 1)
            order = order * _PRICE_CEILING + prices[sorts.kind]
        elif name == "rtt" and request.rtt_ms:
            bands = np.minimum(np.array(rtt_ms) / policy.rtt_band_ms, _RTT_BANDS - 1) // 1
            order = order * _RTT_BANDS + bands[sorts.profile]
        elif name == "spread" and request.apart_from:
            order *= _CROWDING
    return order


def _spread(order: Floats, fleet: Fleet, apart_from: frozenset[str]) -> None:
    """Put 2 into the digit of spread where a replica runs on the node, 1 where one runs in the cluster."""
    nodes = [fleet.nodes[name] for name in apart_from if name in fleet.nodes]
    clusters = {node.cluster for node in nodes}
    in_cluster = np.array([one.cluster in clusters for one in fleet.profiles], np.int64)
    same = [row for node in nodes for row in fleet.rows_of(node.name)]
    order += in_cluster[fleet.profile[: order.size]] * _PRICE_CEILING
    order[same] += _PRICE_CEILING
