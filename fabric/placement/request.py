"""What a customer asks placement for, as one value, and the checks that need no fleet.

It imports no third-party module: the SDK builds requests too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fabric.placement.grammar import ANY_GPU, GpuRequest

Tier = Literal["spot", "on_demand", "reserved"]
Objective = Literal["cost", "latency"]
TIERS: tuple[Tier, ...] = ("spot", "on_demand", "reserved")
OBJECTIVES: tuple[Objective, ...] = ("cost", "latency")


class RequestError(ValueError):
    """A request that contradicts itself; says the field, what was given and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One lease's worth of wishes. Everything left out allows everything.

    Attributes:
        gpu: on each node.
        nodes: a gang of so many nodes of one cluster, all or nothing.
        cpu_milli: thousandths of a core, on each node; so are `memory_bytes` and `disk_bytes`.
        max_price_dc_per_gpu_hour: the most that a whole GPU may cost for an hour; None for any price.
        region: names of regions, any of them.
        rtt_ms: round trip in ms from where the customer wants to be near, per cluster, as estimated or measured by
            the caller (`coordinates`); a cluster that is not in it has an unknown round trip.
        max_rtt_ms: refuse clusters beyond it, and those of unknown round trip.
        operators: only these; empty for all.
        operators_denied: none of these.
        min_reputation: 0 to 1000.
        min_verification: 0 (nothing verified) upwards, as the control plane grades nodes.
        interconnect: what the nodes must be joined by, such as "nvlink" or "infiniband"; "" for anything.
        python: the caller's minor, "3.11"; "" when no function travels.
        needs: further capabilities that a node must have, such as "network:open".
        account: whose work it is; None for a look at what anybody's could have.
        exclude_nodes: where an attempt of this run has failed.
        apart_from: nodes where replicas of the same service run; a policy that spreads avoids them and their clusters.
        slot: the time slot whose GPUs to use; exactly for the tier `reserved`.
        allow_simulated: whether GPUs that exist only for tests may serve.
    """

    gpu: GpuRequest = ANY_GPU
    nodes: int = 1
    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    tier: Tier = "on_demand"
    max_price_dc_per_gpu_hour: int | None = None
    region: frozenset[str] = frozenset()
    rtt_ms: Mapping[str, float] = field(default_factory=dict)
    max_rtt_ms: float | None = None
    operators: frozenset[str] = frozenset()
    operators_denied: frozenset[str] = frozenset()
    min_reputation: int = 0
    min_verification: int = 0
    interconnect: str = ""
    objective: Objective = "cost"
    python: str = ""
    needs: frozenset[str] = frozenset()
    account: str | None = None
    exclude_nodes: frozenset[str] = frozenset()
    apart_from: frozenset[str] = frozenset()
    slot: str = ""
    allow_simulated: bool = True

    def __post_init__(self) -> None:
        """Refuse what no fleet could ever satisfy.

        Raises:
            RequestError: a count below 1, a negative amount, or constraints that contradict each other.
        """
        self._check_amounts()
        if self.tier not in TIERS:
            raise RequestError(f"tier is {self.tier!r}; allowed: {', '.join(TIERS)}")
        if self.objective not in OBJECTIVES:
            raise RequestError(f"objective is {self.objective!r}; allowed: {', '.join(OBJECTIVES)}")
        both = sorted(self.operators & self.operators_denied)
        if both:
            raise RequestError(f"operators both allowed and denied: {', '.join(both)}; name each once")
        if (self.tier == "reserved") != bool(self.slot):
            raise RequestError(f"tier {self.tier!r} with slot {self.slot!r}; a slot goes with tier 'reserved' only")
        if not self.gpu.specs:
            raise RequestError("gpu has no alternatives; give at least one")

    def _check_amounts(self) -> None:
        if self.nodes < 1:
            raise RequestError(f"nodes is {self.nodes}; at least 1")
        amounts = {
            "cpu": self.cpu_milli,
            "memory": self.memory_bytes,
            "disk": self.disk_bytes,
            "max_price": self.max_price_dc_per_gpu_hour or 0,
            "max_rtt_ms": self.max_rtt_ms or 0,
            "min_reputation": self.min_reputation,
            "min_verification": self.min_verification,
        }
        for name, amount in amounts.items():
            if amount < 0:
                raise RequestError(f"{name} is {amount}; at least 0")
