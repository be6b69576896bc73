"""A run's output: of several nodes each line names its rank, and each goes to the stream it was written to."""

import pytest

import fabric
from fabric import cli
from fabric.client.gang import follow

LINES = [
    {"task": 0, "stream": 1, "at_ms": 1, "text": "loss 3"},
    {"task": 1, "stream": 2, "at_ms": 2, "text": "warning"},
]


@pytest.fixture
def run(small_fabric):
    made = fabric.submit(lambda: 7)
    made.wait(10)
    small_fabric.runs[made.id]["logs"] = LINES
    return made


def test_lines_of_ranks_are_told_apart(small_fabric, run, capsys):
    small_fabric.runs[run.id]["attempts"] = [{"task": 0}, {"task": 1}]
    assert list(run.logs(follow=True)) == ["[rank 0] loss 3", "[rank 1] warning"]
    assert follow(run) == 7
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("[rank 0] loss 3\n", "[rank 1] warning\n")
    assert cli.main(["logs", run.id]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("[rank 0] loss 3\n", "[rank 1] warning\n")


def test_lines_of_a_run_on_one_node_stay_as_they_are(small_fabric, run):
    small_fabric.runs[run.id]["attempts"] = [{"task": 0}, {"task": 0}]
    assert list(run.logs()) == ["loss 3", "warning"]


def test_lines_of_a_maps_tasks_stay_as_they_are(small_fabric, run):
    small_fabric.runs[run.id]["attempts"] = [{"task": 3}]
    small_fabric.runs[run.id]["request"]["kind"] = "map"
    assert list(run.logs()) == ["loss 3", "warning"]


def test_a_map_has_its_run(small_fabric):
    values = fabric.map(lambda x: x, [1, 2], gpu="H100")
    assert not small_fabric.runs
    assert next(values) == 1
    assert list(values) == [2]
    assert values.run.id in small_fabric.runs
