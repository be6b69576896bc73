"""Whether the tests notice what must never happen: each fault is planted alone in a copy of the tree.

`python -m tests.mutants [NAME ...]` runs the tests named for each fault and fails if any of them stays green. Not part
of the normal run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PARTS = ("fabric", "ledger", "api", "tests", "pyproject.toml")
_LIMIT_S = 120
_RED = 1


@dataclass(frozen=True, slots=True)
class Mutant:
    """`before`, which stands exactly once in `path`, becomes `after`; then one of `tests` must be red."""

    name: str
    path: str
    before: str
    after: str
    tests: str


MUTANTS = (
    Mutant("dedup off", "api/acceptance.py", "if accepted_hash is not None:", "if False:",
           "tests/api/test_acceptance.py"),
    Mutant("delta for cumulative", "ledger/booking.py", "charge_due_up(usage.cumulative_gpu_ms, priced)",
           "charge_due_up(usage.cumulative_gpu_ms - meter.cumulative_gpu_ms, priced)", "tests/ledger/test_booking.py"),
    Mutant("missing generation fence", "api/acceptance.py", "if receipt.generation != chain.generation:", "if False:",
           "tests/api/test_acceptance.py"),
    Mutant("floor for ceil", "ledger/pricing.py", "import mul_div_up", "import mul_div_down as mul_div_up",
           "tests/ledger/test_pricing.py"),
    Mutant("top-up without reserve", "ledger/pricing.py", "short if held_dc + add <= reserve else None",
           "short if held_dc + add <= 0 else None", "tests/ledger/test_pricing.py"),
    Mutant("late receipt into a closed epoch", "ledger/store.py", "if now_ms < self._finality.through_ms():",
           "if False:", "tests/ledger/test_store.py"),
    Mutant("usage counted before it is final", "ledger/finality.py",
           "start, delay = self.through_ms(), self._settings.final_after_ms", "start, delay = self.through_ms(), 0",
           "tests/ledger/test_finality.py"),
    Mutant("pay by current holder", "ledger/holding.py", "holder=holder_at(holders, end) or usage.holder",
           "holder=holder_at(holders, usage.at_ms) or usage.holder", "tests/ledger/test_holding.py"),
    Mutant("pay without the bound", "ledger/emission.py", "return min(value_wei, emission_wei + remintable_wei)",
           "return value_wei", "tests/ledger/test_emission.py"),
    Mutant("membership effective at once", "ledger/pools.py", "start = now_epoch + 1", "start = now_epoch",
           "tests/ledger/test_pools.py"),
    Mutant("unsealed tail accepted", "ledger/sealer.py", "select_from(ENTRY).where(_no_link())",
           "select_from(ENTRY).where(ENTRY.c.id < 0)",
           "tests/ledger/test_sealer.py tests/ledger/test_tamper.py"),
    Mutant("retry of half a transaction", "api/database.py",
           "            with _ending(session):\n                yield session\n                topics",
           "            with _ending(session):\n"
           "                try:\n                    yield session\n"
           "                finally:\n                    session.commit()\n"
           "                topics",
           "tests/api/test_database.py"),
)  # fmt: skip


def is_noticed(mutant: Mutant, tree: Path) -> bool:
    """Whether the tests are green, and red with the fault.

    Raises:
        ValueError: the place to plant it is not there exactly once.
    """
    file = tree / mutant.path
    sound = file.read_text()
    if sound.count(mutant.before) != 1:
        raise ValueError(f"{mutant.name}: {mutant.before!r} stands {sound.count(mutant.before)} times in {mutant.path}")
    if _test(mutant, tree) != 0:
        return False
    file.write_text(sound.replace(mutant.before, mutant.after))
    try:
        return _test(mutant, tree) == _RED
    finally:
        file.write_text(sound)


def _test(mutant: Mutant, tree: Path) -> int:
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests.split()]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, timeout=_LIMIT_S, check=False
    ).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these (default: all)")
    given = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if not given.names or mutant.name in given.names]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for part in _PARTS:
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(folder) / part)
        for mutant in chosen:
            noticed = is_noticed(mutant, Path(folder))
            missed += not noticed
            sys.stdout.write(f"{'red' if noticed else 'STILL GREEN':12} {mutant.name}\n")
            sys.stdout.flush()
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
