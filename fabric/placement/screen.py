"""Which rows a request rules out whatever is free there, and why: one bit per reason; and in which order the rest is
preferred before packing has its say.

It knows nothing of what is free (`packing`). What all rows of a kind or a profile share is decided once per kind or
profile and looked up for the rows, so a screen of a large fleet costs a few array operations; it is remembered until
the fleet's nodes change.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.placement.answer import Reason
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


@dataclass(slots=True)
class Screen:
    """One spec of one request against every row.

    Attributes:
        bits: per row the reasons against it, 0 for none; `TAKEN` is never among them.
        order: per row a number that sorts as the policy's properties do, a multiple of `SCORE_CEILING`; inf where a bit
            is set.
        price: per kind, DC per GPU-hour; 0 where the tier is not offered.
        milli: per kind, the share that it would grant, 0 where it grants none.
        sizes: the different grants among open rows.
        rtt_ms: per profile; inf where unknown.
        considered: rows in all.
        open_count: rows without a bit.
        rejected: rows by the first reason against them.
    """

    version: int
    bits: Bits
    order: Floats
    price: list[int]
    milli: list[int]
    sizes: tuple[int, ...]
    rtt_ms: list[float]
    considered: int
    open_count: int
    rejected: tuple[tuple[Reason, int], ...]


def screen(fleet: Fleet, request: Request, spec: GpuSpec, policy: Policy) -> Screen:
    """Look at every row, or remember having done so."""
    key = _key(request, spec, policy)
    known = fleet.memo.recall(key)
    if isinstance(known, Screen) and known.version == fleet.version:
        return known
    made = _screen(fleet, request, spec, policy)
    fleet.memo.keep(key, made, fleet.rows)
    return made


def count_first(bits: Bits) -> tuple[tuple[Reason, int], ...]:
    """How many rows each reason ruled out, counting for each row only the first."""
    values, counts = np.unique(bits & -bits, return_counts=True)
    named = zip(values.tolist(), counts.tolist(), strict=True)
    return tuple((REASONS[value.bit_length() - 1], count) for value, count in named if value > 0)


def _key(request: Request, spec: GpuSpec, policy: Policy) -> tuple[object, ...]:
    return (
        spec,
        policy,
        request.cpu_milli,
        request.memory_bytes,
        request.disk_bytes,
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
        request.exclude_nodes,
        request.apart_from,
        request.slot,
        request.allow_simulated,
    )


def _screen(fleet: Fleet, request: Request, spec: GpuSpec, policy: Policy) -> Screen:
    rows = fleet.rows
    kind, profile, alive = fleet.kind[:rows], fleet.profile[:rows], fleet.alive[:rows]
    rtt_ms = [request.rtt_ms.get(one.cluster, np.inf) for one in fleet.profiles]
    by_kind = np.array([_against_kind(one, request, spec) for one in fleet.kinds], np.int32)
    by_profile = np.array([_against_profile(one, request) for one in fleet.profiles], np.int32)
    bits = by_kind[kind] | by_profile[profile] if rows else np.zeros(0, np.int32)
    bits[fleet.size[:rows] < spec.count_min] |= BIT[Reason.GPU]
    wanted = ((request.cpu_milli,), (request.memory_bytes,), (request.disk_bytes,))
    bits[np.logical_or.reduce(fleet.total[:, :rows] < wanted)] |= BIT[Reason.SIZE]
    for name in request.exclude_nodes:
        bits[list(fleet.rows_of(name))] |= BIT[Reason.EXCLUDED]
    bits[~alive] = -1
    price = [one.price(request.tier) or 0 for one in fleet.kinds]
    milli = [one.granted_milli(spec.milli) for one in fleet.kinds]
    open_rows = np.flatnonzero(bits == 0)
    order = np.full(rows, np.inf)
    order[open_rows] = _order(fleet, request, policy, open_rows, price, rtt_ms) * SCORE_CEILING
    sizes = tuple(sorted({milli[index] for index in np.unique(kind[open_rows]).tolist()}))
    considered = int(np.count_nonzero(alive))
    rejected = count_first(bits[alive])
    return Screen(fleet.version, bits, order, price, milli, sizes, rtt_ms, considered, open_rows.size, rejected)


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
        (Reason.NEEDS, not request.needs <= profile.capabilities),
        (Reason.RTT, request.max_rtt_ms is not None and (rtt_ms is None or rtt_ms > request.max_rtt_ms)),
    )
    bits = 0
    for reason, applies in failed:
        bits |= BIT[reason] if applies else 0
    return bits


def _order(
    fleet: Fleet,
    request: Request,
    policy: Policy,
    rows: npt.NDArray[np.intp],
    price: list[int],
    rtt_ms: list[float],
) -> Floats:
    """The policy's properties as digits of one number, the most important first. Exact up to 2⁵³ / 1024."""
    order = np.zeros(rows.size)
    for name in policy.order:
        if name == "price":
            prices = np.minimum(np.array(price, np.float64), _PRICE_CEILING - 1)
            order = order * _PRICE_CEILING + prices[fleet.kind[rows]]
        elif name == "rtt" and request.rtt_ms:
            bands = np.minimum(np.array(rtt_ms) // policy.rtt_band_ms, _RTT_BANDS - 1)
            order = order * _RTT_BANDS + bands[fleet.profile[rows]]
        elif name == "spread" and request.apart_from:
            order = order * _CROWDING + _crowding(fleet, request.apart_from, rows)
    return order


def _crowding(fleet: Fleet, apart_from: frozenset[str], rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """2 where a replica runs on the node, 1 where one runs in the cluster, 0 elsewhere."""
    nodes = [fleet.nodes[name] for name in apart_from if name in fleet.nodes]
    clusters = {node.cluster for node in nodes}
    in_cluster = np.array([one.cluster in clusters for one in fleet.profiles], np.int64)
    same = [row for node in nodes for row in fleet.rows_of(node.name)]
    return in_cluster[fleet.profile[rows]] + np.isin(rows, same)
