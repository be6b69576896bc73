"""What a function's packed form depends on, as objects to compare by identity, for functions where that is everything.

A function that refers to anything that could change in place (a list, a module, another function, an object) has no
fingerprint: it is packed anew each time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from cloudpickle.cloudpickle import _extract_code_globals  # the names cloudpickle itself puts into a packed function

_UNCHANGING = frozenset({int, float, complex, str, bytes, bool, type(None)})
_OF_MODULE = ("__package__", "__name__", "__path__", "__file__")
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Two of one function are equal while nothing that its packed form holds has changed.

    `parts` keeps the objects alive, so that no other object can take the identity of one of them.
    """

    parts: tuple[object, ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint) or len(self.parts) != len(other.parts):
            return False
        return all(one is another for one, another in zip(self.parts, other.parts, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.parts)))


def fingerprint(function: Callable[..., Any]) -> Fingerprint | None:
    """A function's fingerprint now; None when something it refers to could change without being replaced."""
    if type(function) is not FunctionType or function.__dict__:
        return None
    around = function.__globals__
    held: list[object] = [
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        *(around.get(name, _NOTHING) for name in _OF_MODULE),
        *(around.get(name, _NOTHING) for name in _extract_code_globals(function.__code__)),
        *(function.__defaults__ or ()),
    ]
    for named in (function.__kwdefaults__, function.__annotations__):
        held += (item for pair in (named or {}).items() for item in pair)
    try:
        held += (cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # an empty cell
        return None
    if not all(map(_stays, held)):
        return None
    return Fingerprint((function.__code__, len(held), *held))


def _stays(value: object) -> bool:
    """Whether the same object always means the same: plain values, code, and classes that no program can change."""
    kind = type(value)
    if kind in _UNCHANGING or value is _NOTHING or kind is CodeType:
        return True
    return kind is type and value.__module__ == "builtins"
