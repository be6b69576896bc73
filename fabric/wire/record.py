"""What a value becomes when its class is unknown here: a small immutable record of names and values."""

from collections.abc import Iterator, Mapping
from typing import Any


class Record:
    """The fields of an instance whose class may not be rebuilt in this process, readable as attributes.

    ``record.loss`` reads a field; ``record["loss"]`` does so for names that are no attribute of their own, and
    ``dict(record)`` gives all. ``_type_name`` says which class it was on the worker. Two records are equal when type
    name and fields are; a record is hashable when its values are.
    """

    __slots__ = ("_fields", "_module", "_qualname")

    _fields: dict[str, Any]
    _module: str
    _qualname: str

    def __init__(self, module: str, qualname: str, fields: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_qualname", qualname)
        object.__setattr__(self, "_fields", dict(fields))

    @property
    def _type_name(self) -> str:
        return f"{self._module}.{self._qualname}"

    def keys(self) -> list[str]:
        return list(self._fields)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._fields[name]
        except KeyError:
            known = ", ".join(self._fields) or "none"
            raise AttributeError(f"the record of {self._type_name} has no field {name!r}; it has: {known}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a record cannot be changed; {name!r} was not set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a record cannot be changed; {name!r} was not deleted")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return self._type_name == other._type_name and self._fields == other._fields

    def __hash__(self) -> int:
        return hash((self._type_name, tuple(self._fields.items())))

    def __repr__(self) -> str:
        fields = "".join(f", {name}={value!r}" for name, value in self._fields.items())
        return f"Record({self._type_name!r}{fields})"

    def __reduce__(self) -> tuple[type["Record"], tuple[str, str, dict[str, Any]]]:
        return Record, (self._module, self._qualname, self._fields)
