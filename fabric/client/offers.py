"""What could be bought now."""

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from fabric.client.options import RunOptions
from fabric.client.session import Session
from fabric.wire.amounts import dc_to_usd


@dataclass(frozen=True, slots=True)
class Offer:
    """GPUs of one model at one operator, in one tier. `per_node`: the most that one node has."""

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

    @property
    def price(self) -> Decimal:
        """Exact USD per GPU-hour."""
        return dc_to_usd(self.price_dc_per_gpu_hour)


def find_offers(session: Session, options: RunOptions, *, tier: str, every: bool) -> list[Offer]:
    """Offers that fit, cheapest first; `every` asks for all models."""
    gpu = () if every else options.gpu
    answer = session.call(session.plane.offers(gpu, gpu_any=options.gpu_any, tier=tier))
    names = {f.name for f in fields(Offer)}
    known: list[dict[str, Any]] = [{k: v for k, v in offer.items() if k in names} for offer in answer]
    for offer in known:
        offer["price_dc_per_gpu_hour"] = int(offer["price_dc_per_gpu_hour"])
    found = [Offer(**offer) for offer in known]
    return sorted(found, key=lambda offer: (offer.price_dc_per_gpu_hour, offer.model, offer.operator))
