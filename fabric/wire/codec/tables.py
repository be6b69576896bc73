"""Arrow tables and arrays, and pandas frames and series by way of them: both ways, as one Arrow stream in one buffer.

Neither library is imported before a value needs it. An Arrow stream can carry what would cost more here than it weighs
(compressed buffers, a billion rows of nothing): such a stream is refused before anything is made of it, and what is
inside is checked in full before anybody sees it. Columns of Python objects travel when Arrow has a type that gives the
same objects back (text, bytes, dates, decimals), else they are refused by name.
"""

import importlib
import struct
import sys
from collections.abc import Callable
from typing import Any

from fabric.wire.codec.errors import CodecError
from fabric.wire.codec.hints import Unfit
from fabric.wire.codec.kinds import Kind

TABLE, BATCH, CHUNKED, ARRAY, FRAME, SERIES = "table", "batch", "chunked", "array", "frame", "series"

_SPARE_ROWS = 1 << 16
"""Rows that need no bytes of their own: a column may be all null."""
_OBJECTS = ("string", "large_string", "string_view", "binary", "large_binary", "date32[day]", "time64[us]", "bool")
_RECORD_BATCH, _DICTIONARY_BATCH = "record batch", "dictionary"


def describe(value: Any) -> tuple[Kind, list[Any], Any] | None:
    """Kind, fields and buffer of a table, array, frame or series; None when the value is none of them.

    Raises:
        Unfit: a column of objects that would come back as something else, or a type of somebody's own.
    """
    pandas, arrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pandas is not None and type(value) in (pandas.DataFrame, pandas.Series):
        form = FRAME if type(value) is pandas.DataFrame else SERIES
        return Kind.TABLE, [form, value.name if form == SERIES else None], _stream(_arrow_of(value, form))
    if arrow is not None and isinstance(value, (arrow.Table, arrow.RecordBatch, arrow.ChunkedArray, arrow.Array)):
        form, table = _as_table(arrow, value)
        return Kind.TABLE, [form, None], _stream(table)
    return None


def rebuild(fields: Any, buffer: memoryview) -> Any:
    """The value of [form, name]; ``buffer`` must be one whole Arrow stream."""
    form, name = fields
    if form not in _MAKERS:
        raise CodecError(f"no table has the form {form!r}")
    table = _read(_library("pyarrow"), buffer)
    value = _MAKERS[form](table)
    if form == SERIES:
        value.name = name
    return value


def _as_table(arrow: Any, value: Any) -> tuple[str, Any]:
    if isinstance(value, arrow.Table):
        return TABLE, value
    if isinstance(value, arrow.RecordBatch):
        return BATCH, arrow.Table.from_batches([value])
    return (CHUNKED if isinstance(value, arrow.ChunkedArray) else ARRAY), arrow.table({"": value})


def _arrow_of(value: Any, form: str) -> Any:
    """A pandas value as a table that gives the same columns and types back."""
    arrow = _for(value, "pyarrow")
    frame = value.to_frame(name="") if form == SERIES else value
    try:
        table = arrow.Table.from_pandas(frame, nthreads=1)
        same = _empty_of(table)
    except (arrow.ArrowException, ValueError, TypeError, KeyError) as error:
        raise Unfit(value, hint=f"{str(error).splitlines()[0]:.200}; convert it with .astype(…)") from None
    if len(same.columns) != len(frame.columns) or not same.columns.equals(frame.columns):
        raise Unfit(value, hint="its column labels do not survive: use texts, each once")
    for column, kind, back in zip(frame.columns, frame.dtypes, same.dtypes, strict=True):
        stored = table.schema.field(frame.columns.get_loc(column)).type
        if kind == object and not _same_objects(arrow, stored):  # noqa: E721 - a dtype compares with a type
            raise Unfit(value, hint=f"column {column!r} has object dtype ({stored}): convert it with .astype(…)")
        if kind not in (object, back):
            raise Unfit(value, hint=f"column {column!r} of dtype {kind} would come back as {back}: convert it")
    return table


def _same_objects(arrow: Any, stored: Any) -> bool:
    return str(stored) in (*_OBJECTS, "null") or arrow.types.is_decimal(stored)


def _empty_of(table: Any) -> Any:
    return table.slice(0, 0).to_pandas()


def _stream(table: Any) -> memoryview:
    arrow = sys.modules["pyarrow"]
    if any(_is_own(field.type) for field in table.schema):
        raise Unfit(table, hint="it has a type of somebody's own: cast the column to its storage type")
    ipc = importlib.import_module("pyarrow.ipc")
    sink = arrow.BufferOutputStream()
    with ipc.new_stream(sink, table.schema, options=ipc.IpcWriteOptions(compression=None)) as writer:
        if table.num_rows:
            writer.write_table(table)
        else:
            writer.write_batch(_empty_batch(arrow, table))
    stream = memoryview(sink.getvalue())
    if table.num_rows > _most_rows(stream.nbytes):
        raise Unfit(table, hint="nearly all of its rows hold nothing: drop the columns that are null")
    return stream


