"""Whether an attempt that ended is tried again. Decides; waits for nothing."""

from dataclasses import dataclass

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
        on = (self.on,) if isinstance(self.on, str) else tuple(self.on)
        object.__setattr__(self, "on", on)
        object.__setattr__(self, "exit_codes", tuple(self.exit_codes))
        unknown = [word for word in on if word not in RETRY_CLASSES]
        if unknown:
            raise ValueError(f"Retry(on={unknown[0]!r}) is unknown; allowed: {', '.join(RETRY_CLASSES)}")
        if self.max < 0:
            raise ValueError(f"Retry(max={self.max}) must be 0 or more")
        if self.backoff < 0:
            raise ValueError(f"Retry(backoff={self.backoff}) must be 0 or more seconds")


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
