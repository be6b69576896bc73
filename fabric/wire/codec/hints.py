"""Why a value does not travel, and what to return instead: the words a person reads. Knows nothing of the place."""

from io import IOBase
from pathlib import PurePath
from types import BuiltinFunctionType, CoroutineType, FunctionType, GeneratorType, ModuleType
from typing import Any

_HINTS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((GeneratorType,), "return list(…) of it"),
    ((CoroutineType,), "await it in the function"),
    ((FunctionType, BuiltinFunctionType, type, ModuleType), "return what it computes, or its name"),
    ((IOBase,), "return its contents as bytes or str"),
    ((range,), "return list(…) of it"),
    ((PurePath,), "return str(…) of it; files of the worker do not travel"),
)
_HINTS_BY_MODULE = {
    "pandas": "DataFrame and Series themselves travel: return one of them, or plain values",
    "polars": "return its columns as arrays: {column.name: column.to_numpy() for column in frame}",
    "pyarrow": "tables, batches and arrays travel; return .as_py() of a scalar",
}
_BUILTINS = (dict, list, tuple, set, frozenset, str, bytes, int, float, complex)


class Unfit(Exception):
    """A value that has no place in the format."""

    def __init__(self, value: Any, *, hint: str | None = None) -> None:
        super().__init__()
        self.type_name = type(value).__qualname__
        self.hint = hint_for(value) if hint is None else hint


def hint_for(value: Any) -> str:
    """What to return instead of a value of this type."""
    for types, hint in _HINTS:
        if isinstance(value, types):
            return hint
    for module in (cls.__module__.partition(".")[0] for cls in type(value).__mro__):
        if module in _HINTS_BY_MODULE:
            return _HINTS_BY_MODULE[module]
    for builtin in _BUILTINS:
        if isinstance(value, builtin):
            return f"it is a subclass of {builtin.__name__}: return {builtin.__name__}(…) of it"
    return "return arrays or plain values"
