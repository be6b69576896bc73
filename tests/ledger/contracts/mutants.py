"""Breaks the contracts on purpose, one rule at a time, and expects the tests to notice each time.

``python tests/ledger/contracts/mutants.py [NAME…]`` compiles each mutant (Node and the pinned compiler are needed) and
runs the quick contract tests against it. Exit 0: all were killed; 1: the survivors are named.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
ROOT = TESTS.parents[2]
CONTRACTS = ROOT / "ledger" / "contracts"
TESTS_FAILED = 1  # pytest's exit code


class Mutant(NamedTuple):
    """``old`` occurs once in ``file`` and is replaced by ``new``."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "payout leaves are hashed once",
        "Settlement.sol",
        "keccak256(bytes.concat(keccak256(abi.encode(PAYOUT_TAG, payout.gpu, holder, payout.cumulative))))",
        "keccak256(abi.encode(PAYOUT_TAG, payout.gpu, holder, payout.cumulative))",
    ),
    Mutant(
        "a replayed claim pays again",
        "Settlement.sol",
        "claimed[payout.gpu][holder] = payout.cumulative;",
        "",
    ),
    Mutant(
        "claims are not bounded by what was promised",
        "Settlement.sol",
        "if (total > promisedTotal) revert AbovePromised(total, promisedTotal);",
        "",
    ),
    Mutant(
        "usage is valued at the lower price",
        "Settlement.sol",
        "Math.max(price, average)",
        "Math.min(price, average)",
    ),
    Mutant(
        "usage is valued after the epoch's last second",
        "Settlement.sol",
        "oracle.read(endOf(epoch) - 1)",
        "oracle.read(endOf(epoch))",
    ),
    Mutant(
        "burned BCT can be minted again and again",
        "Settlement.sol",
        "reminted += uint128(Math.saturatingSub(paid, emission(closing.epoch)));",
        "",
    ),
    Mutant(
        "a greedy epoch blocks the queue",
        "Settlement.sol",
        "            _rewind(closing.epoch, refusal);\n            return false;",
        "            revert Refused(refusal);",
    ),
    Mutant(
        "an epoch is finalised within its window",
        "Settlement.sol",
        "if (block.timestamp < entry.readyAt) revert WindowOpen(entry.readyAt);",
        "",
    ),
    Mutant(
        "a dispute does not hold an epoch back",
        "Settlement.sol",
        "        if (disputes[entry.postId].disputer != address(0)) revert UnderDispute(entry.postId);\n"
        "        Refusal refusal",
        "        Refusal refusal",
    ),
    Mutant(
        "DC are minted at the higher price",
        "DataCredits.sol",
        "Math.min(spot, average)",
        "Math.max(spot, average)",
    ),
    Mutant(
        "an exit is paid twice",
        "DataCredits.sol",
        "e.paid = uint128(cumulativeDc);",
        "",
    ),
    Mutant(
        "a jump of the price does not halt",
        "PriceOracle.sol",
        "        halted = true;\n        emit HaltedBy",
        "        emit HaltedBy",
    ),
    Mutant(
        "anybody mints BCT",
        "BCT.sol",
        "if (msg.sender != minter) revert NotMinter(msg.sender);",
        "",
    ),
    Mutant(
        "a serial number is registered twice",
        "GpuNFT.sol",
        "serialHash == 0 || gpuOfSerial[serialHash] != 0",
        "serialHash == 0",
    ),
)


def survives(mutant: Mutant) -> bool:
    """Whether the tests still pass with ``mutant`` in place.

    Raises:
        RuntimeError: the mutant does not apply or does not compile, or the tests could not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        sources = shutil.copytree(CONTRACTS / "src", Path(folder) / "src")
        path = sources / mutant.file
        text = path.read_text("utf-8")
        if text.count(mutant.old) != 1:
            raise RuntimeError(
                f"{mutant.name}: its place occurs {text.count(mutant.old)} times in {mutant.file}, not once"
            )
        path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
        artifacts = Path(folder) / "artifacts"
        _run(["node", str(CONTRACTS / "build.mjs"), str(sources), str(artifacts)], mutant, allowed=(0,))
        quick_first = sorted(TESTS.glob("test_*.py"), key=lambda path: path.stem == "test_machine")
        arguments = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *map(str, quick_first)]
        tests = [sys.executable, "-m", "pytest", *arguments]
        return _run(tests, mutant, allowed=(0, TESTS_FAILED), CONTRACT_ARTIFACTS=str(artifacts)) == 0


def _run(command: list[str], mutant: Mutant, allowed: tuple[int, ...], **environment: str) -> int:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise RuntimeError(f"{mutant.name}: {command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode


def main(names: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(zip(chosen, pool.map(survives, chosen), strict=True))
    for mutant, survived in outcomes:
        print(f"{'SURVIVED' if survived else 'killed':9}{mutant.name}")  # noqa: T201 - a command's output
    return 1 if any(survived for _, survived in outcomes) or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
