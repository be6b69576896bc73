"""Many rows or keys in one statement with few parameters, whatever their number.

A statement per row costs a message, a plan and a trip through the driver each; a parameter per key costs more to write
out than to look up. PostgreSQL gets an array for each column, from which it makes rows; SQLite, which has no server,
gets rows as tuples by its driver's executemany. The caller owns the transaction.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

from sqlalchemy import (
    JSON,
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
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine
from sqlmodel import Session

Values = Mapping[str, Any]
_SQLITE, _POSTGRESQL = sqlite.dialect(), postgresql.dialect()

_ROWS_AT_ONCE = 10_000
_SKIP = "ON CONFLICT DO NOTHING"


class _Many(TypeDecorator[list[Any]]):
    """A list of integers or of texts as one parameter: an array as text, or on SQLite JSON."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """On PostgreSQL of no type: of a text it would make an array anew for each row that it looks at."""
        return NullType() if dialect.name == "postgresql" else Text()

    def process_bind_param(self, value: list[Any] | None, dialect: Dialect) -> Any:
        return _array(value or ()) if dialect.name == "postgresql" else json.dumps(value)


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
    return _Among(column, bindparam(None, list(values), type_=_Many(), unique=True))


def among_given(column: Any, name: str) -> Any:
    """The same for a statement that is built once: the values are its parameter of that name, a list."""
    return _Among(column, bindparam(name, type_=_Many()))


@compiles(_Among, "sqlite")
def _among_sqlite(element: _Among, compiler: Any, **options: Any) -> str:
    column, values = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608 - both compiled, values a parameter


@compiles(_Among, "postgresql")
def _among_postgresql(element: _Among, compiler: Any, **options: Any) -> str:
    """As a subquery: an array's values the planner looks at one by one, or has each compared with every row."""
    column, values = (compiler.process(part, **options) for part in element.clauses)
    kind = "BIGINT" if isinstance(next(iter(element.clauses)).type, Integer) else "TEXT"
    return f"{column} IN (SELECT unnest(CAST({values} AS {kind}[])))"


def fetch(session: Session, statement: Select, values: Values) -> list[tuple[Any, ...]]:
    """All rows of a statement that is built once.

    SQLite answers one JSON value: for each row its driver lets go of the interpreter and waits for it again, behind
    every other thread that runs.
    """
    if on_postgresql(session):
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
    _insert(session, table, *_as_tuples(rows), _SKIP if or_skip else "")


