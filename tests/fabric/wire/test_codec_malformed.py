"""Whatever bytes arrive: a value within the limits, or CodecError. Nothing is allocated because the bytes say so."""

import tracemalloc

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric.wire.codec import CodecError, FunctionTypes, Limits, NoTypes, decode, encode
from fabric.wire.codec.kinds import Kind


class Victim:
    def __init__(self):
        raise AssertionError("must never run")

    __new__ = __init__
    __post_init__ = __init__


def function(victim: Victim) -> Victim: ...


TYPES = FunctionTypes(function)
REFERENCES = st.sampled_from([msgpack.ExtType(kind, b"") for kind in Kind])
NAMES = st.sampled_from([__name__, "builtins", "os", "Victim", "Exception", "system", "<i4", "|O", "float32", "a"])
FIELDS = st.recursive(
    REFERENCES | NAMES | st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(NAMES | st.integers(0, 9), inner, max_size=3),
    max_leaves=8,
)


def read(header, buffers=(), **more):
    """Decode; everything but CodecError is a failure of the test."""
    try:
        return decode(header, buffers, types=TYPES, **more)
    except CodecError as error:
        return error


def entry(kind, fields):
    return msgpack.packb(msgpack.ExtType(kind, b"")) + msgpack.packb(fields)


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.binary(max_size=40), max_size=2))
@example(b"\xc1", [])
@example(b"\x91" * 300 + b"\xc0", [])
@example(b"", [])
def test_random_bytes_give_a_value_or_a_codec_error(header, buffers):
    read(header, buffers)


@settings(max_examples=500, deadline=None)
@given(FIELDS, st.lists(FIELDS, max_size=4), st.lists(st.binary(max_size=40), max_size=2))
def test_random_documents_give_a_value_or_a_codec_error(first, entries, buffers):
    read(b"".join(msgpack.packb(document) for document in (first, *entries)), buffers)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(Kind), FIELDS, st.lists(st.binary(max_size=40), max_size=1))
def test_random_fields_of_every_kind_give_a_value_or_a_codec_error(kind, fields, buffers):
    assert not isinstance(read(entry(kind, fields), buffers), Victim)


@settings(deadline=None)
@given(st.data())
def test_a_flipped_or_missing_byte_gives_a_value_or_a_codec_error(data):
    header, _ = encode({"a": (1, 2.5, "text"), "b": [{3}, 2**80, {"c": 1j}]})
    at = data.draw(st.integers(0, len(header) - 1))
    read(header[:at] + bytes([data.draw(st.integers(0, 255))]) + header[at + 1 :])
    assert isinstance(read(header[:at]), CodecError)


@pytest.mark.parametrize(
    "header",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\x01",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\xdd\x00\x01\x00\x00" * 10_000,
    ],
)
def test_an_announced_size_allocates_nothing(header):
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decode(header, [], types=NoTypes())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(depth=2), "nested more than 2 levels"),
        (Limits(items=5), "6 values; 5 are allowed"),
        (Limits(header_bytes=9), "a header of 10 bytes; 9 are allowed"),
    ],
)
def test_each_limit_of_the_header_is_kept(limits, message):
    header = encode([[[1, 2, (3,)]]]).header
    assert decode(header, [], types=NoTypes(), limits=Limits(depth=4, items=8, header_bytes=len(header)))
    with pytest.raises(CodecError, match=message):
        decode(header[:10].ljust(10, b"\xc0"), [], types=NoTypes(), limits=limits)


def test_each_limit_of_the_buffers_is_kept():
    encoded = encode(bytes(1 << 16))
    assert decode(*encoded, types=NoTypes(), limits=Limits(buffers=1, buffer_bytes=1 << 16))
    for limits in (Limits(buffers=0), Limits(buffer_bytes=(1 << 16) - 1)):
        with pytest.raises(CodecError, match="buffers of"):
            decode(*encoded, types=NoTypes(), limits=limits)


@pytest.mark.parametrize(
    ("header", "buffers", "message"),
    [
        (b"\xa5ab", [], "cut off"),
        (b"\x92\x01\xd9\xff", [], "cut off"),
        (entry(Kind.NUMPY_SCALAR, ["<i4", bytes(8)]), [], "an array of 4 bytes in a buffer of 8"),
        (b"\x01\x02", [], "nothing refers to"),
        (b"\x01", [b"x"], "nothing refers to"),
        (b"\x01" + b"\xc0" * 64, [], "nothing refers to"),
        (entry(Kind.TUPLE, [1])[:3], [], "1 references but 0 entries"),
        (entry(Kind.LARGE_BYTES, [0, None]), [], "missing or used twice"),
        (entry(Kind.LARGE_BYTES, [True, None]), [b"a", b"b"], "nothing refers to"),
        (b"\xc7\x00\x63\x01", [], "no known kind"),
        (b"\xd4\x01\x00", [], "has no meaning here"),
        (entry(Kind.BIG_INT, "text"), [], "malformed"),
        (entry(Kind.TIME, [1, 2, 3, 4, 0, "../../etc/passwd"]), [], "not the name of a time zone"),
        (entry(Kind.TIME, [1, 2, 3, 4, 0, "No/Such"]), [], "not known here"),
        (entry(Kind.RECORD, ["m", "C", ["a", "a"], [1, 2]]), [], "a name appears twice"),
        (entry(Kind.RECORD, ["m", "C", [1], [1]]), [], "names that are not text"),
        (entry(Kind.SET, [[1]]), [], "malformed: TypeError"),
    ],
)
def test_malformed_headers_say_what_is_wrong(header, buffers, message):
    with pytest.raises(CodecError, match=message):
        decode(header, buffers, types=NoTypes())
