"""Trace files: what a row means, and that an odd one is named by row and column."""

from pathlib import Path

import pytest

from benchmarks.alibaba import Pod, TraceError, TraceNode, inflate, read_nodes, read_pods

NODES = "sn,cpu_milli,memory_mib,gpu,model\n"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time,deletion_time\n"


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_rows_become_nodes_and_pods(tmp_path: Path) -> None:
    assert read_nodes(file(tmp_path, NODES + "n0,8000,1024,2,T4\n")) == [TraceNode("n0", 8000, 1024, 2, "T4")]
    pods = read_pods(file(tmp_path, PODS + "p,1000,64,1,500,G2|T4,10,20.0\nq,1,1,0,0,,,\n"))
    assert pods == [Pod(1000, 64, 1, 500, ("G2", "T4"), 10, 20), Pod(1, 1, 0, 0, ())]


def test_columns_that_the_method_does_not_need_may_be_missing(tmp_path: Path) -> None:
    text = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,1000,64,1,500\n"
    assert read_pods(file(tmp_path, text)) == [Pod(1000, 64, 1, 500, ())]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,cpu_milli,memory_mib,gpu_milli\np,1,1,1\n", "row 1: no column 'num_gpu'"),
        (PODS, "no rows"),
        (PODS + "p,1000,64,1\n", "row 2: not 8 cells"),
        (PODS + "p,1000,64,1,500,,1,2,3\n", "row 2: not 8 cells"),
        (PODS + "p,1000,64,1,500,,1,2\np,many,64,1,500,,1,2\n", "row 3, column 'cpu_milli': 'many' is not a number"),
        (PODS + "p,-1,64,1,500,,1,2\n", "row 2, column 'cpu_milli': -1 is negative"),
        (PODS + "p,1,64,1,1500,,1,2\n", "row 2, column 'gpu_milli': 1500"),
        (PODS + "p,1,64,2,500,,1,2\n", "row 2, column 'gpu_milli': 500 with 2 GPUs"),
        (PODS + "p,1,64,1,500,,soon,2\n", "row 2, column 'creation_time'"),
        ("", "no column"),
    ],
)
def test_an_odd_file_is_named_by_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read_pods(file(tmp_path, text))


def test_arrivals_ask_for_the_percentage_and_hold_every_pod() -> None:
    pods = [Pod(1, 1, 1, 600, ()), Pod(2, 1, 0, 0, ()), Pod(3, 1, 2, 1000, ())]
    arrivals = inflate(pods, 10_000, 42)
    asked = sum(pod.gpu_milli for pod in arrivals)
    assert 13_000 <= asked < 13_000 + 2_000
    assert all(arrivals.count(pod) >= 1 for pod in pods)
    assert arrivals == inflate(pods, 10_000, 42) != inflate(pods, 10_000, 43)


def test_pods_without_gpus_can_never_fill_a_cluster() -> None:
    with pytest.raises(TraceError, match="no pod asks for a GPU"):
        inflate([Pod(1, 1, 0, 0, ())], 1000, 1)
