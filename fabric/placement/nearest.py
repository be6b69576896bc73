"""The nearest thing that would work when nothing does: for each wish, what changing it alone would open.

It reads the bits of the screens, so it says "$0.20 above your cap" only of places that fail for the price alone.
"""

import difflib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fabric.placement.answer import Nearest, Reason
from fabric.placement.fleet import Fleet
from fabric.placement.grammar import GpuSpec, name_matches
from fabric.placement.packing import Demand, fits
from fabric.placement.request import TIERS, Request
from fabric.placement.screen import BIT, Screen

_DC_PER_USD = 100_000
_MOST = 4
_ROWS_LOOKED_AT = 64

Rows = npt.NDArray[np.intp]


def nearest(fleet: Fleet, request: Request, screens: list[tuple[GpuSpec, Screen]], now_ms: int) -> tuple[Nearest, ...]:
    """At most four single changes that would do, those that serve now before waiting."""
    found: list[Nearest] = []
    for spec, one in screens:
        for reason in (reason for reason, _ in one.rejected if reason in _TELLERS):
            rows = _free_but_for(fleet, request, spec, one, reason)
            if rows.size >= request.nodes:
                found.append(_TELLERS[reason](fleet, request, one, rows))
        fewer = (
            _fewer(fleet, request, spec, one),
            _fewer_nodes(fleet, request, spec, one),
            _smaller(fleet, request, one),
        )
        wait = _wait(fleet, request, spec, one, now_ms)
        found += [near for near in (*fewer, wait) if near is not None]
    return tuple({near.text: near for near in found}.values())[:_MOST]


def similar_names(fleet: Fleet, request: Request) -> tuple[str, ...]:
    """Models of this fleet that look like a wanted name which nobody here has."""
    models = sorted({kind.model for kind in fleet.kinds if kind.model})
    close: list[str] = []
    for name in {name for spec in request.gpu.specs for name in spec.names}:
        if not any(name_matches(name, model) for model in models):
            words = {word.lower(): model for model in models for word in (model, *model.split())}
            close += [words[word] for word in difflib.get_close_matches(name.lower(), words, n=3, cutoff=0.5)]
    return tuple(dict.fromkeys(close))


def _free_but_for(fleet: Fleet, request: Request, spec: GpuSpec, one: Screen, reason: Reason) -> Rows:
    """Rows that fail for this reason only and have room now."""
    rows = one.only(fleet, reason)
    if not rows.size:
        return rows
    return rows[fits(fleet, _demand(request, spec.count_min, max(spec.milli, 1)), rows)]


def _demand(request: Request, count: int, milli: int) -> Demand:
    return Demand(count, milli, request.cpu_milli, request.memory_bytes, request.disk_bytes)


def _model(fleet: Fleet, rows: Rows) -> str:
    return fleet.kinds[fleet.kind[rows[0]]].model or "a node"


def _price(fleet: Fleet, request: Request, one: Screen, rows: Rows) -> Nearest:
    price = sorted(one.price[kind] for kind in fleet.kind[rows].tolist())[request.nodes - 1]
    over = price - (request.max_price_dc_per_gpu_hour or 0)
    cents = f"{over % _DC_PER_USD:05d}".rstrip("0").ljust(2, "0")
    text = f"{_model(fleet, rows)} at ${over // _DC_PER_USD}.{cents} above your cap per GPU-hour"
    return Nearest("max_price", text, price, int(rows.size))


def _rtt(fleet: Fleet, request: Request, one: Screen, rows: Rows) -> Nearest:
    rtt = min(one.rtt_ms[profile] for profile in fleet.profile[rows].tolist())
    if rtt == np.inf:
        return Nearest(
            "max_rtt_ms", f"{rows.size} × {_model(fleet, rows)} at an unknown distance", None, int(rows.size)
        )
    text = f"{rows.size} × {_model(fleet, rows)} at {_ms(rtt)}, above your {_ms(request.max_rtt_ms or 0)}"
    return Nearest("max_rtt_ms", text, rtt, int(rows.size))


def _ms(rtt_ms: float) -> str:
    return f"{rtt_ms:.0f} ms" if rtt_ms >= 10 else f"{rtt_ms:.2g} ms"


def _place(change: str, word: str, name_of: Callable[[Fleet, int], object]) -> Callable[..., Nearest]:
    def tell(fleet: Fleet, _request: Request, _screen: Screen, rows: Rows) -> Nearest:
        names = sorted({str(name_of(fleet, int(row))) for row in rows[:_ROWS_LOOKED_AT]})
        text = f"{rows.size} × {_model(fleet, rows)} {word} {', '.join(names[:3])}"
        return Nearest(change, text, names[0], int(rows.size))

    return tell


def _needs(fleet: Fleet, request: Request, _screen: Screen, rows: Rows) -> Nearest:
    """What the best of these places would have to be spared."""
    lacks = [
        sorted(request.needs - fleet.profiles[profile].capabilities) for profile in set(fleet.profile[rows].tolist())
    ]
    fewest = min(lacks, key=lambda one: (len(one), one))
    change = fewest[0].partition(":")[0]
    return Nearest(change, f"{rows.size} × {_model(fleet, rows)} without {', '.join(fewest)}", None, int(rows.size))


def _profile(attribute: str) -> Callable[[Fleet, int], object]:
    return lambda fleet, row: getattr(fleet.profiles[fleet.profile[row]], attribute)


def _listed(fleet: Fleet, row: int, attribute: str) -> str:
    return " or ".join(sorted(getattr(fleet.profiles[fleet.profile[row]], attribute)))


def _tiers(fleet: Fleet, row: int) -> list[str]:
    return sorted(tier for tier in TIERS if fleet.kinds[fleet.kind[row]].price(tier) is not None)


