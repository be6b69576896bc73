"""In which order the good properties of a place count. A policy changes what is preferred, never what is allowed."""

from dataclasses import dataclass
from typing import Literal

from fabric.placement.request import Objective

Property = Literal["price", "rtt", "spread"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Compare by the properties of `order` first to last, then by how well the request packs.

    Attributes:
        order: "price" (lower), "rtt" (lower, in bands), "spread" (away from the replicas named in the request; "price"
            comes right after it).
        rtt_band_ms: round trips in the same band are equally good; about the error of an estimate.
        packs: whether the last word is packing; otherwise the first place found is taken.
    """

    name: str
    order: tuple[Property, ...]
    rtt_band_ms: float = 5.0
    packs: bool = True

    @property
    def spreads(self) -> bool:
        """Whether replicas keep away from each other; that counts for more than the price, which comes right after."""
        return "spread" in self.order

    @property
    def because(self) -> str:
        """What decides, for people."""
        return ", then ".join((*self.order, "packing") if self.packs else self.order)


TRAINING = Policy("training", ("price",))
INFERENCE = Policy("inference", ("rtt", "spread", "price"))
BATCH = Policy("batch", ("price",), packs=False)


def policy_for(objective: Objective) -> Policy:
    """The product's default for each objective."""
    return INFERENCE if objective == "latency" else TRAINING
