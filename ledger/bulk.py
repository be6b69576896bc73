"""Many rows or keys in one statement with one parameter, whatever their number.

A statement per row costs a message, a plan and a trip through the driver each; a parameter per key costs more to write
out than to look up. PostgreSQL gets all rows as one JSON value, from which it makes rows of the table's own types;
SQLite, which has no server, gets its driver's executemany. The caller owns the transaction.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Dialect,
    Integer,
    LargeBinary,
    Row,
    Select,
    Table,
    Text,
    bindparam,
    case,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel import Session

Values = Mapping[str, Any]
_SQLITE = sqlite.dialect()


class _Many(TypeDecorator[list[Any]]):
    """A list of integers or of texts as one parameter: an array, or on SQLite JSON."""

    impl = Text
    cache_ok = True

    def __init__(self, *, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        array = ARRAY(BigInteger() if self.whole else Text())
        return dialect.type_descriptor(array if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: list[Any] | None, dialect: Dialect) -> Any:
        return value if dialect.name == "postgresql" else json.dumps(value)


class _Among(FunctionElement[bool]):
    name = "among"
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        """As it is: a database without booleans would be asked whether it ``= 1``, for which no index is used."""
        del against
        return self


def among(column: Any, values: Collection[int] | Collection[str]) -> Any:
    """The condition that a column's value is one of these, all integers or all texts."""
    return _Among(column, bindparam(None, list(values), type_=_kind(column), unique=True))


def among_given(column: Any, name: str) -> Any:
    """The same for a statement that is built once: the values are its parameter of that name, a list."""
    return _Among(column, bindparam(name, type_=_kind(column)))


def _kind(column: Any) -> _Many:
    return _Many(whole=isinstance(column.type, Integer))


@compiles(_Among, "sqlite")
def _among_sqlite(element: _Among, compiler: Any, **options: Any) -> str:
    column, values = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608 - both compiled, values a parameter


@compiles(_Among, "postgresql")
def _among_postgresql(element: _Among, compiler: Any, **options: Any) -> str:
    column, values = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} = ANY({values})"


def fetch(session: Session, statement: Select, values: Values) -> list[tuple[Any, ...]]:
    """All rows of a statement that is built once.

    SQLite answers one JSON value: for each row its driver lets go of the interpreter and waits for it again, behind
    every other thread that runs.
    """
    if _is_postgresql(session):
        return [tuple(row) for row in session.execute(statement, values)]
    whole, reads = _as_json(statement)
    rows = json.loads(session.execute(whole, values).scalar_one())
    for row in rows:
        for at, read in reads:
            row[at] = read(row[at])
    return [tuple(row) for row in rows]


@cache
def _as_json(statement: Select) -> tuple[Select, list[tuple[int, Callable[[Any], Any]]]]:
    """The question for all rows as one array of arrays, and how to read the columns that JSON has no type for."""
    rows = statement.subquery()
    shown = [_hex(column) if _is_bytes(column.type) else column for column in rows.c]
    reads = [(at, _reader(column.type)) for at, column in enumerate(rows.c)]
    whole = select(func.json_group_array(func.json_array(*shown))).select_from(rows)
    return whole, [(at, read) for at, read in reads if read is not None]


def _hex(column: Any) -> Any:
    return case((column.is_not(None), func.hex(column)))


def _is_bytes(kind: TypeEngine[Any]) -> bool:
    inner = kind.load_dialect_impl(_SQLITE) if isinstance(kind, TypeDecorator) else kind
    return isinstance(inner, LargeBinary)


def _reader(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """What makes the column's value of what stands in the JSON; none where it is the value."""
    process = kind.dialect_impl(_SQLITE).result_processor(_SQLITE, None)
    if not _is_bytes(kind):
        return process
    whole = process or bytes
    return lambda digits: None if digits is None else whole(bytes.fromhex(digits))


def insert_rows(session: Session, table: Table, rows: Sequence[Values], *, or_skip: bool = False) -> None:
    """Insert rows that all have the same columns; ``or_skip`` leaves alone those whose unique columns exist already."""
    if not rows:
        return
    if _is_postgresql(session):
        end = "ON CONFLICT DO NOTHING" if or_skip else ""
        _send(session, _insert_sql(table, _names(table, rows), end), table, rows)
    else:
        statement = sqlite.insert(table).on_conflict_do_nothing() if or_skip else insert(table)
        session.execute(statement, rows)


def insert_returning(session: Session, table: Table, rows: Sequence[Values], columns: Sequence[str]) -> Sequence[Row]:
    """Insert rows that all have the same columns; answers these columns of each, in any order."""
    if not rows:
        return []
    if _is_postgresql(session):
        end = f"RETURNING {', '.join(columns)}"
        return _send(session, _insert_sql(table, _names(table, rows), end), table, rows).all()
    return session.execute(insert(table).returning(*(table.c[name] for name in columns)), rows).all()


def upsert_rows(
    session: Session, table: Table, rows: Sequence[Values], *, key: Sequence[str], changed: Sequence[str]
) -> None:
    """Insert rows, or change these columns where a row with that key is there; no key comes twice."""
    if not rows:
        return
    if _is_postgresql(session):
        end = f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET "
        end += ", ".join(f"{name} = excluded.{name}" for name in changed)
        _send(session, _insert_sql(table, _names(table, rows), end), table, rows)
    else:
        statement = sqlite.insert(table)
        new = {name: statement.excluded[name] for name in changed}
        session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=new), rows)


def update_rows(session: Session, table: Table, rows: Sequence[Values], *, key: Sequence[str]) -> None:
    """Change the rows with these keys to the other columns given; no key comes twice."""
    if not rows:
        return
    changed = [name for name in rows[0] if name not in key]
    if _is_postgresql(session):
        new = ", ".join(f"{name} = given.{name}" for name in changed)
        same = " AND ".join(f"{table.name}.{name} = given.{name}" for name in key)
        _send(session, f"UPDATE {table.name} SET {new} FROM {_given(table)} WHERE {same}", table, rows)  # noqa: S608
        return
    statement = update(table).values({name: bindparam(f"new_{name}") for name in changed})
    for name in key:
        statement = statement.where(table.c[name] == bindparam(f"key_{name}"))
    session.execute(
        statement,
        [{f"key_{n}" if n in key else f"new_{n}": value for n, value in row.items()} for row in rows],
    )


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == postgresql.dialect.name


def _send(session: Session, sql: str, table: Table, rows: Sequence[Values]) -> Any:
    defaults = _defaults(table, rows[0])
    given = json.dumps([defaults | dict(row) for row in rows] if defaults else list(rows), default=_plain)
    return session.execute(text(sql), {"given": given})


def _insert_sql(table: Table, names: Sequence[str], end: str) -> str:
    columns = ", ".join(names)
    return f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {_given(table)} {end}"  # noqa: S608 - our names


def _given(table: Table) -> str:
    """The parameter as rows of the table's types."""
    return f"json_populate_recordset(CAST(NULL AS {table.name}), CAST(:given AS json)) AS given"


def _names(table: Table, rows: Sequence[Values]) -> list[str]:
    return [*rows[0], *_defaults(table, rows[0])]


def _defaults(table: Table, row: Values) -> dict[str, Any]:
    """What SQLAlchemy would fill in."""
    return {
        column.name: getattr(column.default, "arg", None)
        for column in table.columns
        if column.name not in row and column.default is not None and column.default.is_scalar
    }


def _plain(value: Any) -> Any:
    """As PostgreSQL reads it from text."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    raise TypeError(f"a {type(value).__name__} cannot be written in bulk: {value!r}")
