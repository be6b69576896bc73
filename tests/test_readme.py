"""The README's example runs as it stands, in a process of its own against an embedded fabric of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.ray
def test_the_readmes_example_prints_what_it_says(tmp_path):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    script = tmp_path / "example.py"
    script.write_text(block.group(1))
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FABRIC_")}
    environ |= {"FABRIC_HOME": str(tmp_path / "home"), "FABRIC_QUIET": "1"}
    try:
        done = subprocess.run(
            [sys.executable, str(script)], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False
        )
    finally:
        down = [sys.executable, "-P", "-m", "fabric.cli", "down"]
        subprocess.run(down, env=environ, cwd=tmp_path, check=True, capture_output=True)
    assert done.stdout.split("\n")[:2] == ["2.0", "[2.0, 6.0]"], done.stderr
    assert done.returncode == 0


def test_the_readmes_tree_names_what_is_there():
    rows = re.findall(r"^\| (`[^|]+`[^|]*) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    folders = {f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    top = {name.split("/")[0] + "/" for name in named if "/" in name}
    assert {f for f in folders if (ROOT / f / "README.md").exists() or (ROOT / f / "__init__.py").exists()} <= top
