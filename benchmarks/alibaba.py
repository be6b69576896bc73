"""Cluster traces in the format that Alibaba published in 2023: reading them, and the arrivals they stand for.

It knows the files, not the product.
"""

import csv
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
POD_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
TIME_COLUMNS = ("creation_time", "deletion_time")
WHOLE_MILLI = 1000


class TraceError(ValueError):
    """A file that is not of the format; names the file, the row and the column."""


@dataclass(frozen=True, slots=True)
class TraceNode:
    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


@dataclass(frozen=True, slots=True)
class Pod:
    """One request; `models` empty for any; times in seconds of the trace, None where the file has none."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    milli: int
    models: tuple[str, ...]
    created_s: int | None = None
    deleted_s: int | None = None

    @property
    def gpu_milli(self) -> int:
        return self.gpus * self.milli


def read_nodes(path: Path) -> list[TraceNode]:
    """Nodes in the order of the file.

    Raises:
        TraceError: a missing column, an odd row, or no rows at all.
    """
    return [
        TraceNode(
            cells.text("sn"),
            cells.number("cpu_milli"),
            cells.number("memory_mib"),
            cells.number("gpu"),
            cells.text("model"),
        )
        for cells in _rows(path, NODE_COLUMNS)
    ]


def read_pods(path: Path) -> list[Pod]:
    """Pods in the order of the file.

    Raises:
        TraceError: as `read_nodes`.
    """
    return [_pod(cells) for cells in _rows(path, POD_COLUMNS)]


def inflate(pods: list[Pod], capacity_milli: int, seed: int, percent: int = 130) -> list[Pod]:
    """All pods and pods drawn with replacement until they ask for so much of the capacity, shuffled.

    Raises:
        TraceError: no pod asks for a GPU, so no number of them would.
    """
    draw = random.Random(seed)
    arrivals, asked = list(pods), sum(pod.gpu_milli for pod in pods)
    if not asked:
        raise TraceError("no pod asks for a GPU")
    while asked * 100 < capacity_milli * percent:
        pod = draw.choice(pods)
        arrivals.append(pod)
        asked += pod.gpu_milli
    draw.shuffle(arrivals)
    return arrivals


@dataclass(frozen=True, slots=True)
class _Cells:
    path: Path
    row: int
    values: dict[str, str]

    def text(self, column: str) -> str:
        return self.values[column]

    def number(self, column: str) -> int:
        return self._parsed(column, int)

    def optional_number(self, column: str) -> int | None:
        return int(self._parsed(column, float)) if self.values.get(column) else None

    def _parsed(self, column: str, parse: Callable[[str], float]) -> int:
        text = self.values[column]
        try:
            value = parse(text)
        except ValueError:
            raise self.wrong(column, f"{text!r} is not a number") from None
        if value < 0:
            raise self.wrong(column, f"{text} is negative")
        return int(value)

    def wrong(self, column: str, problem: str) -> TraceError:
        return TraceError(f"{self.path.name}, row {self.row}, column {column!r}: {problem}")


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[_Cells]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise TraceError(f"{path.name}, row 1: no column {', '.join(map(repr, missing))}")
        row = 1
        for row, values in enumerate(reader, start=2):
            if None in values or None in values.values():
                width = len(reader.fieldnames or ())
                raise TraceError(f"{path.name}, row {row}: not {width} cells, as the header has")
            yield _Cells(path, row, values)
        if row == 1:
            raise TraceError(f"{path.name}: no rows below the header")


def _pod(cells: _Cells) -> Pod:
    gpus, milli = cells.number("num_gpu"), cells.number("gpu_milli")
    if gpus and not 1 <= milli <= WHOLE_MILLI:
        raise cells.wrong("gpu_milli", f"{milli} is not within 1 to {WHOLE_MILLI}")
    if gpus > 1 and milli != WHOLE_MILLI:
        raise cells.wrong("gpu_milli", f"{milli} with {gpus} GPUs; several GPUs are whole ones")
    return Pod(
        cells.number("cpu_milli"),
        cells.number("memory_mib"),
        gpus,
        milli if gpus else 0,
        tuple(sorted(name for name in cells.values.get("gpu_spec", "").split("|") if name)),
        cells.optional_number("creation_time"),
        cells.optional_number("deletion_time"),
    )
