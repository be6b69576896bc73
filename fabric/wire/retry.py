"""Whether an attempt that ended is tried again. Decides; waits for nothing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fabric.wire.errors import InvalidRequest
from fabric.wire.reasons import RETRY_CLASSES, Reason


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how often to try again.

    Attributes:
        on: words out of ``no_capacity``, ``error``, ``interruption``.
        max: retries after the first attempt, 0 or more.
        backoff: seconds before the first retry; doubles with each one, at most 60 s.
        exit_codes: exit codes of a `command` that are retried although ``error`` is not in `on`.
    """

    on: tuple[str, ...] = ("interruption",)
    max: int = 3
    backoff: float = 0.0
    exit_codes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises InvalidRequest when it is no rule; says which part and what is allowed."""
        for name in ("on", "exit_codes"):
            given = getattr(self, name)
            several = isinstance(given, Iterable) and not isinstance(given, str | bytes)
            object.__setattr__(self, name, tuple(given) if several else (given,))
        unknown = [word for word in self.on if not isinstance(word, str) or word not in RETRY_CLASSES]
        if unknown:
            raise InvalidRequest(f"Retry(on={unknown[0]!r:.80}) is unknown; allowed: {', '.join(RETRY_CLASSES)}")
        wrong = [code for code in self.exit_codes if type(code) is not int]
        if wrong:
            raise InvalidRequest(f"Retry(exit_codes={wrong[0]!r:.80}) is not an exit code, nor a list of them")
        if type(self.max) is not int or self.max < 0:
            raise InvalidRequest(f"Retry(max={self.max!r:.80}) is not a number of retries, 0 or more")
        if type(self.backoff) not in (int, float) or not 0 <= self.backoff < math.inf:
            raise InvalidRequest(f"Retry(backoff={self.backoff!r:.80}) is not a time in seconds, 0 or more")


def delay_s(retry: Retry, reason: Reason, attempts: int, exit_code: int | None = None) -> float | None:
    """Seconds to wait before the next attempt, or None when there is none.

    Args:
        retry: the run's rule.
        reason: why the last attempt ended.
        attempts: attempts made so far, 1 or more.
        exit_code: of a `command`, if it ended by itself.
    """
    covered = any(reason in RETRY_CLASSES[word] for word in retry.on)
    by_exit = exit_code is not None and exit_code in retry.exit_codes and reason in RETRY_CLASSES["error"]
    if attempts > retry.max or not (covered or by_exit):
        return None
    return min(60.0, retry.backoff * 2 ** (attempts - 1))
