"""The committed ABIs and bytecode: readable without tools, and what the sources compile to, byte for byte."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import ledger.contracts
from ledger.contracts import NAMES, artifact

HERE = Path(ledger.contracts.__file__).parent
MAX_CODE_BYTES = 24_576  # EIP-170


@pytest.mark.parametrize("name", NAMES)
def test_every_contract_has_an_abi_and_bytecode_that_fits_the_evm(name):
    abi, bytecode = artifact(name)
    assert {"constructor", "function", "error"} <= {entry["type"] for entry in abi}
    assert 0 < len(bytecode) < MAX_CODE_BYTES


def test_an_unknown_contract_is_refused_with_the_names_there_are():
    with pytest.raises(KeyError, match=r"Pool.*BCT, PriceOracle"):
        artifact("Pool")


def test_only_the_public_registry_is_named_and_every_pin_is_exact():
    lock = json.loads((HERE / "package-lock.json").read_text("utf-8"))
    resolved = [p["resolved"] for p in lock["packages"].values() if "resolved" in p]
    assert all(url.startswith("https://registry.npmjs.org/") for url in resolved)
    package = json.loads((HERE / "package.json").read_text("utf-8"))
    pins = package["dependencies"] | package["optionalDependencies"]
    assert pins == {"@openzeppelin/contracts": "5.7.0", "solc": "0.8.37", "@foundry-rs/anvil-linux-amd64": "1.7.1"}


@pytest.mark.slow
def test_the_sources_compile_to_the_committed_artifacts_byte_for_byte(tmp_path):
    node = _node()
    made = tmp_path / "artifacts"
    subprocess.run([*node, HERE / "build.mjs", HERE / "src", made], check=True, capture_output=True)
    for name in NAMES:
        committed = HERE / "artifacts" / f"{name}.json"
        assert (made / f"{name}.json").read_bytes() == committed.read_bytes(), f"{name}: run `node build.mjs`"


def _node() -> list[str]:
    """How to start Node, with the pinned compiler installed; skips with one line when that cannot be."""
    npm = shutil.which("npm")
    node = shutil.which("node")
    if npm is None or node is None:
        pytest.skip("node and npm are needed to compile the contracts")
    if not (HERE / "node_modules" / "solc").is_dir():
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts"], cwd=HERE, capture_output=True, check=False, env=os.environ
        )
        if done.returncode:
            pytest.skip(f"npm ci did not work here: {done.stderr.decode(errors='replace').strip()[-200:]}")
    return [node]
