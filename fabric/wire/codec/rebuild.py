"""Kind and fields to value: one function for each kind. No class's ``__init__``, ``__new__`` or ``__post_init__`` runs.

The functions may raise anything on malformed fields; the reader turns that into ``CodecError``.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fabric.wire.codec import arrays, exceptions, tables
from fabric.wire.codec.errors import CodecError
from fabric.wire.codec.kinds import Kind
from fabric.wire.codec.sources import TypeSource
from fabric.wire.record import Record

_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")


def _time(hour: int, minute: int, second: int, microsecond: int, fold: int, zone: Any) -> time:
    return time(hour, minute, second, microsecond, _zone(zone), fold=fold)


def _datetime(year: int, month: int, day: int, *clock: Any) -> datetime:
    return datetime.combine(date(year, month, day), _time(*clock))


def _zone(described: Any) -> tzinfo | None:
    if described is None:
        return None
    if isinstance(described, str):
        return _named_zone(described)
    offset_us, name = described
    offset = timedelta(microseconds=offset_us)
    return timezone(offset) if name is None else timezone(offset, name)


def _named_zone(name: str) -> ZoneInfo:
    if not _ZONE_NAME.fullmatch(name):
        raise CodecError(f"{name!r} is not the name of a time zone")
    try:
        return ZoneInfo(name)
    except ZoneInfoNotFoundError:
        raise CodecError(f"time zone {name!r} is not known here: pip install tzdata") from None


def _enum(fields: Any, types: TypeSource) -> Any:
    module, qualname, name, value = fields
    cls = types.find(module, qualname)
    if cls is not None and issubclass(cls, Enum):
        if name in cls.__members__:
            return cls.__members__[name]
        if issubclass(cls, Flag) and not any("_missing_" in vars(base) for base in _users_own(cls)):
            return cls(value)
    return Record(module, qualname, {"name": name, "value": value})


def _users_own(cls: type) -> tuple[type, ...]:
    return tuple(base for base in cls.__mro__ if base.__module__ != Enum.__module__)


def _dataclass(fields: Any, types: TypeSource) -> Any:
    module, qualname, named = _named(fields)
    cls = types.find(module, qualname)
    if cls is None or not is_dataclass(cls) or not named.keys() <= {f.name for f in dataclass_fields(cls)}:
        return Record(module, qualname, named)
    instance = object.__new__(cls)
    for name, value in named.items():
        object.__setattr__(instance, name, value)
    return instance


def _named_tuple(fields: Any, types: TypeSource) -> Any:
    module, qualname, named = _named(fields)
    cls = types.find(module, qualname)
    if cls is None or not issubclass(cls, tuple) or getattr(cls, "_fields", None) != tuple(named):
        return Record(module, qualname, named)
    return tuple.__new__(cls, named.values())


def _pydantic(fields: Any, types: TypeSource) -> Any:
    *described, fields_set = fields
    module, qualname, named = _named(described)
    cls = types.find(module, qualname)
    known = getattr(cls, "__pydantic_fields__", None)
    if cls is None or not isinstance(known, Mapping) or is_dataclass(cls):
        return Record(module, qualname, named)
    return _model(cls, known, named, set(fields_set))


def _model(cls: type, known: Mapping[str, Any], named: dict[str, Any], fields_set: set[str]) -> Any:
    """A pydantic model made of its parts, as `model_construct` does, but without defaults and hooks."""
    extra = {name: value for name, value in named.items() if name not in known}
    allows_extra = getattr(cls, "model_config", {}).get("extra") == "allow"
    if extra and not allows_extra:
        return Record(cls.__module__, cls.__qualname__, named)
    model = object.__new__(cls)
    object.__setattr__(model, "__dict__", {name: value for name, value in named.items() if name in known})
    object.__setattr__(model, "__pydantic_fields_set__", fields_set)
    object.__setattr__(model, "__pydantic_extra__", extra if allows_extra else None)
    object.__setattr__(model, "__pydantic_private__", {} if getattr(cls, "__private_attributes__", None) else None)
    return model


def _record(fields: Any) -> Record:
    return Record(*_named(fields))


def _named(fields: Any) -> tuple[str, str, dict[str, Any]]:
    """Module, qualname and the values by name."""
    module, qualname, names, values = fields
    if not all(isinstance(text, str) for text in (module, qualname, *names)):
        raise CodecError("names that are not text")
    named = dict(zip(names, values, strict=True))
    if len(named) != len(names):
        raise CodecError("a name appears twice")
    return module, qualname, named


OF_FIELDS: dict[Kind, Callable[[Any], Any]] = {
    Kind.TUPLE: tuple,
    Kind.SET: set,
    Kind.FROZENSET: frozenset,
    Kind.BIG_INT: lambda raw: int.from_bytes(raw, "little", signed=True),
    Kind.COMPLEX: lambda fields: complex(*fields),
    Kind.DATE: lambda fields: date(*fields),
    Kind.TIME: lambda fields: _time(*fields),
    Kind.DATETIME: lambda fields: _datetime(*fields),
    Kind.TIMEDELTA: lambda fields: timedelta(*fields),
    Kind.DECIMAL: Decimal,
    Kind.UUID: lambda raw: UUID(bytes=raw),
    Kind.NUMPY_SCALAR: arrays.rebuild_numpy_scalar,
    Kind.RECORD: _record,
    Kind.ORDERED_DICT: OrderedDict,
}

OF_TYPES: dict[Kind, Callable[[Any, TypeSource], Any]] = {
    Kind.ENUM: _enum,
    Kind.DATACLASS: _dataclass,
    Kind.NAMED_TUPLE: _named_tuple,
    Kind.PYDANTIC: _pydantic,
    Kind.EXCEPTION: exceptions.rebuild,
}

OF_BUFFER: dict[Kind, Callable[[Any, memoryview], Any]] = {
    Kind.LARGE_BYTES: lambda _, buffer: bytes(buffer),
    Kind.ARRAY: arrays.rebuild_array,
    Kind.TENSOR: arrays.rebuild_tensor,
    Kind.TABLE: tables.rebuild,
}
