"""What could be bought now."""

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from fabric.client.office import here
from fabric.client.options import RunOptions
from fabric.client.session import Session
from fabric.wire.amounts import dc_to_usd
from fabric.wire.ids import new_id


@dataclass(frozen=True, slots=True)
class Offer:
    """GPUs of one model at one operator, in one tier. `per_node`: the most that one node has.

    `rtt_ms` is from where the customer wants to be near, an estimate with its error on top; None where unknown.
    """

    operator: str
    operator_name: str
    region: str
    vendor: str
    model: str
    memory_bytes: int
    count_free: int
    count_total: int
    per_node: int
    tier: str
    price_dc_per_gpu_hour: int
    reputation: int
    verification: int
    simulated: bool
    rtt_ms: float | None = None

    @property
    def price(self) -> Decimal:
        """Exact USD per GPU-hour."""
        return dc_to_usd(self.price_dc_per_gpu_hour)


def find_offers(session: Session, options: RunOptions, *, tier: str, every: bool) -> list[Offer]:
    """Offers that fit, cheapest first; `every` asks for all models."""
    gpu = () if every else options.gpu
    if options.measures:
        session.call(session.office.measure(session.office.request(new_id("run"), "run", _wanted(options, gpu))))
    wishes = {
        "tier": tier,
        "nodes": options.nodes_min or options.nodes,
        "region": options.region,
        "near": options.near,
        "max_rtt_ms": options.max_rtt_ms,
        "max_price_dc": options.max_price_dc,
        "python": here()["python"],
        "caller": session.id if options.measures else "",
    }
    answer = session.call(session.plane.offers(gpu, gpu_any=options.gpu_any, **wishes))
    names = {f.name for f in fields(Offer)}
    known: list[dict[str, Any]] = [{k: v for k, v in offer.items() if k in names} for offer in answer]
    for offer in known:
        offer["price_dc_per_gpu_hour"] = int(offer["price_dc_per_gpu_hour"])
    found = [Offer(**offer) for offer in known]
    return sorted(found, key=lambda offer: (offer.price_dc_per_gpu_hour, offer.model, offer.operator))


def _wanted(options: RunOptions, gpu: tuple[str, ...]) -> dict[str, Any]:
    return {**options.request(), "gpu": list(gpu), "leases": 1, "tasks": 1}
