"""Whether the tests notice what must never happen: each fault is planted alone in a copy of the tree.

`python -m tests.mutants [NAME ...]` runs the tests named for each fault and fails if any of them stays green. Not part
of the normal run.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PARTS = ("fabric", "ledger", "api", "benchmarks", "tests", "pyproject.toml")
_LIMIT_S = 600
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
    Mutant("floor for ceil", "ledger/pricing.py", "return mul_div_up(cumulative", "return mul_div_down(cumulative",
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
           "tests/ledger/test_sealer.py tests/ledger/test_tamper.py -k tail"),
    Mutant("retry of half a transaction", "api/database.py",
           "            with _ending(session):\n                yield session\n                topics",
           "            with _ending(session):\n"
           "                try:\n                    yield session\n"
           "                finally:\n                    session.commit()\n"
           "                topics",
           "tests/api/test_database.py"),
    Mutant("billed beyond the window", "api/acceptance.py", "return max(min(claim_ms, window), billed_ms, floor)",
           "return max(claim_ms, billed_ms, floor)", "tests/api/test_acceptance.py"),
    Mutant("billed on after the release", "api/acceptance.py", "end = min(end, release_ms + GRACE_AFTER_RELEASE_MS)",
           "pass", "tests/api/test_acceptance.py"),
    Mutant("runs' parts beyond the lease", "fabric/wire/receipts.py",
           "!= others_ms + sum(line.gpu_ms for line in by_run) or others_ms < 0",
           "< sum(line.gpu_ms for line in by_run)", "tests/fabric/wire/test_receipts.py"),
    Mutant("a part that is not named again is lost", "api/receipt_batch.py",
           "lease.runs.update((line.run, line) for line in receipt.runs)",
           "lease.runs = {line.run: line for line in receipt.runs}", "tests/api/test_broker.py -k of_a_batch"),
    Mutant("another customer's run on the bill", "api/receipt_batch.py",
           "if self._customers.get(line.run) == lease.customer:", "if line.run in self._customers:",
           "tests/api/test_metering.py -k another_customers"),
    Mutant("an agent's word bills the least", "api/receipt_batch.py",
           "return least_ms(lease.least_ms, receipt.kind, decided) if decided else 0",
           "return least_ms(lease.least_ms, receipt.kind, decided or receipt.reason)",
           "tests/api/test_evictions.py -k bills_the_least"),
    Mutant("an eviction costs nothing", "api/acceptance.py",
           "return least if kind is ReceiptKind.CLOSE and reason not in _AGENTS_WORDS else 0", "return 0",
           "tests/api/test_evictions.py -k ten_minutes_at_least"),
    Mutant("an eviction without its money", "api/evictions.py",
           "if not _set_aside(plane, session, run, placement):", "if False:",
           "tests/api/test_evictions.py -k 'pay or held or money'"),
    Mutant("money kept for an eviction that is over", "api/evictions.py", "ledger.release_hold(name)", "pass",
           "tests/api/test_evictions.py -k money_back"),
    Mutant("evicting again and again for nothing", "api/evictions.py",
           "return session.scalar(left.limit(1)) is not None", "return False",
           "tests/api/test_evictions.py -k evicts_nobody"),
    Mutant("kept room sold to others", "api/commitments.py",
           "(_still_free(fleet, part),), 0))", "(), 0))", "tests/api/test_evictions.py -k 'room or second_run'"),
    Mutant("kept room offered", "api/broker.py", "elif clear:", "elif False:",
           "tests/api/test_placing.py -k no_room"),
    Mutant("a stand-in after any time", "ledger/chain/standing_in.py",
           "is_fresh = bool(ended) and entered_ms - max(ended) <= WITHIN_MS", "is_fresh = bool(ended)",
           "tests/ledger/chain/test_standing_in.py"),
    Mutant("a stand-in's usage stays its operator's", "ledger/chain/standing_in.py",
           'ledger.reassign(gpu, holders, f"stand-in/{gpu}/{now_ms}")', "pass",
           "tests/ledger/chain/test_standing_in.py"),
    Mutant("a sale does not reach the stand-in", "ledger/chain/crediting.py",
           "holders_of(session, [event.gpu_id, *stood], event.block_number)",
           "holders_of(session, [event.gpu_id], event.block_number)", "tests/ledger/chain/test_standing_in.py"),
    Mutant("a key's body not compared", "api/idempotency.py",
           "if row is not None and row.body_sha256 != digest:", "if False:", "tests/api/test_idempotency.py"),
    Mutant("a holder's view for everybody", "api/deps.py", 'if of != "holder":', "if of:",
           "tests/api/test_investors.py -k holders_view"),
    Mutant("a part of a slot that pays less than it counts", "api/slots.py",
           "price_dc(first, first.counts_from_ms)", "price_dc(first, plane.now_ms())",
           "tests/api/test_slots.py -k split_just"),
    Mutant("a slot charged while its GPU was away", "api/slots.py",
           "used_ms = uptime.up_ms(row.gpu_id, row.counts_from_ms, through)",
           "used_ms = through - row.counts_from_ms", "tests/api/test_receipt_life.py"),
)  # fmt: skip


def is_noticed(mutant: Mutant, tree: Path) -> bool:
    """Whether the tests, green without it, are red with the fault.

    Raises:
        ValueError: the place to plant it is not there exactly once, or the tests are not green without it.
    """
    file = tree / mutant.path
    sound = file.read_text()
    if sound.count(mutant.before) != 1:
        raise ValueError(f"{mutant.name}: {mutant.before!r} stands {sound.count(mutant.before)} times in {mutant.path}")
    if _test(mutant, tree) != 0:
        raise ValueError(f"{mutant.name}: {mutant.tests} is not green without it")
    file.write_text(sound.replace(mutant.before, mutant.after))
    try:
        return _test(mutant, tree) == _RED
    finally:
        file.write_text(sound)


def _test(mutant: Mutant, tree: Path) -> int:
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(mutant.tests)]
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
