"""Installs one environment: `python -P -m fabric.agent.install JOB FD`, inside a sandbox of its own.

JOB is JSON: target, temporary folder, requirements, index, find_links, python, proxy. Wheels only: nothing of a package
runs here. The socket FD is not used; the exit code is pip's, its words go to standard output.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fabric.agent.sandbox import forwarder


def main(argv: Sequence[str]) -> int:
    job = json.loads(argv[0])
    environment = {**os.environ, "TMPDIR": job["tmp"], "PYTHONPATH": _pip_path()}
    if job["proxy"]:
        environment |= forwarder.start(job["proxy"])
    return subprocess.run(_command(job), stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=environment).returncode  # noqa: PLW1510


def _command(job: dict[str, Any]) -> list[str]:
    options = [
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--progress-bar=off",
    ]
    options += ["--target", job["target"]]
    options += ["--index-url", job["index"]] if job["index"] else []
    options += ["--find-links", job["find_links"]] if job["find_links"] else []
    options += ["--no-index"] if job["find_links"] and not job["index"] else []
    options += ["--python-version", job["python"], "--implementation", "cp"] if job["python"] else []
    return [sys.executable, "-m", "pip", "install", *options, "--", *job["requirements"]]


def has_pip() -> bool:
    """Whether this Python can install at all."""
    return bool(_pip_path()) or _find("pip")


def _pip_path() -> str:
    """Where pip is when it is not installed: the wheel that Python itself brings, for new environments."""
    if _find("pip") or not _find("ensurepip"):
        return ""
    import ensurepip

    wheels = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    return str(wheels[-1]) if wheels else ""


def _find(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
