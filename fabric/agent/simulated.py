"""GPUs that do not exist, for machines without any: the same inventory every time, marked as simulated everywhere."""

import hashlib
import re
from dataclasses import dataclass

from fabric.wire.link import GpuCondition, GpuInfo

_ITEM = re.compile(r"^\s*([A-Za-z0-9]+)\s*(?::\s*(\d{1,3}))?\s*$")
_GIB = 1 << 30

MEMORY_GIB = {
    "A10": 24, "A100": 80, "B200": 180, "H100": 80, "H200": 141, "L4": 24, "L40S": 48, "T4": 16, "V100": 32,
}  # fmt: skip
"""What the real ones have; a model that is not listed gets 24 GiB."""


class SimulationError(ValueError):
    """A description of simulated GPUs that cannot be read."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """How many of a model."""

    model: str
    count: int


def parse(description: str) -> tuple[Simulated, ...]:
    """`H100:2,L4:2` as values; empty for an empty string.

    Raises:
        SimulationError: names the item and says what is allowed.
    """
    found: list[Simulated] = []
    for item in filter(str.strip, description.split(",")):
        match = _ITEM.match(item)
        count = int(match[2] or 1) if match else 0
        if match is None or count < 1:
            raise SimulationError(f"simulated GPUs {item.strip()!r}: write MODEL:COUNT, for example H100:2,L4:2")
        found.append(Simulated(match[1].upper(), count))
    return tuple(found)


def inventory(description: str, node: str) -> list[GpuInfo]:
    """The GPUs of one node. Their UUIDs depend on the node's name, the model and their number alone."""
    return [
        GpuInfo(
            uuid=_uuid(node, kind.model, number),
            vendor="nvidia",
            model=kind.model,
            name=f"Simulated {kind.model}",
            memory_bytes=MEMORY_GIB.get(kind.model, 24) * _GIB,
            simulated=True,
        )
        for kind in parse(description)
        for number in range(kind.count)
    ]


class NoDevices:
    """The sensor of a node whose GPUs are simulated: they use nothing."""

    def energy_mj(self, uuid: str) -> int:  # noqa: ARG002 - the protocol's parameter
        return 0

    def utilisation_pct(self, uuid: str) -> int:  # noqa: ARG002
        return 0

    def joined_by_nvlink(self) -> bool:
        return False

    def conditions(self) -> list[GpuCondition]:
        return []


def _uuid(node: str, model: str, number: int) -> str:
    digest = hashlib.sha256(f"fabric-simulated-gpu\0{node}\0{model}\0{number}".encode()).hexdigest()
    return "SIM-" + "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
