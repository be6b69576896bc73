"""Where classes may come from when a value is rebuilt: the caller's own names, never a module that the data names."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol


class TypeSource(Protocol):
    """Answers which class of this process a name on the wire means, if any."""

    def find(self, module: str, qualname: str) -> type | None:
        """The class, or None: then a ``Record`` or ``RemoteError`` stands in its place. Imports nothing."""
        ...


class NoTypes:
    """Only builtins are rebuilt."""

    def find(self, module: str, qualname: str) -> type | None:  # noqa: ARG002 - the protocol's parameters
        return None


class FunctionTypes:
    """The classes in a function's module namespace, in its annotations, and in ``returns``.

    Classes in the annotated fields of those classes count too, so a report brings the classes of its lines along. The
    classes are collected when the first is asked for.
    """

    def __init__(self, function: Callable[..., Any] | None = None, *, returns: Any = None) -> None:
        self._function = inspect.unwrap(function) if function is not None else None
        self._returns = returns

    def find(self, module: str, qualname: str) -> type | None:
        outermost, *inner = qualname.split(".")
        found = self._known.get((module, outermost)) or self._known.get((module, qualname))
        for name in inner if found is not None and found.__qualname__ == outermost else ():
            found = vars(found).get(name)
            if not isinstance(found, type):
                return None
        return found

    @cached_property
    def _known(self) -> dict[tuple[str, str], type]:
        known: dict[tuple[str, str], type] = {}
        waiting = [self._returns, *self._named_by_module(), *_annotations(self._function)]
        while waiting:
            hint = waiting.pop()
            waiting.extend(typing.get_args(hint))
            if isinstance(hint, type) and (hint.__module__, hint.__qualname__) not in known:
                known[hint.__module__, hint.__qualname__] = hint
                waiting.extend(_annotations(hint) if _has_fields(hint) else ())
        return known

    def _named_by_module(self) -> list[type]:
        namespace = getattr(self._function, "__globals__", {})
        return [value for value in namespace.values() if isinstance(value, type)]


def _has_fields(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or hasattr(cls, "_fields") or hasattr(cls, "__pydantic_fields__")


def _annotations(annotated: Any) -> list[Any]:
    """The annotations of a function or class; none when a name in them cannot be resolved."""
    try:
        return list(typing.get_type_hints(annotated).values()) if annotated is not None else []
    except (NameError, TypeError, AttributeError, SyntaxError):
        return []
