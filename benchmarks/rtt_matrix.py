"""Matrices of round-trip times: reading them."""

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt


class MatrixError(ValueError):
    """A file that is no square matrix of round trips; names the row and the column."""


def read_matrix(path: Path) -> npt.NDArray[np.float64]:
    """Round trips in ms, one row per line, numbers separated by white space; `.gz` is unpacked.

    Raises:
        MatrixError: rows of different lengths, a cell that is no number, a negative one, or no rows.
    """
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if len(rows) < 2:
        raise MatrixError(f"{path.name}: fewer than two rows")
    return np.array([_row(path, number, cells, len(rows)) for number, cells in enumerate(rows, start=1)])


def _row(path: Path, number: int, cells: list[str], width: int) -> list[float]:
    if len(cells) != width:
        raise MatrixError(f"{path.name}, row {number}: {len(cells)} columns in a matrix of {width} rows")
    return [_cell(path, number, column, cell) for column, cell in enumerate(cells, start=1)]


def _cell(path: Path, row: int, column: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise MatrixError(f"{path.name}, row {row}, column {column}: {text!r} is not a number") from None
    if not 0 <= value < float("inf"):
        raise MatrixError(f"{path.name}, row {row}, column {column}: {text} is not a round trip")
    return value
