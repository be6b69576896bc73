"""Runs the product's commands as a person would, with their output beside the demo's own."""

import os
import subprocess
import sys
from collections.abc import Mapping


def run_fabric(*words: str, environ: Mapping[str, str] | None = None, check: bool = True) -> None:
    """`fabric WORDS`, its output on stderr.

    Raises:
        CalledProcessError: it failed, unless ``check`` is off.
    """
    command = [sys.executable, "-P", "-m", "fabric.cli", *words]
    subprocess.run(command, check=check, stdout=sys.stderr, env=os.environ | dict(environ or {}))
