"""A data set as rows, in its order: JSON Lines, CSV, Parquet, or any iterable. Reads; changes nothing."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

KINDS = (".jsonl", ".csv", ".parquet")


def read_rows(inputs: str | Path | Iterable[Any]) -> Iterator[Any]:
    """The rows; those of a CSV or Parquet file are dicts by column.

    Raises:
        ValueError: a file of another kind, or a line that is not JSON (names it).
        FileNotFoundError: there is no such file.
    """
    if not isinstance(inputs, str | Path):
        yield from inputs
        return
    path = Path(inputs)
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: a data set is a file that ends in {', '.join(KINDS)}, or an iterable of rows")
    yield from {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}[path.suffix](path)


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from None


def _csv(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
