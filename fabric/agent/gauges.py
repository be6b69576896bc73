"""What a lease's GPUs counted since it was opened: energy, and the time they were utilised."""

from collections.abc import Sequence
from typing import Protocol


class Sensor(Protocol):
    """What the node's devices count."""

    def energy_mj(self, uuid: str) -> int:
        """Energy the device used since it was started; 0 where it does not count it. Cheap to call often."""
        ...

    def utilisation_pct(self, uuid: str) -> int: ...


class Gauges:
    """Per GPU in the lease's order. Energy counts from `open`; utilisation is sampled by `tick`."""

    def __init__(self, sensor: Sensor, gpus: Sequence[str]) -> None:
        self._sensor = sensor
        self._gpus = gpus
        self._energy_open: tuple[int, ...] = ()
        self._utilised_ns = [0] * len(gpus)
        self._ticked_ns = 0

    def open(self, now_ns: int) -> None:
        self._energy_open = tuple(self._sensor.energy_mj(uuid) for uuid in self._gpus)
        self._ticked_ns = now_ns

    def tick(self, now_ns: int) -> tuple[int, ...]:
        """Sample; returns the utilised milliseconds so far."""
        for at, uuid in enumerate(self._gpus):
            self._utilised_ns[at] += (now_ns - self._ticked_ns) * self._sensor.utilisation_pct(uuid) // 100
        self._ticked_ns = now_ns
        return tuple(ns // 1_000_000 for ns in self._utilised_ns)

    def energy_by_gpu(self) -> tuple[int, ...]:
        now = (self._sensor.energy_mj(uuid) for uuid in self._gpus)
        return tuple(max(0, mj - base) for mj, base in zip(now, self._energy_open, strict=True))

    def energy_mj(self) -> int:
        return sum(self.energy_by_gpu())
