"""`fabric.Env`: the packages that a run finds, beside those of its node."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fabric.wire.errors import InvalidRequest
from fabric.wire.surroundings import check_env


@dataclass(frozen=True, slots=True)
class Env:
    """An environment. Equal ones share a lease and, on each node, an installation.

    Attributes:
        python: a minor such as "3.11"; another one than this process's needs `command=`, since functions do not travel
            between minors.
        pip: requirements, each a name with versions; installed from wheels of the operator's index.
    """

    python: str | None = None
    pip: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raises InvalidRequest when it is no environment; says which part and what is allowed."""
        listed = isinstance(self.pip, Iterable) and not isinstance(self.pip, str)
        if not listed or not all(isinstance(one, str) for one in self.pip):
            raise InvalidRequest(f"Env(pip={self.pip!r:.80}) is not a list of requirements such as ['torch>=2.6']")
        if self.python is not None and not isinstance(self.python, str):
            raise InvalidRequest(f"Env(python={self.python!r:.80}) is not a minor version such as '3.11'")
        try:
            spec = check_env(self.python or "", self.pip)
        except ValueError as error:
            raise InvalidRequest(f"Env: {error}") from None
        object.__setattr__(self, "pip", tuple(spec.pip))

    def request(self) -> dict[str, Any]:
        """As a RunRequest states it."""
        return {"python": self.python or "", "pip": list(self.pip)}
