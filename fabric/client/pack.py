"""Functions and arguments to bytes, with every module of the user's own that they need. Unpickles nothing.

What lives in the script, a notebook or a closure travels by value (cloudpickle); the user's own modules travel as
source beside it (`fabric.client.modules`); what is installed travels by name.
"""

import hashlib
import io
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import cloudpickle

from fabric.client import arrival
from fabric.client.fingerprint import Fingerprint, fingerprint
from fabric.client.modules import imports_of_code, is_findable, own_modules
from fabric.wire.codec.errors import shown
from fabric.wire.errors import InvalidRequest

MAX_CODE_BYTES = 64 << 20
"""A packed function larger than this carries data: those belong into its arguments."""
MAX_ARGUMENT_BYTES = 2 << 30
"""One task's packed arguments; a frame of the data channel holds at most twice as much."""

_OF_EVERY_FUNCTION = frozenset({"cloudpickle", "cloudpickle.cloudpickle"})
_PLAIN = frozenset({int, float, str, bytes, bool, type(None)})
_packed_before: "WeakKeyDictionary[Callable[..., Any], tuple[Fingerprint, Packed]]" = WeakKeyDictionary()

Piece = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed function. `modules` are the names that travel with it; `at_once` is an actor's, 0 for a function."""

    code: bytes
    digest: bytes
    name: str
    modules: frozenset[str]
    at_once: int = 0


def pack_function(function: Callable[..., Any]) -> Packed:
    """A callable as bytes that `pickle.loads` turns back into it in another process.

    A function that needs no module of the user's own and refers to nothing that could change in place is packed once.

    Raises:
        InvalidRequest: not callable, something it refers to cannot be pickled (says what), or too large.
    """
    now = fingerprint(function)
    if now is None:
        return _pack_function(function)[0]
    known = _packed_before.get(function)
    if known is not None and known[0] == now:
        return known[1]
    packed, self_contained = _pack_function(function)
    if self_contained:
        _packed_before[function] = now, packed
    return packed


def pack_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], known: frozenset[str] = frozenset()) -> list[Piece]:
    """Pickled (args, kwargs), then the out-of-band buffers of large arrays, not copied.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        known: modules that travel with the function anyway.

    Raises:
        InvalidRequest: an argument that cannot be pickled (says which part), or too large.
    """
    value = (tuple(args), dict(kwargs))
    if not kwargs and all(type(arg) in _PLAIN for arg in args):
        return [pickle.dumps(value, protocol=5)]
    named = {f"argument {i}": arg for i, arg in enumerate(args, 1)} | {f"argument {k!r}": v for k, v in kwargs.items()}
    body, views, needed = _dump(value, named, buffers=True)
    modules = own_modules(needed - known) if needed - known else {}
    if modules:
        body = pickle.dumps(_Arrival(modules, body, [pickle.PickleBuffer(v) for v in views]), 5, buffer_callback=_drop)
    if (size := len(body) + sum(view.nbytes for view in views)) > MAX_ARGUMENT_BYTES:
        raise InvalidRequest(f"the arguments pack to {size:,} bytes; at most {MAX_ARGUMENT_BYTES:,} are allowed")
    return [body, *views]


def _pack_function(function: Callable[..., Any]) -> tuple[Packed, bool]:
    """The packed function, and whether it refers to no module but those of every function."""
    if not callable(function):
        raise InvalidRequest(
            f"the first argument must be a function, not a {type(function).__name__}: {function!r:.80}"
        )
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    body, _, needed = _dump(function, {name: function}, buffers=False)
    modules = own_modules(needed - _OF_EVERY_FUNCTION)
    code = pickle.dumps(_Arrival(modules, body), protocol=5) if modules else body
    if len(code) > MAX_CODE_BYTES:
        raise InvalidRequest(
            f"{name} packs to {len(code):,} bytes; at most {MAX_CODE_BYTES:,} are allowed. "
            "It refers to large data: pass them as arguments"
        )
    packed = Packed(code, hashlib.sha256(code).digest(), name, frozenset(modules))
    return packed, needed <= _OF_EVERY_FUNCTION | {"builtins"}


def _drop(_buffer: pickle.PickleBuffer) -> None:
    """Keeps a buffer out of band; the caller has it already, in the same order."""


