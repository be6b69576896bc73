"""Traces of language-model requests in the format of Azure's public data set: reading them."""

import csv
import gzip
import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class LlmTraceError(ValueError):
    """A file that is not of the format; names the row and the column."""


@dataclass(frozen=True, slots=True)
class LlmRequest:
    """One request; `at_ms` from the first one of the trace."""

    at_ms: float
    prompt_tokens: int
    generated_tokens: int


def read_llm_trace(path: Path) -> list[LlmRequest]:
    """Requests by time; `.gz` is unpacked.

    Raises:
        LlmTraceError: a missing column, an odd cell, or no rows.
    """
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise LlmTraceError(f"{path.name}, row 1: no column {', '.join(map(repr, missing))}")
    rows = [_row(path, number, cells) for number, cells in enumerate(reader, start=2)]
    if not rows:
        raise LlmTraceError(f"{path.name}: no rows below the header")
    start = min(at for at, _, _ in rows)
    requests = [LlmRequest((at - start).total_seconds() * 1000, prompt, made) for at, prompt, made in rows]
    return sorted(requests, key=lambda one: one.at_ms)


def _row(path: Path, number: int, cells: dict[str, str | None]) -> tuple[datetime, int, int]:
    stamp = cells["TIMESTAMP"] or ""
    try:
        at = datetime.fromisoformat(stamp[:26])
    except ValueError:
        raise LlmTraceError(f"{path.name}, row {number}, column 'TIMESTAMP': {stamp!r} is not a time") from None
    return at, _count(path, number, "ContextTokens", cells), _count(path, number, "GeneratedTokens", cells)


def _count(path: Path, number: int, column: str, cells: dict[str, str | None]) -> int:
    text = cells[column] or ""
    if not text.isdigit():
        raise LlmTraceError(f"{path.name}, row {number}, column {column!r}: {text!r} is not a number of tokens")
    return int(text)
