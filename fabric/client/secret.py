"""`fabric.Secret`: a value that reaches only the environment of the run's process. Its text never shows it."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fabric.wire.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Secret:
    """`Secret("HF_TOKEN")` takes the value of this process's own variable of that name."""

    name: str
    value: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Raises InvalidRequest: no name of a variable, or no value; never says the value."""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InvalidRequest(f"secrets: {self.name!r:.80} is not the name of a variable such as 'HF_TOKEN'")
        value = self.value or os.environ.get(self.name, "")
        if not isinstance(value, str) or not value or "\0" in value or len(value.encode(errors="replace")) > _MAX_BYTES:
            raise InvalidRequest(
                f"secrets: {self.name} has no value, or one that is no text of at most {_MAX_BYTES} bytes"
            )
        object.__setattr__(self, "value", value)


def read_secrets(given: Any) -> tuple[Secret, ...]:
    """From a dict of names and values, a Secret, or several.

    Raises:
        InvalidRequest: none of these, or a name stands twice.
    """
    if isinstance(given, Mapping):
        found = tuple(Secret(name, value) for name, value in given.items())
    elif isinstance(given, Secret):
        found = (given,)
    elif isinstance(given, Iterable) and not isinstance(given, str | bytes):
        found = tuple(given)
    else:
        found = ()
    if (not found and given) or not all(isinstance(one, Secret) for one in found):
        raise InvalidRequest("secrets is neither a dict such as {'HF_TOKEN': …} nor a list of fabric.Secret")
    names = [one.name for one in found]
    if len(set(names)) != len(names):
        raise InvalidRequest(f"secrets names {next(name for name in names if names.count(name) > 1)} twice")
    return tuple(sorted(found, key=lambda one: one.name))
