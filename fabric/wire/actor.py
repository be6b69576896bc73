"""A stateful object as it travels: how it is made. The sandbox child makes it once and calls its methods."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BY_OBJECT = "start"
"""An object that travels whole may have this method; it is called once, before all others, where the object lives."""


@dataclass(frozen=True)
class Actor:
    """`factory(*args, **kwargs)` makes the object; with `whole`, `factory` is the object itself."""

    factory: Any
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False

    def __call__(self) -> Any:
        """Make the object."""
        if not self.whole:
            return self.factory(*self.args, **self.kwargs)
        start = getattr(self.factory, BY_OBJECT, None)
        if callable(start):
            start()
        return self.factory


def public_method(instance: Any, name: str) -> Callable[..., Any]:
    """The method of that name.

    Raises:
        AttributeError: there is none, or it is not a public one.
    """
    method = getattr(instance, name, None) if is_public(name) else None
    if not callable(method):
        raise AttributeError(
            f"{type(instance).__qualname__} has no method {name!r}; it has: {', '.join(methods_of(instance))}"
        )
    return method


def methods_of(owner: Any) -> list[str]:
    """Names of the public methods of a class or an object."""
    return sorted(name for name, _ in inspect.getmembers(owner, callable) if is_public(name) and name != BY_OBJECT)


def is_public(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")
