"""What placement answers: a placement, or a refusal with its reasons; and offers, which are what one could buy now.

Plain values. They need no third-party module, so the control plane's API and the SDK can show them as they are.
"""

from dataclasses import dataclass
from enum import StrEnum

from fabric.placement.inventory import Assignment
from fabric.placement.request import Tier


class Reason(StrEnum):
    """Why GPUs were not considered, in the words that a customer reads."""

    GPU = "another GPU type, memory or number per node"
    SIMULATED = "simulated"
    TIER = "tier not offered"
    SLOT = "belongs to another slot"
    OPERATOR = "operator not allowed"
    REGION = "another region"
    REPUTATION = "reputation too low"
    VERIFICATION = "not verified enough"
    INTERCONNECT = "no such interconnect"
    PYTHON = "does not run this Python"
    NEEDS = "does not allow the network, or have the installer or Python, that is asked for"
    OWN_WORK = "isolates nothing, so it takes its operator's own work only"
    EXCLUDED = "an earlier attempt failed there, or room is kept there for others"
    RTT = "too far away"
    SIZE = "too little CPU, memory or disk even when empty"
    PRICE = "above the price cap"
    TAKEN = "taken"


class Verdict(StrEnum):
    """What a refusal means for the customer."""

    NEVER_FITS = "never_fits"  # nothing in this fleet, however empty: refuse at once
    PRICE = "price"  # something would fit, but only above the cap: refuse at once
    TAKEN = "taken"  # something fits when it gets free: wait


@dataclass(frozen=True, slots=True)
class Alternative:
    """A place that was not chosen, and what it would have cost."""

    node: str
    operator: str
    cluster: str
    model: str
    price_dc_per_gpu_hour: int
    rtt_ms: float | None


@dataclass(frozen=True, slots=True)
class Explain:
    """How a decision came about.

    Attributes:
        considered: groups of like GPUs (one per node and kind) that were looked at.
        rejected: how many of them failed, by the first reason that applied to each.
        eligible: how many were left to choose from.
        chosen_because: what decided among them.
        next_best: what would have been chosen otherwise.
    """

    considered: int
    rejected: tuple[tuple[Reason, int], ...]
    eligible: int
    chosen_because: str
    next_best: Alternative | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes and at what price. Nothing is booked by it.

    Attributes:
        assignments: one for each node of the gang.
        gpus_per_node: whole GPUs on each node (1 for a share, 0 for none).
        milli: 1000, or the share of one GPU that is granted and charged; may exceed the share that was asked for.
        price_dc_per_gpu_hour: of a whole GPU.
        rtt_ms: as the request gave it for this cluster; None when unknown.
        ends_at_ms: when a sold slot ends this lease at the latest; None for no such end.
        evicts: spot leases that have to go first, the one that loses least first.
        alternative: index of the alternative of the GPU request that was taken.
    """

    assignments: tuple[Assignment, ...]
    operator: str
    cluster: str
    region: str
    vendor: str
    model: str
    memory_bytes: int
    gpus_per_node: int
    milli: int
    tier: Tier
    price_dc_per_gpu_hour: int
    rtt_ms: float | None
    simulated: bool
    ends_at_ms: int | None
    evicts: tuple[str, ...]
    alternative: int
    explain: Explain

    @property
    def gpu_milli(self) -> int:
        """Thousandths of GPUs in all."""
        return sum(share.milli for assignment in self.assignments for share in assignment.gpus)

    @property
    def price_dc_per_hour_up(self) -> int:
        """What an hour of the whole placement costs, rounded up to a DC."""
        return -(-self.price_dc_per_gpu_hour * self.gpu_milli // 1000)


@dataclass(frozen=True, slots=True)
class Nearest:
    """One change to the request that would get it placed.

    Attributes:
        change: the field of the request, or "wait".
        text: as a sentence for people.
        needed: the value that would do (a price in DC, a round trip in ms, a number of GPUs, ms to wait, a name).
        count: how many places would then serve.
    """

    change: str
    text: str
    needed: int | float | str | None
    count: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not placed and what would work. `kind` tells waiting from hopeless."""

    kind: Verdict
    considered: int
    reasons: tuple[tuple[Reason, int], ...]
    nearest: tuple[Nearest, ...]
    did_you_mean: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One paragraph for people."""
        counted = ", ".join(f"{count} × {reason.value}" for reason, count in self.reasons)
        head = f"nothing fits now ({self.considered} considered: {counted})" if counted else "the fleet is empty"
        names = f"; did you mean {' or '.join(self.did_you_mean)}?" if self.did_you_mean else ""
        near = "; nearest: " + "; ".join(near.text for near in self.nearest) if self.nearest else ""
        return head + names + near


@dataclass(frozen=True, slots=True)
class Offer:
    """Something one could buy now: so many leases of this request, of this kind, at this price.

    Attributes:
        available: how many leases like the request fit there now, one after the other.
        gpus_per_node, milli, price_dc_per_gpu_hour, rtt_ms, ends_at_ms: as in `Placement`.
    """

    operator: str
    cluster: str
    region: str
    vendor: str
    model: str
    memory_bytes: int
    nodes: int
    gpus_per_node: int
    milli: int
    tier: Tier
    price_dc_per_gpu_hour: int
    rtt_ms: float | None
    ends_at_ms: int | None
    simulated: bool
    reputation: int
    verification: int
    available: int
