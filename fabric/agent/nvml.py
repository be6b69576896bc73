"""The NVIDIA devices of this machine, through NVML: what they are, how they are, what they use. Decides nothing.

The only module that imports `pynvml` (distribution `nvidia-ml-py`).
"""

import time
from pathlib import Path
from typing import Any

import pynvml

from fabric.agent.devices import market_name
from fabric.wire.link import GpuCondition, GpuInfo, GpuProcess

SAMPLE_S = 0.1
"""Energy counters of the devices themselves are renewed about this often; asking more often costs and tells nothing."""

_MOST_PROCESSES = 64
_CONTROL = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")


class Nvml:
    """A session with the driver."""

    def __init__(self) -> None:
        """Raises OSError when there is no driver or no NVML."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from None
        self._handles: dict[str, Any] = {}
        self._energy: dict[str, tuple[float, int]] = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            self._handles[_text(pynvml.nvmlDeviceGetUUID(handle))] = handle

    def close(self) -> None:
        pynvml.nvmlShutdown()

    def inventory(self) -> list[GpuInfo]:
        """Every device. One that does not answer stays in the list as unhealthy, with the driver's words."""
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return [self._describe(uuid, handle, driver) for uuid, handle in self._handles.items()]

    def devices(self, uuids: tuple[str, ...]) -> tuple[Path, ...]:
        """The device nodes that a process with exactly these GPUs needs; only those that exist."""
        own = (f"/dev/nvidia{pynvml.nvmlDeviceGetMinorNumber(self._handles[uuid])}" for uuid in uuids)
        return tuple(path for path in map(Path, (*own, *_CONTROL)) if path.exists())

    def energy_mj(self, uuid: str) -> int:
        """Since the driver was loaded; 0 where the device does not count it. At most `SAMPLE_S` old."""
        now = time.monotonic()
        at, value = self._energy.get(uuid, (0.0, 0))
        if uuid not in self._energy or now - at >= SAMPLE_S:
            value = max(value, _or_zero(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._handles[uuid]))
            self._energy[uuid] = (now, value)
        return value

    def utilisation_pct(self, uuid: str) -> int:
        """Of the last moments, 0 to 100; 0 where the device does not tell."""
        rates = _or_zero(pynvml.nvmlDeviceGetUtilizationRates, self._handles[uuid])
        return rates if isinstance(rates, int) else int(rates.gpu)

    def joined_by_nvlink(self) -> bool:
        """Whether every device has an active NVLink."""
        return bool(self._handles) and all(_nvlinks(handle) for handle in self._handles.values())

    def conditions(self) -> list[GpuCondition]:
        """How every device is now; what one does not tell is None."""
        return [_condition(uuid, handle) for uuid, handle in self._handles.items()]

    def _describe(self, uuid: str, handle: Any, driver: str) -> GpuInfo:
        try:
            name = _text(pynvml.nvmlDeviceGetName(handle))
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            pcie = _text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
        except pynvml.NVMLError as error:
            return GpuInfo(
                uuid=uuid, vendor="nvidia", model="UNKNOWN", name="", memory_bytes=0, healthy=False, problem=str(error)
            )
        return GpuInfo(
            uuid=uuid,
            vendor="nvidia",
            model=market_name(name),
            name=name,
            memory_bytes=memory,
            driver=driver,
            pcie=pcie,
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _nvlinks(handle: Any) -> int:
    """How many are active."""

    def state(number: int) -> Any:
        return _or_zero(lambda one: pynvml.nvmlDeviceGetNvLinkState(one, number), handle)

    return sum(bool(state(number)) for number in range(pynvml.NVML_NVLINK_MAX_LINKS))


def _condition(uuid: str, handle: Any) -> GpuCondition:
    rates = _or_none(pynvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _or_none(pynvml.nvmlDeviceGetMemoryInfo, handle)
    processes = _or_none(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    return GpuCondition(
        uuid=uuid,
        temperature_c=_or_none(lambda one: pynvml.nvmlDeviceGetTemperature(one, pynvml.NVML_TEMPERATURE_GPU), handle),
        power_mw=_or_none(pynvml.nvmlDeviceGetPowerUsage, handle),
        power_limit_mw=_or_none(pynvml.nvmlDeviceGetPowerManagementLimit, handle),
        utilisation_pct=None if rates is None else int(rates.gpu),
        memory_used_bytes=None if memory is None else int(memory.used),
        pcie_generation=_or_none(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        pcie_width=_or_none(pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        nvlinks=_nvlinks(handle),
        processes=[GpuProcess(pid=int(one.pid), memory_bytes=one.usedGpuMemory) for one in processes[:_MOST_PROCESSES]],
    )


def _or_none(read: Any, handle: Any) -> Any:
    try:
        return read(handle)
    except pynvml.NVMLError:
        return None


def _or_zero(read: Any, handle: Any) -> Any:
    try:
        return read(handle)
    except pynvml.NVMLError:
        return 0
