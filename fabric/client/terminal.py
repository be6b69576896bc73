"""Where output goes: a job's lines to this process's stdout and stderr, the fabric's own words to stderr."""

import os
import sys

STDERR = 2


def print_line(stream: int, text: str) -> None:
    """A line of a job's output, on the stream it was written to."""
    target = sys.stderr if stream == STDERR else sys.stdout
    try:
        print(text, file=target, flush=True)
    except (OSError, ValueError):
        return  # the caller closed it


def say(text: str) -> None:
    """A line of the fabric's own, unless it is to be quiet."""
    if not is_quiet():
        print_line(STDERR, text)


def is_quiet() -> bool:
    return os.environ.get("FABRIC_QUIET", "") not in ("", "0")
