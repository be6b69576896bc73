"""What travels beside a call: secrets for its environment and a folder to work in. Packed here, unpacked on the node.

It goes with the arguments, never with the function's code: code is kept and shared, arguments are not.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.client.workdir import unpack_workdir
from fabric.wire.coroutines import settled


@dataclass(frozen=True)
class Baggage:
    """`workdir` is a packed folder, empty for none; `fresh`: unpacked anew for each call, as programs change files."""

    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    workdir: bytes = field(default=b"", repr=False)
    fresh: bool = False


class Wrapping:
    """A function inside another callable, under its own name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """Whose annotations say what its results may be rebuilt into."""
        return self.function


class Carrying(Wrapping):
    """A function whose first argument is the baggage that its call finds unpacked."""

    def __call__(self, baggage: Baggage, args: Sequence[Any], /, **kwargs: Any) -> Any:
        with _secrets(baggage.secrets), _workdir(baggage):
            try:
                return settled(self.function(*args, **kwargs))
            except BaseException as error:
                _hide(error, baggage.secrets)
                raise


class Loaded:
    """A function that has its baggage with it: all calls of a map find the same."""

    def __init__(self, function: Callable[..., Any], baggage: Baggage) -> None:
        self._carrying = Carrying(function)
        self._baggage = baggage
        self.__qualname__ = self._carrying.__qualname__

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self._carrying.function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._carrying(self._baggage, args, **kwargs)


class Equipped:
    """Makes an object in a process of its own, which has its baggage from then on, to its end."""

    def __init__(self, make: Callable[[], Any], baggage: Baggage) -> None:
        self._make = make
        self._baggage = baggage
        self.__qualname__ = getattr(make, "__qualname__", type(make).__qualname__)

    def __call__(self) -> Any:
        os.environ.update(self._baggage.secrets)
        if self._baggage.workdir:
            folder = _unpacked(self._baggage)
            os.chdir(folder)
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        try:
            return self._make()
        except BaseException as error:
            _hide(error, self._baggage.secrets)
            raise


@contextmanager
def _secrets(secrets: Mapping[str, str]) -> Iterator[None]:
    """In the environment while the call runs: what runs after it in the same process does not see them."""
    before = {name: os.environ.get(name) for name in secrets}
    os.environ.update(secrets)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _workdir(baggage: Baggage) -> Iterator[None]:
    if not baggage.workdir:
        yield
        return
    folder, here = _unpacked(baggage), Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        os.chdir(here)
        if baggage.fresh:
            shutil.rmtree(folder, ignore_errors=True)


def _unpacked(baggage: Baggage) -> Path:
    """The folder; one that calls share is unpacked by the first of them in this process."""
    key = hashlib.sha256(baggage.workdir).hexdigest()
    if not baggage.fresh and key in _shared:
        return _shared[key]
    folder = Path(tempfile.mkdtemp(prefix="workdir-"))
    unpack_workdir(baggage.workdir, folder)
    if not baggage.fresh:
        _shared[key] = folder
    return folder


_shared: dict[str, Path] = {}


def _hide(error: BaseException, secrets: Mapping[str, str]) -> None:
    """An error's texts travel and are kept: where a secret's value stands in them its name is put."""
    waiting, seen = [error] if secrets else [], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(_hidden(argument, secrets) for argument in one.args)
        for name, value in list(getattr(one, "__dict__", {}).items()):
            if isinstance(value, str | list):
                one.__dict__[name] = _hidden(value, secrets)
        waiting += [cause for cause in (one.__cause__, one.__context__) if cause is not None]


def _hidden(value: Any, secrets: Mapping[str, str]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_hidden(one, secrets) for one in value)
    if not isinstance(value, str):
        return value
    for name, secret in secrets.items():
        value = value.replace(secret, f"<{name}>")
    return value
