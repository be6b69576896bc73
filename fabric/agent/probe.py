"""What a node offers: its GPUs, real or simulated, and the machine around them."""

import os
import shutil
from pathlib import Path
from typing import Protocol

import cloudpickle
import psutil
import structlog

from fabric.agent import simulated
from fabric.agent.child import python_minor
from fabric.agent.nvml import Nvml
from fabric.wire.link import GpuCondition, GpuInfo, NodeInfo

_log = structlog.get_logger(__name__)


class Devices(Protocol):
    """The GPUs of a machine and what they count."""

    def inventory(self) -> list[GpuInfo]: ...
    def devices(self, uuids: tuple[str, ...]) -> tuple[Path, ...]: ...
    def energy_mj(self, uuid: str) -> int: ...
    def utilisation_pct(self, uuid: str) -> int: ...
    def joined_by_nvlink(self) -> bool: ...
    def conditions(self) -> list[GpuCondition]: ...


class SimulatedDevices(simulated.NoDevices):
    """Simulated GPUs as a probe."""

    def __init__(self, description: str, node: str) -> None:
        self._gpus = simulated.inventory(description, node)

    def inventory(self) -> list[GpuInfo]:
        return self._gpus

    def devices(self, uuids: tuple[str, ...]) -> tuple[Path, ...]:  # noqa: ARG002 - the protocol's parameter
        return ()


def find_devices(description: str, node: str) -> Devices:
    """The real GPUs where there are any; else the simulated ones of `description`, which may be none."""
    try:
        real = Nvml()
    except OSError as error:
        if not description:
            _log.warning("no driver answers here, so this node offers no GPU", node=node, error=str(error))
        return SimulatedDevices(description, node)
    if real.inventory():
        return real
    real.close()
    return SimulatedDevices(description, node)


def describe(node: str, address: str, region: str, devices: Devices, disk: Path) -> NodeInfo:
    """The node as the control plane sees it. `disk` lies on the file system whose size counts."""
    return NodeInfo(
        node=node,
        address=address,
        cpu_milli=len(os.sched_getaffinity(0)) * 1000,
        memory_bytes=psutil.virtual_memory().total,
        disk_bytes=shutil.disk_usage(disk).total,
        python=python_minor(),
        cloudpickle=cloudpickle.__version__,
        region=region,
        interconnects=_interconnects(devices),
        gpus=devices.inventory(),
    )


def _interconnects(devices: Devices) -> list[str]:
    """What joins the GPUs, or this machine to its neighbours, as far as the machine itself can see."""
    found = ["nvlink"] if devices.joined_by_nvlink() else []
    fabric = Path("/sys/class/infiniband")
    return [*found, "infiniband"] if fabric.is_dir() and any(fabric.iterdir()) else found
