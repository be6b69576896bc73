"""A training's records: what is measured, how a line of the run's output carries one, and how they are kept. Pure.

A record has `step`, `epoch`, `loss` (the mean since the record before, over all ranks), `samples_per_s`, `tokens_per_s`
(of all ranks together), `seconds` (of all attempts so far) and `attempt`; at the caller's also `cost_usd` and
`utilisation` (0 to 1, of the GPU time that was measured).
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MARK = "fabric-metrics: "
"""Begins a line of output that is a record."""

_RANK = re.compile(r"^\[rank \d+\] ")


def to_line(record: Mapping[str, Any]) -> str:
    return MARK + json.dumps(record)


def of_line(line: str) -> dict[str, Any] | None:
    """The record of a line of output, which on several nodes names its rank first; None when it is an ordinary line."""
    line = _RANK.sub("", line, count=1)
    if not line.startswith(MARK):
        return None
    try:
        record = json.loads(line[len(MARK) :])
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def as_text(record: Mapping[str, Any]) -> str:
    """For a person to read."""
    parts = [f"step {record['step']}", f"epoch {record.get('epoch', 0)}"]
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.4f}")
    parts.append(f"{record.get('samples_per_s', 0):,.0f} samples/s")
    if record.get("tokens_per_s"):
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
    if record.get("cost_usd") is not None:
        parts.append(f"USD {record['cost_usd']:.5f}")
    if record.get("attempt", 1) > 1:
        parts.append(f"attempt {record['attempt']}")
    return " · ".join(parts)


def merge(kept: Iterable[Mapping[str, Any]], seen: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records that the ranks kept, with what only the caller knows about each; in the order of steps."""
    known = {(record["step"], record.get("attempt")): record for record in seen}
    return [{**known.get((record["step"], record.get("attempt")), {}), **record} for record in kept]


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
