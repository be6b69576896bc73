"""How a sandbox child ended, in words."""

import contextlib
import signal
from dataclasses import dataclass

_SIGNAL_BASE = 128


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit code, or the signal that killed it; neither where nobody can know."""

    code: int | None = None
    signal: int | None = None

    @classmethod
    def of(cls, exit_code: int | None) -> "Exit":
        """From a shell's convention: 128 + n for signal n."""
        if exit_code is not None and _SIGNAL_BASE < exit_code <= _SIGNAL_BASE + 64:
            return cls(signal=exit_code - _SIGNAL_BASE)
        return cls(code=exit_code)

    def __str__(self) -> str:
        if self.signal is not None:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(self.signal).name}"
            return f"was killed by signal {self.signal}"
        return "ended" if self.code is None else f"ended with exit code {self.code}"
