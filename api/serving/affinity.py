"""Which replica knows the beginning of a conversation from an earlier turn. Pure."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CHARACTERS_PER_TOKEN = 4
"""Of most texts, roughly; good enough to compare replicas."""
REMEMBERED = 4096


@dataclass(frozen=True)
class Prompt:
    """`tokens` is an estimate; `prefixes` are (digest, tokens) of its beginnings, the longest last."""

    tokens: int = 0
    prefixes: tuple[tuple[bytes, int], ...] = ()


@dataclass
class Memory:
    """The beginnings that one replica has read lately."""

    _known: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def cached_tokens(self, prompt: Prompt) -> int:
        """Tokens of the longest beginning that it has read."""
        return max((tokens for digest, tokens in prompt.prefixes if digest in self._known), default=0)

    def note(self, prompt: Prompt) -> None:
        """It reads this prompt now."""
        for digest, _ in prompt.prefixes:
            self._known[digest] = None
            self._known.move_to_end(digest)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def prompt_of(messages: Sequence[Mapping[str, Any]] | str) -> Prompt:
    """A chat's messages, or a text, which has no beginnings but itself."""
    parts = [messages] if isinstance(messages, str) else [f"{m.get('role')}\0{m.get('content')}" for m in messages]
    digest, size, prefixes = hashlib.sha256(), 0, []
    for part in parts:
        digest.update(part.encode(errors="replace") + b"\0")
        size += len(part)
        prefixes.append((digest.digest(), -(-size // CHARACTERS_PER_TOKEN)))
    return Prompt(prefixes[-1][1] if prefixes else 0, tuple(prefixes))
