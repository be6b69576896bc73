"""How large a challenge is for a claimed GPU and how long it may take: `gpu_bands.json` as plans.

The file lies beside this module and is read once; nothing else is. Whoever runs a control plane may have measured bands
of their own, which come before those of the file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from fabric.wire.challenge import BLOCK_ROWS, MAX_EDGE, Plan

FLOOR = 0.4
"""An honest GPU reaches at least so much of the peak, with everything around the product."""
FILLED = 0.9
"""Of the claimed memory, so much is filled; the rest is for B, tiles and the driver."""
SIMULATED_SCALE = 32_768
"""A simulated GPU fills its claimed memory divided by this."""

_SLACK_MS = 750
"""Round trips, start of kernels, hashing."""
_PASSES = 24
"""Bytes moved per byte of memory while digests are computed, generously."""
_OPEN_LIMIT_MS = 20_000
_SIMULATED_SLACK_MS = 10_000


@dataclass(frozen=True, slots=True)
class Band:
    """Of one model; see the file. `int8_tops` of 0: no answer is too fast."""

    edge: int
    honest_tflops: float
    int8_tops: float
    bandwidth_gb_s: float
    source: str

    def __post_init__(self) -> None:
        if not (isinstance(self.edge, int) and 16 <= self.edge <= MAX_EDGE and self.edge % 16 == 0):
            raise ValueError(f"edge is {self.edge!r}; allowed are 16, 32 … {MAX_EDGE}")
        for name, least in (("honest_tflops", 1e-3), ("int8_tops", 0), ("bandwidth_gb_s", 1e-3)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e6:
                raise ValueError(f"{name} is {value!r}; it is a number from {least:g} up to a million")
        if self.int8_tops and self.int8_tops < self.honest_tflops:
            raise ValueError(f"int8_tops is {self.int8_tops}, less than honest_tflops, {self.honest_tflops}; or 0")
        if not isinstance(self.source, str):
            raise ValueError("source says in words where the numbers are from")


def read_bands(text: str) -> dict[str, Band]:
    """Bands by market name, of a JSON object with the members of `Band` for each.

    Raises:
        ValueError: says which model and which member, and what would be right.
    """
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError('bands are an object: {"H100": {"edge": 16384, …}}')
    wanted, bands = {one.name for one in fields(Band)}, {}
    for model, members in data.items():
        if not isinstance(members, dict) or set(members) != wanted:
            raise ValueError(f"the band of {model} needs exactly the members {', '.join(sorted(wanted))}")
        try:
            bands[model] = Band(**members)
        except ValueError as error:
            raise ValueError(f"the band of {model}: {error}") from None
    return bands


def band_of(model: str, *, simulated: bool = False, measured: Mapping[str, Band] = MappingProxyType({})) -> Band:
    """The band of a market name, that of unknown models for a name that has none; a measured one comes first."""
    if not simulated and model in measured:
        return measured[model]
    data = _file()
    return Band(**(data["simulated"] if simulated else data["models"].get(model, data["unknown"])))


def plan_for(
    model: str, memory_bytes: int, *, simulated: bool = False, measured: Mapping[str, Band] = MappingProxyType({})
) -> Plan:
    """The challenge of a GPU that is claimed to be of this model and to have this memory."""
    band = band_of(model, simulated=simulated, measured=measured)
    block = BLOCK_ROWS * band.edge
    room = memory_bytes // SIMULATED_SCALE if simulated else int(memory_bytes * FILLED) - 16 * band.edge**2
    blocks = max(1, room // block)
    operations, filled = 2 * blocks * block * band.edge, blocks * block
    slack = _SIMULATED_SLACK_MS if simulated else _SLACK_MS
    return Plan(
        edge=band.edge,
        blocks=blocks,
        fill_limit_ms=slack + int(operations / (FLOOR * band.honest_tflops * 1e9)),
        digest_limit_ms=slack + int(filled * _PASSES / (band.bandwidth_gb_s * 1e6)),
        open_limit_ms=_OPEN_LIMIT_MS,
        fill_least_ms=int(operations / (band.int8_tops * 1e9)) if band.int8_tops else 0,
    )


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return json.loads((files("fabric.wire") / "gpu_bands.json").read_text())
