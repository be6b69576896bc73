"""A program instead of a function: what `fabric run -- CMD` sends. Runs on the node."""

import subprocess
from collections.abc import Sequence


def run_command(command: Sequence[str]) -> int:
    """Run a program to its end; its output is the job's. Returns its exit code; negative for a signal.

    Raises:
        FileNotFoundError: there is no such program on the node.
    """
    return subprocess.run(list(command), stdin=subprocess.DEVNULL, check=False).returncode
