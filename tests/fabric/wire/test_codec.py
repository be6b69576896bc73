"""Plain values: what goes in comes out, of the same type; what does not travel is named by its path."""

import math
from collections import Counter, OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import PurePath
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.wire.codec import Limits, NotTransportable, NoTypes, decode, encode
from fabric.wire.record import Record

ZONES = st.sampled_from([None, UTC, ZoneInfo("Europe/Berlin"), timezone(timedelta(hours=-3), "sea"), timezone.min])
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.dates()
    | st.times(timezones=ZONES)
    | st.datetimes(timezones=ZONES)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
HASHABLES = st.recursive(ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    HASHABLES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLES, inner, max_size=4)
        | st.sets(HASHABLES, max_size=4)
    ),
    max_leaves=12,
)


def there_and_back(value):
    return decode(*encode(value), types=NoTypes())


def same(a, b):
    """Equal and of equal types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a == b and all(map(same, a, b)) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, datetime | time):
        return a == b and a.fold == b.fold and repr(a) == repr(b)
    return a == b


@settings(deadline=None)
@given(VALUES)
def test_a_value_comes_back_equal_and_of_the_same_types(value):
    assert same(there_and_back(value), value)


@settings(deadline=None)
@given(VALUES)
def test_the_header_is_padded_exactly_when_buffers_follow(value):
    header, buffers = encode([value, bytes(3)])
    assert not buffers
    assert same(decode(memoryview(header), [], types=NoTypes()), [value, bytes(3)])


@pytest.mark.parametrize("value", [math.nan, Decimal("NaN"), -0.0, Decimal("-0.00"), math.inf, Decimal("sNaN12")])
def test_numbers_that_equal_nothing_keep_their_text(value):
    assert repr(there_and_back(value)) == repr(value)


@pytest.mark.parametrize("value", ["\ud800", b"", "x" * 100_000, b"x" * 300, 2**4000, -(2**63), 2**64, timedelta.min])
def test_values_at_the_edges_come_back(value):
    assert same(there_and_back(value), value)


def test_large_bytes_travel_as_one_uncopied_buffer():
    value = bytes(1 << 20)
    header, buffers = encode(value)
    assert buffers == (value,)
    assert buffers[0] is value
    assert len(header) % 64 == 0
    assert there_and_back(value) == value


def test_mutable_bytes_arrive_as_bytes():
    assert there_and_back([bytearray(b"ab"), memoryview(b"cd")]) == [b"ab", b"cd"]


def test_one_object_in_two_places_arrives_as_two():
    shared = [1]
    first, second = there_and_back((shared, shared))
    assert first == second == [1]
    assert first is not second


def test_an_ordered_dict_keeps_its_type_and_order():
    value = [OrderedDict(b=1, a=(2, OrderedDict()))]
    back = there_and_back(value)
    assert same(back[0]["a"], (2, OrderedDict()))
    assert repr(back) == repr(value)


def test_the_path_goes_through_an_ordered_dict():
    with pytest.raises(NotTransportable, match=r'^result\["a"\]: module is not'):
        encode(OrderedDict(a=math))


def test_a_record_comes_back_as_the_record():
    record = Record("app", "Point", {"x": (1, 2)})
    assert there_and_back([record]) == [record]


class Pipeline:
    pass


class Config(dict):
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"model": [Pipeline()]},
            r'result\["model"\]\[0\]: Pipeline is not transportable; return arrays or plain values',
        ),
        ((1, {2: {Pipeline}}), r"result\[1\]\[2\]\{…\}: type is not transportable"),
        ({(1, Pipeline): 2}, r"result key \(1, .*\)\[1\]: type is not transportable"),
        (lambda: None, r"result: function is not transportable; return what it computes"),
        ([].__iter__(), r"result: list_iterator is not transportable"),
        ({"a": (i for i in "ab")}, r'result\["a"\]: generator is not transportable; return list\(…\) of it'),
        (Config(a=1), r"result: Config is not transportable; it is a subclass of dict: return dict\(…\) of it"),
        ([Counter(a=1)], r"result\[0\]: Counter is not transportable; it is a subclass of dict"),
        (PurePath("a"), r"result: Pure\w+Path is not transportable; return str\(…\) of it"),
        (memoryview(b"abcd")[::2], r"result: memoryview is not transportable; return bytes\(…\) of it"),
        (math, r"result: module is not transportable"),
        ({1: 2}.keys(), "result: dict_keys is not transportable"),
    ],
)
def test_what_does_not_travel_is_named_by_its_path(value, message):
    with pytest.raises(NotTransportable, match=f"^{message}"):
        encode(value)


def test_the_path_starts_with_the_name_that_is_given():
    with pytest.raises(NotTransportable) as caught:
        encode([Pipeline()], path="argument")
    assert (caught.value.path, caught.value.type_name) == ("argument[0]", "Pipeline")


def cycle_of_lists():
    value = []
    value.append([value])
    return value


def cycle_through_a_tuple():
    value = []
    value.append((value,))
    return value


def cycle_of_dicts():
    value = {}
    value["self"] = {"inner": value}
    return value


@pytest.mark.parametrize("cycle", [cycle_of_lists, cycle_through_a_tuple, cycle_of_dicts])
def test_a_value_that_contains_itself_is_refused(cycle):
    with pytest.raises(NotTransportable, match="contains itself"):
        encode(cycle())


def nested(levels, container):
    value = container((0,))
    for _ in range(levels - 1):
        value = container((value,))
    return value


@pytest.mark.parametrize("container", [list, tuple, frozenset])
def test_depth_is_refused_from_the_limit_on(container):
    limits = Limits(depth=20)
    accepted = nested(20, container)
    assert decode(*encode(accepted, limits=limits), types=NoTypes(), limits=limits) == accepted
    with pytest.raises(NotTransportable, match="nested more than 20 levels"):
        encode(nested(21, container), limits=limits)


@pytest.mark.parametrize("container", [list, tuple])
def test_depth_beyond_what_the_interpreter_bears_is_refused_too(container):
    with pytest.raises(NotTransportable, match="nested more than 200 levels") as caught:
        encode(nested(100_000, container))
    assert len(str(caught.value)) < 250, "both ends of the path, not each of its steps"


def test_count_is_refused_from_the_limit_on():
    limits = Limits(items=10)
    assert encode(list(range(10)), limits=limits)
    with pytest.raises(NotTransportable, match="11 values; 10 are allowed"):
        encode(list(range(11)), limits=limits)


@pytest.mark.parametrize("value", [datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")), date.max, uuid4(), time.max])
def test_the_header_of_a_small_value_is_small(value):
    assert len(encode(value).header) < 40


def test_a_home_made_time_zone_is_refused():
    class Mars(type(UTC).__mro__[1]):
        pass

    with pytest.raises(NotTransportable, match="use a zoneinfo"):
        encode(datetime(2024, 1, 1, tzinfo=Mars()))
