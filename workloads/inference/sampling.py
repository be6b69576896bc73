"""How the next token is chosen and where a text stops. Pure but for the generator that is passed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fabric

MAX_STOPS = 4


@dataclass(frozen=True)
class Sampling:
    """A request's wishes; `temperature` 0 always takes the likeliest token."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises fabric.InvalidRequest with the member that is out of range."""
        if not 1 <= self.max_tokens <= 1_000_000:
            raise fabric.InvalidRequest(f"max_tokens={self.max_tokens} is not at least 1")
        if not 0 <= self.temperature <= 2:
            raise fabric.InvalidRequest(f"temperature={self.temperature} is not between 0 and 2")
        if not 0 < self.top_p <= 1:
            raise fabric.InvalidRequest(f"top_p={self.top_p} is not above 0 and at most 1")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise fabric.InvalidRequest(f"stop has {len(self.stop)} texts; up to {MAX_STOPS}, none empty, are allowed")


def pick(logits: Any, sampling: Sampling, generator: Any) -> int:
    """The next token from one row of logits."""
    import torch

    if sampling.temperature == 0:
        return int(logits.argmax())
    chances = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    ordered, tokens = chances.sort(descending=True)
    kept = ordered.cumsum(0) - ordered < sampling.top_p
    chosen = torch.multinomial(ordered * kept, 1, generator=generator)
    return int(tokens[chosen])


class Tail:
    """The text so far and how much of it may be shown: nothing that could still become a stop, no half character."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._shown = 0

    def take(self, text: str, *, last: bool) -> tuple[str, bool]:
        """(what is new to show of the whole `text`, whether a stop was met); `last`: no more tokens follow."""
        hits = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if hits:
            end, stopped = min(hits), True
        else:
            end, stopped = (len(text) if last else len(text) - self._unsure(text)), False
        new = text[self._shown : end]
        self._shown = max(self._shown, end)
        return new, stopped

    def _unsure(self, text: str) -> int:
        """Characters at the end that the next token may change."""
        partial = len(text) - len(text.rstrip("\ufffd"))
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(text)), partial, -1):
                if text.endswith(stop[:size]):
                    partial = size
                    break
        return partial