_TELLERS: dict[Reason, Callable[[Fleet, Request, Screen, Rows], Nearest]] = {
    Reason.PRICE: _price,
    Reason.RTT: _rtt,
    Reason.REGION: _place("region", "in", _profile("region")),
    Reason.OPERATOR: _place("operators", "of", _profile("operator")),
    Reason.REPUTATION: _place("min_reputation", "with reputation", _profile("reputation")),
    Reason.VERIFICATION: _place("min_verification", "verified to level", _profile("verification")),
    Reason.NEEDS: _needs,
    Reason.PYTHON: _place("python", "with Python", lambda fleet, row: _listed(fleet, row, "pythons")),
    Reason.INTERCONNECT: _place(
        "interconnect", "with", lambda fleet, row: _listed(fleet, row, "interconnects") or "none"
    ),
    Reason.TIER: _place("tier", "offered", lambda fleet, row: " and ".join(_tiers(fleet, row)) or "in no tier"),
    Reason.GPU: _place("gpu", "free at", _profile("operator")),
}


def _fewer(fleet: Fleet, request: Request, spec: GpuSpec, one: Screen) -> Nearest | None:
    """The largest smaller number of GPUs per node for which there is room now."""
    if spec.count_min < 2:
        return None
    rows = np.flatnonzero(np.isin(one.bits(fleet), (0, BIT[Reason.GPU])) & _accepted(fleet, spec))
    rows = rows[fits(fleet, _demand(request, 1, spec.milli), rows)]
    if rows.size < request.nodes:
        return None
    free = (fleet.free[:, rows] >= spec.milli).sum(axis=0)
    count = int(np.sort(free)[-request.nodes])
    if count >= spec.count_min:
        return None
    able = rows[free >= count]
    text = f"{count} instead of {spec.count_min} × {_model(fleet, able)} per node"
    return Nearest("gpu", text, count, int(able.size))


def _accepted(fleet: Fleet, spec: GpuSpec) -> npt.NDArray[np.bool_]:
    """Rows whose GPUs are of a wanted sort, however many they are."""
    kinds = [spec.accepts(kind.vendor, kind.model, kind.memory_bytes) for kind in fleet.kinds]
    return np.array(kinds, np.bool_)[fleet.kind[: fleet.rows]]


def _fewer_nodes(fleet: Fleet, request: Request, spec: GpuSpec, one: Screen) -> Nearest | None:
    """The most nodes of one cluster and kind on which there is room now, of a gang that wants more."""
    if request.nodes < 2:
        return None
    rows = one.open_rows()
    rows = rows[fits(fleet, _demand(request, spec.count_min, max(spec.milli, 1)), rows)]
    if not rows.size:
        return None
    nodes = int(np.bincount(fleet.group[rows]).max())
    if nodes >= request.nodes:
        return None
    return Nearest(
        "nodes", f"{nodes} instead of {request.nodes} nodes with {_model(fleet, rows)}", nodes, int(rows.size)
    )


def _smaller(fleet: Fleet, request: Request, one: Screen) -> Nearest | None:
    """What the largest nodes have of what is too much for all of them even when empty."""
    rows = one.only(fleet, Reason.SIZE)
    if not rows.size:
        return None
    cpu, memory, disk = fleet.total[:, rows].max(axis=1).tolist()
    sizes = (
        ("cpu", request.cpu_milli, cpu, cpu / 1000, "cores"),
        ("memory", request.memory_bytes, memory, memory / 2**30, "GiB of memory"),
        ("disk", request.disk_bytes, disk, disk / 2**30, "GiB of disk"),
    )
    short = [size for size in sizes if size[1] > size[2]] or list(sizes)
    text = ", ".join(f"{amount:.6g} {unit}" for *_, amount, unit in short)
    name, _, _, amount, _ = short[0]
    return Nearest(name, f"nodes with {_model(fleet, rows)} have at most {text}", amount, int(rows.size))


def _wait(fleet: Fleet, request: Request, spec: GpuSpec, one: Screen, now_ms: int) -> Nearest | None:
    """When the first node gets room, by the ends that leases have announced."""
    if not fleet.ending_leases:
        return None
    rows = one.open_rows()[:_ROWS_LOOKED_AT].tolist()
    demands = [_demand(request, spec.count_min, one.milli[fleet.kind[row]]) for row in rows]
    found = [_room_at(fleet, row, demand) for row, demand in zip(rows, demands, strict=True)]
    ends = [end for end in found if end is not None]
    if len(ends) < request.nodes:
        return None
    wait_ms = max(sorted(ends)[request.nodes - 1] - now_ms, 0)
    return Nearest("wait", f"free in about {-(-wait_ms // 60_000)} min", wait_ms, len(ends))


def _room_at(fleet: Fleet, row: int, demand: Demand) -> int | None:
    """When the demand fits into the row if every lease ends when it said; None if it then still does not."""
    node = fleet.name_at(row)
    free, room = fleet.free[:, row].tolist(), fleet.room[:, row].tolist()
    ending = sorted((held.until_ms, held.lease) for held in fleet.leases_on(node) if held.until_ms is not None)
    for until_ms, lease in ending:
        for assignment in fleet.leases[lease].assignments:
            if assignment.node != node:
                continue
            room = [room[0] + assignment.cpu_milli, room[1] + assignment.memory_bytes, room[2] + assignment.disk_bytes]
            for share in assignment.gpus:
                seat = fleet.seat(share.uuid)
                if seat is not None and seat[0] == row:
                    free[seat[1]] += share.milli
        wanted = (demand.cpu_milli, demand.memory_bytes, demand.disk_bytes)
        enough = all(have >= want for have, want in zip(room, wanted, strict=True))
        if enough and sum(milli >= demand.milli for milli in free) >= demand.count:
            return until_ms
    return None