def _empty_batch(arrow: Any, table: Any) -> Any:
    """No rows, but the categories of dictionaries, which go with a batch only."""
    columns = [column.chunk(0) if column.num_chunks else arrow.array([], column.type) for column in table.columns]
    return arrow.RecordBatch.from_arrays(columns, schema=table.schema)


def _is_own(kind: Any) -> bool:
    """Whether rebuilding the type would need a class that the receiver may not have."""
    name = getattr(kind, "extension_name", "")
    return bool(name) and not name.startswith(("arrow.", "pandas."))


def _read(arrow: Any, buffer: memoryview) -> Any:
    """The table in a stream that was checked as a whole.

    Raises:
        CodecError: not one whole Arrow stream, compressed, or inconsistent.
    """
    ipc = importlib.import_module("pyarrow.ipc")
    source = arrow.py_buffer(buffer)
    try:
        _check_messages(ipc, source)
        with ipc.open_stream(source) as reader:
            if any(_is_own(field.type) for field in reader.schema):
                raise CodecError("a type of somebody's own")
            table = reader.read_all()
        if table.num_rows > _most_rows(buffer.nbytes):
            raise CodecError(f"{table.num_rows:,} rows in {buffer.nbytes:,} bytes")
        table.validate(full=True)
    except arrow.ArrowException as error:
        raise CodecError(f"not an Arrow table: {str(error).splitlines()[0]:.200}") from None
    return table


def _most_rows(size: int) -> int:
    return _SPARE_ROWS + 8 * size  # a row of one bit is the smallest that weighs anything


def _check_messages(ipc: Any, source: Any) -> None:
    for message in ipc.MessageReader.open_stream(source):
        if message.type in (_RECORD_BATCH, _DICTIONARY_BATCH) and _compressed(message):
            raise CodecError("a compressed Arrow stream; it is sent as it is")


def _compressed(message: Any) -> bool:
    """Whether the batch in a message names a codec (Arrow's Message.fbs: Message.header, RecordBatch.compression)."""
    metadata = memoryview(message.metadata)
    header = _field(metadata, _follow(metadata, 0), 2)
    batch = _follow(metadata, header)
    if message.type == _DICTIONARY_BATCH:
        batch = _follow(metadata, _field(metadata, batch, 1))
    return bool(_field(metadata, batch, 3))


def _follow(metadata: memoryview, at: int) -> int:
    """Where a flatbuffer's offset at ``at`` points."""
    return at + struct.unpack_from("<I", metadata, at)[0]


def _field(metadata: memoryview, table: int, number: int) -> int:
    """Where field ``number`` of a flatbuffer's table stands; 0 when it is left out."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, vtable)[0]
    if 4 + 2 * number + 2 > size:
        return 0
    offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _batch(table: Any) -> Any:
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:
        raise CodecError(f"{len(batches)} batches where one was announced")
    arrow = sys.modules["pyarrow"]
    return batches[0] if batches else arrow.RecordBatch.from_pylist([], schema=table.schema)


def _only_column(table: Any) -> Any:
    if table.num_columns != 1:
        raise CodecError(f"{table.num_columns} columns where one was announced")
    return table.column(0)


def _array(table: Any) -> Any:
    column = _only_column(table)
    arrow = sys.modules["pyarrow"]
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else arrow.concat_arrays(column.chunks)
        if column.chunks
        else (arrow.array([], column.type))
    )


def _frame(table: Any) -> Any:
    _library("pandas")
    return table.to_pandas(use_threads=False).copy()


def _series(table: Any) -> Any:
    frame = _frame(table)
    if len(frame.columns) != 1:
        raise CodecError(f"{len(frame.columns)} columns where one was announced")
    return frame.iloc[:, 0].copy()


_MAKERS: dict[str, Callable[[Any], Any]] = {
    TABLE: lambda table: table,
    BATCH: _batch,
    CHUNKED: _only_column,
    ARRAY: _array,
    FRAME: _frame,
    SERIES: _series,
}


def _library(name: str) -> Any:
    """Pyarrow or pandas, imported when first needed: the SDK installs without both."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise CodecError(f"the value needs {name}, which is not installed here: pip install {name}") from None


def _for(value: Any, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unfit(
            value, hint=f"it travels by way of {name}, which is not installed here: pip install {name}"
        ) from None
