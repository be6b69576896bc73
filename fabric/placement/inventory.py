"""What the fleet is told, as values: nodes and their GPUs, leases and what they hold.

No third-party module is needed for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fabric.placement.grammar import WHOLE_MILLI
from fabric.placement.request import Tier


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One physical device as its node offers it.

    Attributes:
        uuid: unique in the fleet.
        prices_dc_per_gpu_hour: per tier, for a whole GPU; a tier that is missing is not offered.
        shares_milli: the sizes of shares that the device enforces (MIG), each 1 to 999.
        share_step_milli: or any multiple of this (MPS); 0 when only whole GPUs or `shares_milli` are offered.
        simulated: exists for tests only.
        healthy: an unhealthy GPU is not offered.
        slot: the time slot that owns the GPU now; "" for none.
        ends_at_ms: when the next sold slot on it begins (ms since the Unix epoch); None when none is sold.
        used_gpu_ms: its paid time so far in this epoch; of equal GPUs the least used is taken first.
    """

    uuid: str
    model: str
    memory_bytes: int
    prices_dc_per_gpu_hour: Mapping[Tier, int]
    vendor: str = "nvidia"
    shares_milli: tuple[int, ...] = ()
    share_step_milli: int = 0
    simulated: bool = False
    healthy: bool = True
    slot: str = ""
    ends_at_ms: int | None = None
    used_gpu_ms: int = 0


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of an operator's cluster with everything it offers in all, leased or not.

    Attributes:
        reputation: 0 to 1000.
        verification: 0 upwards, as the control plane grades nodes.
        interconnects: what joins it to the other nodes of its cluster ("nvlink", "infiniband", …).
        pythons: minors that it can run ("3.11"); empty for any.
        capabilities: what a request may need besides ("network:open", …).
        accounts: the only accounts whose work it takes; empty for anybody's.
    """

    name: str
    operator: str
    cluster: str
    gpus: tuple[Gpu, ...]
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int = 2**62
    region: str = ""
    reputation: int = 0
    verification: int = 0
    interconnects: frozenset[str] = frozenset()
    pythons: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()
    accounts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class GpuShare:
    """`milli` thousandths of one GPU; 1000 is all of it."""

    uuid: str
    milli: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one lease gets on one node."""

    node: str
    gpus: tuple[GpuShare, ...]
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as the fleet sees it.

    Attributes:
        safe_ms: the work up to this time is stored (start of the lease or last checkpoint, ms since the Unix epoch):
            spot leases that would lose least are evicted first.
        until_ms: when it is expected to end, None when nobody knows; only for telling customers when GPUs get free.
        gang: of leases that lose their work together when one of them goes; "" for a lease that is alone.
    """

    lease: str
    tier: Tier
    assignments: tuple[Assignment, ...]
    safe_ms: int = 0
    until_ms: int | None = None
    gang: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """What a request may name of a GPU."""

    vendor: str
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Kind:
    """What all GPUs of a row have in common; `none()` stands for a node without GPUs."""

    vendor: str
    model: str
    memory_bytes: int
    prices: tuple[tuple[Tier, int], ...]
    shares_milli: tuple[int, ...]
    share_step_milli: int
    simulated: bool
    slot: str
    ends_at_ms: int | None

    @staticmethod
    def of(gpu: Gpu) -> "Kind":
        return Kind(
            gpu.vendor,
            gpu.model,
            gpu.memory_bytes,
            tuple(sorted(gpu.prices_dc_per_gpu_hour.items())),
            tuple(sorted(gpu.shares_milli)),
            gpu.share_step_milli,
            gpu.simulated,
            gpu.slot,
            gpu.ends_at_ms,
        )

    @staticmethod
    def none() -> "Kind":
        return Kind("", "", 0, (), (), 0, simulated=False, slot="", ends_at_ms=None)

    @property
    def chip(self) -> Model:
        return Model(self.vendor, self.model, self.memory_bytes)

    def price(self, tier: Tier) -> int | None:
        """DC per GPU-hour of a whole GPU; None when the tier is not offered."""
        return dict(self.prices).get(tier)

    def granted_milli(self, wanted_milli: int) -> int:
        """The smallest enforceable share that holds the wanted one; 0 when there is none."""
        if wanted_milli == WHOLE_MILLI:
            return WHOLE_MILLI
        sizes = [size for size in self.shares_milli if size >= wanted_milli]
        if self.share_step_milli:
            sizes.append(-(-wanted_milli // self.share_step_milli) * self.share_step_milli)
        return min(sizes, default=0) if min(sizes, default=0) <= WHOLE_MILLI else 0


@dataclass(frozen=True)
class Profile:
    """What all rows of a node have in common with those of many other nodes."""

    operator: str
    cluster: str
    region: str
    reputation: int
    verification: int
    interconnects: frozenset[str]
    pythons: frozenset[str]
    capabilities: frozenset[str]
    accounts: frozenset[str]

    @staticmethod
    def of(node: Node) -> "Profile":
        return Profile(
            node.operator,
            node.cluster,
            node.region,
            node.reputation,
            node.verification,
            node.interconnects,
            node.pythons,
            node.capabilities,
            node.accounts,
        )


@dataclass(frozen=True, slots=True)
class Sort:
    """What rows have in common that differ at most in what is free: numbers of kind and profile, GPUs, and the node."""

    kind: int
    profile: int
    gpus: int
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
