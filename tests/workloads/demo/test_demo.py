"""`fabric demo --json`, whole: every number that it prints is checked against the others here too."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def shown():
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FABRIC_")}
    command = [sys.executable, "-P", "-m", "fabric.cli", "demo", "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_books_agree(shown):
    sums = shown["sums_dc"]
    assert shown["agree"]
    assert len(set(sums.values())) == 1
    assert sums["bills"] == sum(run["bill_dc"] for run in shown["runs"]) > 0
    assert sums["usage"] == sum(gpu["used_dc"] for gpu in shown["gpus"])
    assert sums["allocated"] == sum(owner["dc"] for owner in shown["owners"].values())
    assert sum(int(epoch["burned_dc"]) for epoch in shown["epochs"]) == sums["bills"]


def test_every_task_ran_once_on_a_gpu_of_the_type_that_was_asked_for(shown):
    names = {run["id"]: run["name"] for run in shown["runs"]}
    done = [task for task in shown["tasks"] if task["reason"] == "done"]
    assert len({(task["run"], task["task"]) for task in done}) == len(done) == sum(map(len, shown["results"].values()))
    for task in done:
        name = names[task["run"]]
        assert name == "first look" or name == f"sweep on {task['model']}"
        assert task["gpu_ms"] >= 0


def test_the_work_was_real(shown):
    trained = [one for found in shown["results"].values() for one in found]
    assert max(one["accuracy"] for one in trained) > 0.95


def test_simulated_gpus_are_called_simulated(shown):
    assert shown["simulated"] == all(gpu["simulated"] for gpu in shown["gpus"])


def test_the_audit_is_clean(shown):
    assert [check["name"] for check in shown["audit"]["checks"] if not check["ok"]] == []
