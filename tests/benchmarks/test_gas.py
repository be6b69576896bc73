"""Closing an epoch costs the same gas whatever the number of GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.chain
@pytest.mark.slow
def test_closing_costs_the_same_for_a_thousand_and_a_hundred_thousand_gpus():
    command = [sys.executable, "-m", "benchmarks.gas", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    figures = report["figures"]
    assert report["name"] == "gas"
    assert figures["post_finalise_1000"] == figures["post_finalise_100000"] < 400_000
