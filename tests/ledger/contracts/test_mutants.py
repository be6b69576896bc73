"""The tests are worth something: each deliberate break of a contract turns them red."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ledger.contracts

RUNNER = Path(__file__).parent / "mutants.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_named_mutant_is_killed():
    if shutil.which("node") is None or not (Path(ledger.contracts.__file__).parent / "node_modules" / "solc").is_dir():
        pytest.skip("node and the pinned compiler (npm ci) are needed to compile mutants")
    done = subprocess.run([sys.executable, str(RUNNER)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed") >= 10
