"""A program instead of a function: what `fabric.run(command=…)` and `fabric run -- CMD` send. Runs on the node."""

import os
import subprocess
from collections.abc import Sequence

from fabric.wire.job import ProgramFailed

SHELL = "/bin/sh"


def run_command(command: str | Sequence[str]) -> int:
    """Run a program to its end, a text by the shell; its output is the job's. Returns 0.

    Raises:
        ProgramFailed: it ended with another exit code, or by a signal.
        FileNotFoundError: there is no such program on the node.
    """
    argv = [SHELL, "-c", command] if isinstance(command, str) else list(command)
    code = subprocess.run(argv, stdin=subprocess.DEVNULL, env=os.environ, check=False).returncode
    if code:
        raise ProgramFailed(code if code > 0 else 128 - code)
    return 0
