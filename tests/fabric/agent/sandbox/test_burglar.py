"""Sixty named ways out of the sandbox, each tried by the same program with and without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOWN = Path(__file__).with_name("town.py")
ROOT = TOWN.parents[4]
SYSTEM_PYTHON = "/usr/bin/python3"
AS_USER = ["setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", SYSTEM_PYTHON]

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="the program bwrap is missing: install bubblewrap"),
]


def started_by(user):
    """The command that runs the town: as we are, or, when we are root, as an ordinary user of the system's Python."""
    if user == "as we are":
        return [sys.executable]
    if os.geteuid() != 0:
        pytest.skip("we are an ordinary user already")
    able = "import sys; assert sys.version_info >= (3, 11); open(sys.argv[1])"
    tried = subprocess.run([*AS_USER, "-c", able, str(TOWN)], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"an ordinary user has no Python 3.11 at {SYSTEM_PYTHON} or cannot read {TOWN}")
    return AS_USER


def burgle(isolation, user):
    town = subprocess.run(
        [*started_by(user), "-P", str(TOWN), isolation],
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert town.returncode == 0, town.stderr
    outcome = json.loads(town.stdout)
    return {name: got for name, (out, got) in outcome.items() if out}, list(outcome)


@pytest.mark.parametrize("user", ["as we are", "as an ordinary user"])
def test_a_burglar_gets_out_in_no_way_with_bubblewrap(user):
    ways_out, tried = burgle("bubblewrap", user)
    assert len(tried) >= 60
    assert ways_out == {}
    told = (ROOT / "docs" / "sandbox.md").read_text()
    assert [name for name in tried if f"| {name.replace('_', ' ')} |" not in told] == []


@pytest.mark.parametrize("user", ["as we are", "as an ordinary user"])
def test_the_same_burglar_gets_out_in_many_ways_without_a_sandbox(user):
    ways_out, _ = burgle("none", user)
    assert len(ways_out) >= 30
    assert "the agent's key" in ways_out["read_the_agents_key"]
