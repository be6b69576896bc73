"""How large a challenge is for a claimed GPU and how long it may take: `gpu_bands.json` as plans.

The file lies beside this module and is read once; nothing else is.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fabric.wire.challenge import BLOCK_ROWS, Plan

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


def band_of(model: str, *, simulated: bool = False) -> Band:
    """The band of a market name, that of unknown models for a name that has none."""
    data = _file()
    return Band(**(data["simulated"] if simulated else data["models"].get(model, data["unknown"])))


def plan_for(model: str, memory_bytes: int, *, simulated: bool = False) -> Plan:
    """The challenge of a GPU that is claimed to be of this model and to have this memory."""
    band = band_of(model, simulated=simulated)
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