def insert_tuples(session: Session, table: Table, names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows whose values stand in the order of ``names``; a dictionary of each would cost more than the row."""
    _insert(session, table, names, rows, "")


def insert_returning(
    session: Session, table: Table, rows: Sequence[Values], columns: Sequence[str], *, or_skip: bool = False
) -> Sequence[Row]:
    """`insert_rows` to a table whose keys the database gives; answers these columns of each new row, in any order."""
    if not rows:
        return []
    skip = _SKIP if or_skip else ""
    if on_postgresql(session):
        names, values = _as_tuples(rows)
        end = f"{skip} RETURNING {', '.join(columns)}"
        return [row for some in _pieces(values) for row in _insert_arrays(session, table, names, some, end)]
    before = session.execute(select(func.coalesce(func.max(text("rowid")), 0)).select_from(table)).scalar_one()
    _insert(session, table, *_as_tuples(rows), skip)
    newer = text("rowid > :before")  # each new row's is above all others', and the write lock keeps other writers out
    return session.execute(select(*(table.c[name] for name in columns)).where(newer), {"before": before}).all()


def upsert_rows(
    session: Session, table: Table, rows: Sequence[Values], *, key: Sequence[str], changed: Sequence[str]
) -> None:
    """Insert rows, or change these columns where a row with that key is there; no key comes twice."""
    end = f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET "
    _insert(session, table, *_as_tuples(rows), end + ", ".join(f"{name} = excluded.{name}" for name in changed))


def update_rows(session: Session, table: Table, rows: Sequence[Values], *, key: Sequence[str]) -> None:
    """Change the rows with these keys to the other columns given; no key comes twice."""
    if not rows:
        return
    names = [*(name for name in rows[0] if name not in key), *key]
    values = [tuple(map(row.__getitem__, names)) for row in rows]
    changed = names[: -len(key)]
    if on_postgresql(session):
        new = ", ".join(f"{name} = given.{name}" for name in changed)
        same = " AND ".join(f"{table.name}.{name} = given.{name}" for name in key)
        sql = f"UPDATE {table.name} SET {new} FROM {_given(table, names)} WHERE {same}"  # noqa: S608 - our names
        session.execute(text(sql), _arrays(table, names, values))
        return
    new, same = (f"{name} = ?" for name in changed), (f"{name} = ?" for name in key)
    sql = f"UPDATE {table.name} SET {', '.join(new)} WHERE {' AND '.join(same)}"  # noqa: S608 - our names
    _execute_many(session, sql, table, names, values)


def on_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == _POSTGRESQL.name


def _as_tuples(rows: Sequence[Values]) -> tuple[list[str], Iterable[tuple[Any, ...]]]:
    names = list(rows[0]) if rows else []
    return names, (tuple(map(row.__getitem__, names)) for row in rows)


def _insert(session: Session, table: Table, names: Sequence[str], rows: Iterable[tuple[Any, ...]], end: str) -> None:
    send = _insert_arrays if on_postgresql(session) else _insert_many
    for some in _pieces(rows):
        send(session, table, names, some, end)


def _pieces(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    rest = iter(rows)
    while some := list(islice(rest, _ROWS_AT_ONCE)):
        yield some


def _insert_arrays(
    session: Session, table: Table, names: Sequence[str], rows: Sequence[tuple[Any, ...]], end: str
) -> Any:
    names, rows = _with_defaults(table, names, rows)
    columns = ", ".join(names)
    given = _given(table, names)
    sql = f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {given} {end}"  # noqa: S608 - our names
    return session.execute(text(sql), _arrays(table, names, rows))


def _insert_many(
    session: Session, table: Table, names: Sequence[str], rows: Sequence[tuple[Any, ...]], end: str
) -> None:
    names, rows = _with_defaults(table, names, rows)
    marks = ", ".join("?" for _ in names)
    sql = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks}) {end}"  # noqa: S608 - our names
    _execute_many(session, sql, table, names, rows)


def _execute_many(
    session: Session, sql: str, table: Table, names: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """By the driver itself: SQLAlchemy would make a dictionary of each row and look at each value of it."""
    connection = session.connection()
    columns: list[Iterable[Any]] = list(zip(*rows, strict=True))
    for place, name in enumerate(names):
        process = table.c[name].type.dialect_impl(connection.dialect).bind_processor(connection.dialect)
        if process is not None:
            columns[place] = map(process, columns[place])
    connection.exec_driver_sql(sql, list(zip(*columns, strict=True)))


def _given(table: Table, names: Sequence[str]) -> str:
    """The parameters, an array for each column, as rows."""
    arrays = ", ".join(f"CAST(:{name} AS {table.c[name].type.compile(_POSTGRESQL)}[])" for name in names)
    return f"unnest({arrays}) AS given ({', '.join(names)})"


def _arrays(table: Table, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, str]:
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return {name: _array(map(json.dumps, v) if isinstance(table.c[name].type, JSON) else v) for name, v in columns}


def _array(values: Iterable[Any]) -> str:
    """As PostgreSQL reads an array; its driver takes several times as long to write one."""
    return "{" + ",".join(map(_item, values)) + "}"


def _with_defaults(
    table: Table, names: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> tuple[Sequence[str], Sequence[tuple[Any, ...]]]:
    """And what SQLAlchemy would fill in."""
    defaults = {
        column.name: getattr(column.default, "arg", None)
        for column in table.columns
        if column.name not in names and column.default is not None and column.default.is_scalar
    }
    if not defaults:
        return names, rows
    values = tuple(defaults.values())
    return [*names, *defaults], [row + values for row in rows]


def _item(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    raise TypeError(f"a {type(value).__name__} cannot be written in bulk: {value!r}")
