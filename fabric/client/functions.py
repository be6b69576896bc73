"""`@fabric.function`: a function that remembers where it wants to run."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar

from fabric.client import verbs
from fabric.client.options import read_options
from fabric.client.runs import Run
from fabric.wire.errors import InvalidRequest

P = ParamSpec("P")
R = TypeVar("R")


class Function(Generic[P, R]):
    """A function with its run's keywords. Called plainly it runs here; all its keywords are the function's own."""

    def __init__(self, function: Callable[P, R], keywords: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.local_function = function
        self.keywords = keywords

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.local_function(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run in this process."""
        return self.local_function(*args, **kwargs)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run on the fabric and wait for the value."""
        return verbs.run(self.local_function, *args, kwargs=kwargs, **self.keywords)

    def spawn(self, *args: P.args, **kwargs: P.kwargs) -> Run:
        """Submit to the fabric; the run goes on without this process."""
        detached = {k: v for k, v in self.keywords.items() if k != "linger"}
        return verbs.submit(self.local_function, *args, kwargs=kwargs, **detached)

    def map(self, inputs: Iterable[Any], **keywords: Any) -> Iterator[R]:
        """Run once per input; `keywords` are those of `fabric.map` and go before the function's own."""
        return verbs.map(self.local_function, inputs, **{**self.keywords, **keywords})


def function(function: Callable[..., Any] | None = None, /, **keywords: Any) -> Any:
    """Decorate a function with the keywords of `fabric.run`; `@fabric.function` alone is allowed too.

    Raises:
        InvalidRequest: an unknown keyword or an impossible value, when the decorator runs.
    """
    read_options("run", keywords)
    if function is None:
        return lambda decorated: Function(decorated, keywords)
    if not callable(function) or keywords:
        raise InvalidRequest("write @fabric.function, or @fabric.function(gpu=…) with keywords only")
    return Function(function, keywords)
