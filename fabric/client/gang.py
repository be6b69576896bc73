"""A run on several nodes from the process that waits for it: its output, its value, and its end with the process."""

from typing import Any

from fabric.client.runs import Run
from fabric.client.terminal import print_line


def follow(run: Run) -> Any:
    """Print what its ranks say until it is over, each line with its rank; the value of rank 0.

    Raises:
        Error: it ended without a value; names the rank. An exception of the function is raised as itself.
        KeyboardInterrupt: after the run was cancelled.
    """
    try:
        for stream, line in run.lines(follow=True):
            print_line(stream, line)
        return run.result()
    except KeyboardInterrupt:
        run.cancel()
        raise
