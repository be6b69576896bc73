"""Frames and tables: the same columns, types and labels, or a refusal that names the column; and hostile streams."""

import datetime as dt
import decimal
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.wire.codec import CodecError, NotTransportable, NoTypes, decode, encode

TABLE = pa.table({"a": [1, None, 3], "text": ["x", "y", None], "deep": [[{"k": 1}], [], None]})


def there_and_back(value):
    header, buffers = encode(value)
    return decode(header, [bytearray(buffer) for buffer in buffers], types=NoTypes())


def stream_of(table, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def read(stream, value=TABLE):
    """What a receiver makes of a stream that a hostile sender put in place of a value's own."""
    return decode(encode(value).header, [stream], types=NoTypes())


@pytest.mark.parametrize(
    "value",
    [
        TABLE,
        TABLE.slice(1, 1),
        TABLE.slice(0, 0),
        TABLE.replace_schema_metadata({"k": "v"}),
        pa.concat_tables([TABLE, TABLE]),
        pa.table({"c": pa.array(["a", "b", "a"]).dictionary_encode()}),
        TABLE.to_batches()[0],
        pa.array([1, None, 2], pa.int16()),
        pa.array([], pa.string()),
        pa.array([[1], [2, 3]])[1:],
        pa.chunked_array([[1.5], [None, 2.5]]),
        pa.chunked_array([], pa.int8()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_arrow_value_comes_back_equal_and_of_its_type(value):
    back = there_and_back({"value": value})["value"]
    assert type(back) is type(value)
    assert back.equals(value)
    if isinstance(value, pa.Table):
        assert back.schema.equals(value.schema, check_metadata=True)


FRAME = pd.DataFrame(
    {
        "int": np.arange(3, dtype=np.int32),
        "float": [1.5, float("nan"), -0.0],
        "flag": [True, False, True],
        "text": ["a", None, "c"],
        "when": pd.date_range("2026-01-01", periods=3, tz="Europe/Berlin"),
        "took": pd.to_timedelta([1, 2, 3], unit="s"),
        "kind": pd.Categorical(["x", "y", "x"], categories=["y", "x"], ordered=True),
        "maybe": pd.array([1, None, 3], dtype="Int64"),
        "span": pd.period_range("2026-01", periods=3, freq="M"),
        "raw": pd.Series([b"a", None, b"c"], dtype=object),
        "day": pd.Series([dt.date(2026, 1, 1)] * 3, dtype=object),
        "price": pd.Series([decimal.Decimal("1.10")] * 3, dtype=object),
    }
)


@pytest.mark.parametrize(
    "frame",
    [
        FRAME,
        FRAME.iloc[:0],
        FRAME.set_index("int"),
        FRAME.set_index(["int", "kind"]),
        FRAME.iloc[[2, 0]],
        pd.DataFrame(),
        pd.DataFrame(index=range(5)),
        pd.DataFrame({0: [1], 1: [2]}),
        pd.DataFrame({("a", "x"): [1], ("a", "y"): [2]}),
        pd.DataFrame(np.zeros((1000, 3), np.float16), columns=list("abc")),
    ],
)
def test_a_frame_comes_back_with_columns_types_index_and_labels(frame):
    back = there_and_back([frame])[0]
    pd.testing.assert_frame_equal(back, frame)


def test_a_frame_that_came_back_can_be_written():
    back = there_and_back(pd.DataFrame({"a": [1.0, 2.0]}))
    back.loc[0, "a"] = 7.0
    back["a"] += 1
    assert back["a"].tolist() == [8.0, 3.0]


@pytest.mark.parametrize("name", ["loss", None, 7, ("a", 1)])
def test_a_series_comes_back_with_its_name_and_index(name):
    series = pd.Series([1.5, 2.5], index=pd.Index(["x", "y"], name="who"), name=name)
    back = there_and_back(series)
    pd.testing.assert_series_equal(back, series)
    assert type(back.name) is type(name)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pd.DataFrame({"o": [object()]}), "DataFrame is not transportable; .*object"),
        (pd.DataFrame({"n": pd.Series([1, None], dtype=object)}), r"column 'n' has object dtype \(int64\)"),
        (pd.DataFrame({"l": [[1, 2]]}), "column 'l' has object dtype"),
        (pd.DataFrame({"m": pd.Series([1, "a"], dtype=object)}), "DataFrame is not transportable"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "DataFrame is not transportable; Duplicate column names"),
        (pd.DataFrame({"c": pd.array([1j])}), "DataFrame is not transportable"),
        (pa.table({"n": pa.nulls(10_000_000)}), "nearly all of its rows hold nothing"),
        (pa.scalar(1), r"Int64Scalar is not transportable; .*\.as_py\(\)"),
        (pd.Index([1]), "Index is not transportable; DataFrame and Series themselves travel"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused_and_named(value, message):
    with pytest.raises(NotTransportable, match=rf'^result\["v"\]: .*{message}'):
        encode({"v": value})


def test_a_subclass_of_a_frame_is_refused():
    class Own(pd.DataFrame):
        pass

    with pytest.raises(NotTransportable, match="Own is not transportable"):
        encode(Own({"a": [1]}))


class OwnType(pa.ExtensionType):
    """A type that the receiver would have to trust."""

    def __init__(self):
        super().__init__(pa.int64(), "somebody.own")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


def test_a_type_of_ones_own_is_refused_on_both_sides():
    table = pa.table({"a": pa.ExtensionArray.from_storage(OwnType(), pa.array([1]))})
    with pytest.raises(NotTransportable, match="a type of somebody's own"):
        encode(table)
    pa.register_extension_type(OwnType())
    try:
        with pytest.raises(CodecError, match="a type of somebody's own"):
            read(stream_of(table))
    finally:
        pa.unregister_extension_type("somebody.own")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_stream_is_refused_before_it_grows(codec):
    bomb = stream_of(pa.table({"a": np.zeros(1 << 20)}), compression=codec)
    assert len(bomb) < 1 << 18
    with pytest.raises(CodecError, match="compressed"):
        read(bomb)


def test_a_compressed_dictionary_is_refused_too():
    table = pa.table({"a": pa.array(["x" * 100_000, "y"]).dictionary_encode()})
    with pytest.raises(CodecError, match="compressed"):
        read(stream_of(table, compression="zstd"))


def test_a_billion_rows_of_nothing_are_refused_before_pandas_makes_objects_of_them():
    stream = stream_of(pa.table({"a": pa.nulls(1 << 30)}))
    with pytest.raises(CodecError, match="1,073,741,824 rows in"):
        read(stream, pd.DataFrame({"a": [1]}))


def test_offsets_that_point_outside_are_refused():
    table = pa.table({"s": pa.array(["ab", "cd", "ef"])})
    stream = stream_of(table)
    offsets = np.array([0, 2, 4, 6], np.int32).tobytes()
    assert stream.count(offsets) == 1
    with pytest.raises(CodecError, match="not an Arrow table"):
        read(stream.replace(offsets, np.array([0, 2, 1 << 30, 6], np.int32).tobytes()))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_stream_with_flipped_or_missing_bytes_gives_a_value_or_a_codec_error(data):
    value = data.draw(st.sampled_from([TABLE, FRAME, FRAME["text"]]))
    header, (buffer,) = encode(value)
    stream = bytearray(buffer)
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(stream)) | st.integers(0, len(stream)))
    try:
        decode(header, [bytes(stream[:cut])], types=NoTypes())
    except CodecError:
        return


def test_the_announced_form_must_be_what_is_there():
    two = stream_of(pa.table({"a": [1], "b": [2]}))
    for value in (pa.array([1]), pa.chunked_array([[1]]), pd.Series([1])):
        with pytest.raises(CodecError, match="2 columns where one was announced"):
            read(two, value)


def test_a_receiver_without_the_libraries_is_told_what_to_install():
    header, (buffer,) = encode(TABLE)
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from fabric.wire.codec import CodecError, NoTypes, decode\n"
        f"try: decode({header!r}, [{bytes(buffer)!r}], types=NoTypes())\n"
        "except CodecError as error: assert 'pip install pyarrow' in str(error), error\n"
        "else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
