"""A placement or a refusal as the customer reads it: the `explain` that is stored with a run, and the errors."""

from typing import Any

from api.acceptance import EVICTING_LEAST_MS, MINIMUM_MS
from fabric.placement.answer import Alternative, Nearest, Offer, Placement, Reason, Refusal, Verdict
from fabric.wire.amounts import format_dc
from fabric.wire.errors import Error, NoCapacity, PriceExceeded


def explain(decided: Placement | Refusal) -> dict[str, Any]:
    """`considered`, `rejected`, `chosen`, `next_best` and a sentence."""
    if isinstance(decided, Refusal):
        return {
            "considered": decided.considered,
            "rejected": _counts(decided.reasons),
            "chosen": None,
            "next_best": _nearest(decided.nearest),
            "text": decided.text,
        }
    return {
        "considered": decided.explain.considered,
        "rejected": _counts(decided.explain.rejected),
        "chosen": _chosen(decided),
        "next_best": _alternative(decided.explain.next_best),
        "text": _sentence(decided),
    }


def refused(decided: Refusal, max_price_dc: int | None, offers: list[Offer]) -> Error:
    """The error of a request that is refused at once."""
    if decided.kind is Verdict.PRICE:
        shown = [
            {"operator": o.operator, "model": o.model, "price_dc_per_gpu_hour": str(o.price_dc_per_gpu_hour)}
            for o in offers[:5]
        ]
        return PriceExceeded(
            f"everything that fits costs more than {format_dc(max_price_dc or 0)} per GPU-hour; {decided.text}",
            max_price_dc=max_price_dc,
            offers=shown,
        )
    return NoCapacity(
        decided.text,
        considered=decided.considered,
        rejected=_counts(decided.reasons),
        next_best=_nearest(decided.nearest),
        did_you_mean=list(decided.did_you_mean),
    )


def nearest_of(decided: Placement | Refusal) -> list[str]:
    """The changes that would do, as sentences."""
    return [near.text for near in decided.nearest] if isinstance(decided, Refusal) else []


def _counts(reasons: tuple[tuple[Reason, int], ...]) -> dict[str, int]:
    return {reason.value: count for reason, count in reasons}


def _chosen(placement: Placement) -> dict[str, Any]:
    return {
        "nodes": [part.node for part in placement.assignments],
        "operator": placement.operator,
        "cluster": placement.cluster,
        "region": placement.region,
        "model": placement.model,
        "gpus": placement.gpus_per_node,
        "share_milli": placement.milli,
        "price_dc_per_gpu_hour": str(placement.price_dc_per_gpu_hour),
        "rtt_ms": _rtt(placement.rtt_ms),
        "because": placement.explain.chosen_because,
        "evicts": len(placement.evicts),
        "least_ms": EVICTING_LEAST_MS if placement.evicts else MINIMUM_MS,
    }


def _alternative(other: Alternative | None) -> dict[str, Any] | None:
    if other is None:
        return None
    return {
        "node": other.node,
        "operator": other.operator,
        "model": other.model,
        "price_dc_per_gpu_hour": str(other.price_dc_per_gpu_hour),
        "rtt_ms": _rtt(other.rtt_ms),
    }


def _rtt(rtt_ms: float | None) -> float | None:
    return None if rtt_ms is None else round(rtt_ms, 3)


def _nearest(near: tuple[Nearest, ...]) -> dict[str, Any] | None:
    if not near:
        return None
    return {"change": near[0].change, "text": near[0].text, "needed": near[0].needed, "count": near[0].count}


def _sentence(placement: Placement) -> str:
    count = (
        f"{placement.gpus_per_node} × {placement.model}" if placement.milli == 1000 else f"a share of {placement.model}"
    )
    price = format_dc(placement.price_dc_per_gpu_hour)
    away = "" if placement.rtt_ms is None else f", {placement.rtt_ms:.1f} ms away,"
    next_best = placement.explain.next_best
    beside = (
        "; nothing else fitted"
        if next_best is None
        else (
            f"; next best: {next_best.model} at {next_best.operator} for {format_dc(next_best.price_dc_per_gpu_hour)}"
        )
    )
    if placement.evicts:
        leases = f"{len(placement.evicts)} spot lease" + ("s" if len(placement.evicts) > 1 else "")
        least = f"at least {EVICTING_LEAST_MS // 60_000} minutes are billed"
        beside = f"; {leases} must leave first, after the notice they were promised; {least}{beside}"
    return (
        f"{count} at {placement.operator}{away} for {price} per GPU-hour, by {placement.explain.chosen_because}{beside}"
    )
