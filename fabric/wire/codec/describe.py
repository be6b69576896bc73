"""What stands on the wire for a value that msgpack does not know: its kind and fields. Decides; writes nothing.

Types are matched exactly. An instance of a subclass of a builtin (``class Config(dict)``, ``Counter``) is refused
rather than turned into its parent behind the caller's back; ``OrderedDict`` alone is carried, as models keep their
weights in one. Fields are what msgpack knows, or values to be described in turn.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from fabric.wire.codec import arrays, exceptions, tables
from fabric.wire.codec.hints import Unfit
from fabric.wire.codec.kinds import Kind
from fabric.wire.record import Record


class Described(NamedTuple):
    """``fields`` is a list or a scalar of msgpack's own; ``buffer`` travels outside the header."""

    kind: Kind
    fields: Any
    buffer: memoryview | bytes | None = None


def describe(value: Any) -> Described:
    """The kind and fields of a value that is none of msgpack's own types.

    Raises:
        Unfit: it has no place in the format; says why, not where.
    """
    exact = _EXACT.get(type(value))
    if exact is not None:
        return exact(value)
    for attempt in _BY_NATURE:
        described = attempt(value)
        if described is not None:
            return described
    raise Unfit(value)


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The values directly inside a container or instance, each with what is appended to the path to reach it."""
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            yield f" key {_quoted(key)}", key
            yield f"[{_quoted(key)}]", inner
    elif type(value) in (list, tuple):
        yield from ((f"[{i}]", inner) for i, inner in enumerate(value))
    elif type(value) in (set, frozenset):
        yield from (("{…}", inner) for inner in value)
    else:
        yield from _named_parts(value)


def _named_parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Enum):
        yield ".value", value.value
        return
    for reader in (_dataclass, _named_tuple, _pydantic, _record):
        described = reader(value)
        if described is not None:
            yield from zip((f".{name}" for name in described.fields[2]), described.fields[3], strict=True)
            return


def _quoted(key: Any) -> str:
    return f'"{key}"' if type(key) is str else repr(key)


def _big_int(value: int) -> Described:
    return Described(Kind.BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _time_fields(value: time | datetime) -> list[Any]:
    return [value.hour, value.minute, value.second, value.microsecond, value.fold, _zone(value.tzinfo)]


def _zone(zone: tzinfo | None) -> Any:
    """None, the name of a zone, or [offset in µs, name or None] of a fixed one."""
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key is not None:
        return zone.key
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        given = zone.__reduce__()[1]
        return [offset // timedelta(microseconds=1), given[1] if len(given) > 1 else None]
    raise Unfit(zone, hint="use a zoneinfo.ZoneInfo with a name, or a fixed datetime.timezone")


def _datetime(value: datetime) -> Described:
    return Described(Kind.DATETIME, [value.year, value.month, value.day, *_time_fields(value)])


_EXACT: dict[type, Callable[[Any], Described]] = {
    tuple: lambda v: Described(Kind.TUPLE, list(v)),
    OrderedDict: lambda v: Described(Kind.ORDERED_DICT, dict(v)),
    set: lambda v: Described(Kind.SET, list(v)),
    frozenset: lambda v: Described(Kind.FROZENSET, list(v)),
    int: _big_int,
    complex: lambda v: Described(Kind.COMPLEX, [v.real, v.imag]),
    date: lambda v: Described(Kind.DATE, [v.year, v.month, v.day]),
    time: lambda v: Described(Kind.TIME, _time_fields(v)),
    datetime: _datetime,
    timedelta: lambda v: Described(Kind.TIMEDELTA, [v.days, v.seconds, v.microseconds]),
    Decimal: lambda v: Described(Kind.DECIMAL, str(v)),
    UUID: lambda v: Described(Kind.UUID, v.bytes),
}


def _named(kind: Kind, cls: type, names: list[str], values: list[Any], *more: Any) -> Described:
    return Described(kind, [cls.__module__, cls.__qualname__, names, values, *more])


def _enum(value: Any) -> Described | None:
    if not isinstance(value, Enum):
        return None
    cls = type(value)
    return Described(Kind.ENUM, [cls.__module__, cls.__qualname__, value.name, value.value])


def _dataclass(value: Any) -> Described | None:
    if not is_dataclass(value) or isinstance(value, type | BaseException):
        return None
    if _extends_builtin(type(value)):
        raise Unfit(value, hint="a dataclass that extends a builtin type would lose its contents; return its fields")
    names = [field.name for field in dataclass_fields(value) if hasattr(value, field.name)]
    return _named(Kind.DATACLASS, type(value), names, [getattr(value, name) for name in names])


def _extends_builtin(cls: type) -> bool:
    return any(base.__module__ == "builtins" and base is not object for base in cls.__mro__)


def _named_tuple(value: Any) -> Described | None:
    names = getattr(type(value), "_fields", None)
    if not isinstance(value, tuple) or not isinstance(names, tuple) or len(names) != len(value):
        return None
    return _named(Kind.NAMED_TUPLE, type(value), [str(name) for name in names], list(value))


def _pydantic(value: Any) -> Described | None:
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(value, pydantic.BaseModel):
        return None
    fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
    return _named(Kind.PYDANTIC, type(value), list(fields), list(fields.values()), sorted(value.model_fields_set))


def _record(value: Any) -> Described | None:
    if type(value) is not Record:
        return None
    return Described(Kind.RECORD, [value._module, value._qualname, value.keys(), [value[k] for k in value]])  # noqa: SLF001 - its names stay out of the fields' way


def _array(value: Any) -> Described | None:
    found = arrays.describe(value)
    return None if found is None else Described(*found)


def _table(value: Any) -> Described | None:
    found = tables.describe(value)
    return None if found is None else Described(*found)


def _exception(value: Any) -> Described | None:
    return Described(Kind.EXCEPTION, exceptions.fields(value, "")) if isinstance(value, BaseException) else None


_BY_NATURE = (_array, _table, _enum, _exception, _dataclass, _named_tuple, _pydantic, _record)