class _Arrival:
    """Pickles as a call of `arrival.load`."""

    def __init__(self, modules: Mapping[str, arrival.Source], body: bytes, buffers: Sequence[Any] = ()) -> None:
        self._state = (dict(modules), body, list(buffers))

    def __reduce__(self) -> tuple[Any, ...]:
        return arrival.load, self._state


def _dump(value: Any, named: Mapping[str, Any], *, buffers: bool) -> tuple[bytes, list[memoryview], set[str]]:
    """Pickle, out-of-band buffers, and the modules it refers to; `named` are its parts, for the words of a refusal."""
    views: list[memoryview] = []
    target = io.BytesIO()
    pickler = _Pickler(target, views if buffers else None)
    try:
        pickler.dump(value)
    except InvalidRequest:
        raise
    except Exception as error:  # a user's __reduce__ may raise anything
        raise _refusal(named, error) from error
    return target.getvalue(), views, pickler.needed


def _refusal(named: Mapping[str, Any], error: Exception) -> InvalidRequest:
    name, part = next(((n, p) for n, p in named.items() if not _picklable(p)), next(iter(named.items())))
    path, culprit = _culprit(part, name)
    what = f"{type(culprit).__module__}.{type(culprit).__qualname__}".removeprefix("builtins.")
    whose = f"{path}, which {name} refers to," if path != name and not path.startswith(name) else shown(path)
    return InvalidRequest(
        f"{whose} cannot be pickled: it is a {what} ({type(error).__name__}: {error}). "
        "Create it inside the function, or pass what it is made from"
    )


class _Pickler(cloudpickle.Pickler):
    """Notes the modules that what it pickles refers to; pickles by value what no import could find."""

    def __init__(self, target: io.BytesIO, views: list[memoryview] | None) -> None:
        callback = None if views is None else lambda buffer: views.append(buffer.raw())
        super().__init__(target, protocol=5, buffer_callback=callback)
        self.needed: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | FunctionType):
            module = obj.__module__
        elif isinstance(obj, ModuleType):
            module = obj.__name__
        else:
            if isinstance(obj, CodeType):
                self.needed |= imports_of_code(obj)
            return super().reducer_override(obj)
        by_value = _travels_by_value(module)
        reduced = super().reducer_override(obj)
        if not by_value and (reduced is NotImplemented or isinstance(obj, ModuleType)):
            self.needed.add(module)
        return reduced


@lru_cache(maxsize=4096)
def _travels_by_value(module: str | None) -> bool:
    """Whether no import could find the module elsewhere; cloudpickle is told so."""
    if module is None or module == "__main__":
        return True
    loaded = sys.modules.get(module)
    if loaded is None or is_findable(module):
        return False
    cloudpickle.register_pickle_by_value(loaded)
    return True


def _culprit(value: Any, name: str) -> tuple[str, Any]:
    """Path and value of the innermost part that cannot be pickled, written as one would in Python."""
    path, seen = name, {id(value)}
    while True:
        for step, inner in _parts(value):
            if id(inner) not in seen and not _picklable(inner):
                seen.add(id(inner))
                path, value = step if step[0] not in ".[" else path + step, inner
                break
        else:
            return path, value


def _picklable(value: Any) -> bool:
    try:
        _Pickler(io.BytesIO(), []).dump(value)
    except Exception:  # noqa: BLE001 - a user's __reduce__ may raise anything
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The values a value refers to; a step that starts with neither `.` nor `[` is a name of its own."""
    if isinstance(value, MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, FunctionType):
        names = value.__code__.co_freevars
        yield from ((n, c.cell_contents) for n, c in zip(names, value.__closure__ or (), strict=True) if _filled(c))
        yield from ((n, value.__globals__[n]) for n in _global_names(value.__code__) if n in value.__globals__)
        yield from ((f".__defaults__[{i}]", d) for i, d in enumerate(value.__defaults__ or ()))
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", inner) for key, inner in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{i}]", inner) for i, inner in enumerate(value))
    elif isinstance(value, type):
        yield from ((f".{key}", inner) for key, inner in vars(value).items() if not key.startswith("__"))
    elif hasattr(value, "__dict__"):
        yield from ((f".{key}", inner) for key, inner in vars(value).items())


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


def _global_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
