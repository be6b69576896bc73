import copy
import pickle

import pytest

from fabric.wire.record import Record

POINT = Record("app", "Point", {"x": 1, "keys": 2})


def test_fields_are_read_as_attributes_or_by_name():
    assert (POINT.x, POINT["keys"], dict(POINT)) == (1, 2, {"x": 1, "keys": 2})
    assert POINT._type_name == "app.Point"
    assert repr(POINT) == "Record('app.Point', x=1, keys=2)"


def test_an_unknown_field_names_the_known_ones():
    with pytest.raises(AttributeError, match=r"app\.Point has no field 'y'; it has: x, keys"):
        _ = POINT.y


def test_a_record_cannot_be_changed():
    with pytest.raises(AttributeError, match="cannot be changed"):
        POINT.x = 2
    with pytest.raises(AttributeError, match="cannot be changed"):
        del POINT.x
    assert POINT.x == 1


def test_records_are_equal_when_type_and_fields_are():
    same = Record("app", "Point", {"x": 1, "keys": 2})
    assert same == POINT
    assert hash(POINT) == hash(same)
    assert Record("app", "Pixel", {"x": 1, "keys": 2}) != POINT
    assert Record("app", "Point", {"x": 2, "keys": 2}) != POINT


def test_a_record_survives_copy_and_pickle():
    assert pickle.loads(pickle.dumps(POINT)) == POINT
    assert copy.deepcopy(POINT) == POINT
