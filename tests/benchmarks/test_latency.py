"""`benchmarks.latency`: its figures on the excerpt, and matrices that are none."""

import json
from pathlib import Path

import pytest

from benchmarks.latency import DATA, main, measure
from benchmarks.rtt_matrix import MatrixError, read_matrix


def test_the_excerpt_reaches_the_figures_with_few_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["measured_per_place_max"] <= 32
    assert figures["median_rel_err"] <= 0.07 <= figures["p90_rel_err"]
    assert figures["within_5ms_pct"] >= 95
    assert 50 < figures["nearest_pct"] < figures["within_5ms_pct"]


def test_nobody_is_measured_with_more_than_asked() -> None:
    matrix = read_matrix(DATA / "planetlab_98.txt")
    names = [str(index) for index in range(len(matrix))]
    known = measure(matrix, names, 5, 1)
    assert {known.measured_count(name) for name in names} <= {4, 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n1\n", "row 2: 1 columns in a matrix of 2 rows"),
        ("0 1\nx 0\n", "row 2, column 1: 'x' is not a number"),
        ("0 -1\n1 0\n", "row 1, column 2: -1 is not a round trip"),
        ("0 inf\n1 0\n", "row 1, column 2"),
        ("", "fewer than two rows"),
    ],
)
def test_what_is_no_matrix_is_named_by_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rtt.txt"
    path.write_text(text)
    with pytest.raises(MatrixError, match=message):
        read_matrix(path)


def test_a_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rtt", str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
