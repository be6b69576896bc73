"""Which rows a request rules out whatever is free there, and why: one bit per reason.

It knows nothing of what is free (`packing`). What all rows of a kind or a profile share is decided once per kind or
profile and looked up for the rows, so a screen of a large fleet costs a few array operations.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.placement.answer import Reason
from fabric.placement.fleet import Fleet
from fabric.placement.grammar import WHOLE_MILLI, GpuSpec
from fabric.placement.inventory import Kind, Profile
from fabric.placement.request import Request

REASONS = tuple(Reason)
BIT = {reason: 1 << index for index, reason in enumerate(REASONS)}
Bits = npt.NDArray[np.int32]


@dataclass(slots=True)
class Screen:
    """One spec of one request against every row.

    Attributes:
        bits: per row the reasons against it, 0 for none; `TAKEN` is never among them.
        price: DC per GPU-hour; 0 where the tier is not offered.
        milli: the share that a row's kind would grant, 0 where it grants none.
        rtt_ms: per row; inf where unknown. None when the request gives no round trips.
        open_rows: rows without a bit.
    """

    bits: Bits
    price: npt.NDArray[np.int64]
    milli: npt.NDArray[np.int64]
    rtt_ms: npt.NDArray[np.float64] | None
    considered: int
    open_rows: npt.NDArray[np.intp]
    rejected: tuple[tuple[Reason, int], ...]


def screen(fleet: Fleet, request: Request, spec: GpuSpec) -> Screen:
    """Look at every row."""
    rows = fleet.rows
    kind, profile = fleet.kind[:rows], fleet.profile[:rows]
    by_kind = [_against_kind(one, request, spec) for one in fleet.kinds]
    by_profile = [_against_profile(one, request) for one in fleet.profiles]
    bits = np.array(by_kind, np.int32)[kind] | np.array(by_profile, np.int32)[profile]
    bits[fleet.size[:rows] < spec.count_min] |= BIT[Reason.GPU]
    wanted = np.array((request.cpu_milli, request.memory_bytes, request.disk_bytes), np.int64)
    bits[(fleet.total[:rows] < wanted).any(axis=1)] |= BIT[Reason.SIZE]
    for name in request.exclude_nodes:
        bits[list(fleet.rows_of(name))] |= BIT[Reason.EXCLUDED]
    rtt_ms = _rtts(fleet, request)[profile] if request.rtt_ms else None
    if request.max_rtt_ms is not None:
        far = np.ones(rows, np.bool_) if rtt_ms is None else rtt_ms > request.max_rtt_ms
        bits[far] |= BIT[Reason.RTT]
    alive = fleet.alive[:rows]
    bits[~alive] = -1
    price = np.array([one.price(request.tier) or 0 for one in fleet.kinds], np.int64)[kind]
    milli = np.array([one.granted_milli(spec.milli) for one in fleet.kinds], np.int64)[kind]
    considered = int(np.count_nonzero(alive))
    return Screen(bits, price, milli, rtt_ms, considered, np.flatnonzero(bits == 0), count_first(bits[alive]))


def count_first(bits: Bits) -> tuple[tuple[Reason, int], ...]:
    """How many rows each reason ruled out, counting for each row only the first."""
    values, counts = np.unique(bits & -bits, return_counts=True)
    named = zip(values.tolist(), counts.tolist(), strict=True)
    return tuple((REASONS[value.bit_length() - 1], count) for value, count in named if value > 0)


def _against_kind(kind: Kind, request: Request, spec: GpuSpec) -> int:
    bits = 0
    if spec.count_min and not (kind.model and spec.accepts(kind.vendor, kind.model, kind.memory_bytes)):
        bits |= BIT[Reason.GPU]
    if not kind.granted_milli(spec.milli):
        bits |= BIT[Reason.GPU]
    if kind.simulated and not request.allow_simulated:
        bits |= BIT[Reason.SIMULATED]
    if request.tier == "reserved" or (kind.slot and request.tier == "on_demand"):
        bits |= BIT[Reason.SLOT] if kind.slot != request.slot else 0
    if not spec.count_min:
        return bits
    price = kind.price(request.tier)
    if price is None:
        return bits | BIT[Reason.TIER]
    cap = request.max_price_dc_per_gpu_hour
    return bits | (BIT[Reason.PRICE] if cap is not None and price > cap else 0)


def _against_profile(profile: Profile, request: Request) -> int:
    failed = (
        (Reason.OPERATOR, bool(request.operators) and profile.operator not in request.operators),
        (Reason.OPERATOR, profile.operator in request.operators_denied),
        (Reason.REGION, bool(request.region) and profile.region not in request.region),
        (Reason.REPUTATION, profile.reputation < request.min_reputation),
        (Reason.VERIFICATION, profile.verification < request.min_verification),
        (Reason.INTERCONNECT, bool(request.interconnect) and request.interconnect not in profile.interconnects),
        (Reason.PYTHON, bool(request.python and profile.pythons) and request.python not in profile.pythons),
        (Reason.NEEDS, not request.needs <= profile.capabilities),
    )
    bits = 0
    for reason, applies in failed:
        bits |= BIT[reason] if applies else 0
    return bits


def _rtts(fleet: Fleet, request: Request) -> npt.NDArray[np.float64]:
    known = request.rtt_ms
    return np.array([known.get(profile.cluster, np.inf) for profile in fleet.profiles], np.float64)


__all__ = ["BIT", "REASONS", "WHOLE_MILLI", "Screen", "count_first", "screen"]
