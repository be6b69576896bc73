"""Ranks that are not at the same, or hang, and checkpoints of another model end a training by an error that says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("torch")

ROOT = Path(__file__).parents[3]
DISAGREEMENTS = {
    "shape": "the ranks disagree about 'weight': (3, 2) on rank 1 of 2, (2, 2) on rank 0",
    "name": "the ranks disagree about what resume() names: ['plan'] on rank 1 of 2, ['schedule'] on rank 0",
    "steps": "the ranks disagree: rank 0 of 2 at `the end` (step 3), rank 1 of 2 at `the end` (step 4)",
    "save": "the ranks disagree: rank 0 of 2 at `save` (step 0), rank 1 of 2 at `report` (step 1)",
}


def lease(folder, collective_s, *trainings):
    """What became of these: (loop, args, kwargs)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.workloads.training.lease", str(collective_s), json.dumps(trainings)],
        cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == len(trainings), done.stderr
    return answers


def test_ranks_that_disagree_are_named_at_once_with_what_they_disagree_about(tmp_path):
    answers = lease(tmp_path, 60, *(("disagree", [about], {}) for about in DISAGREEMENTS))
    told = [answer["failed"]["message"] for answer in answers]
    told[2] = told[2].replace(
        "at `report` (step 4)", "at `the end` (step 4)"
    )  # where ranks agree more rarely than that
    assert told == list(DISAGREEMENTS.values())
    assert {answer["failed"]["type"] for answer in answers} == {"InvalidRequest"}


def test_a_rank_that_hangs_or_is_elsewhere_is_named_within_the_collective_timeout(tmp_path):
    first, second, elsewhere = lease(
        tmp_path, 2, ("one_hangs", [0], {}), ("one_hangs", [1], {}), ("one_goes_on", [], {})
    )
    assert first["lost"].startswith("rank 0 of 2 did not take part within 2 s: ")
    assert second["lost"].startswith("rank 1 of 2 did not take part within 2 s: ")
    assert "(rank 0 was at the end of its loop, step 2; rank 1 was at step 2)" in elsewhere["lost"]
    assert max(answer["seconds"] for answer in (first, second, elsewhere)) < 30, "the loops sleep for a minute"


def test_a_sharded_checkpoint_of_another_model_or_loop_is_refused_and_kept(tmp_path):
    cases = (4, {}), (5, {}), (4, {"schedule": 1}), (4, {})
    first, wider, renamed, again = lease(tmp_path, 60, *(("saves", [width], named) for width, named in cases))
    assert first["value"] is False
    assert "'weight' is (4, 2) there and (5, 2) here" in wider["failed"]["message"]
    assert "resume() named [] there and ['schedule'] here" in renamed["failed"]["message"]
    assert again["value"] is True
