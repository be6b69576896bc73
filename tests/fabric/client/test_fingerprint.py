"""What is packed once stays packed only while nothing that it holds could have changed."""

import pickle

import pytest

from fabric.client.fingerprint import fingerprint
from fabric.client.pack import pack_function

SCRIPT = """
FACTOR = 2
NAMES = ["mutable"]

def scaled(value: int, add: int = 1, *, times: int = 1) -> int:
    return (value * FACTOR + add) * times

def listed():
    return NAMES[0]

def an_attribute():
    return an_attribute.word

def closing_over(value):
    return lambda: value
"""


@pytest.fixture
def script():
    """The names of a user's script, whose functions travel by value."""
    names = {"__name__": "__main__"}
    exec(SCRIPT, names)
    return names


def arrived(function, *args):
    return pickle.loads(pack_function(function).code)(*args)


def test_a_function_of_plain_values_is_packed_once(script):
    scaled = script["scaled"]
    assert pack_function(scaled) is pack_function(scaled)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda script: script.update(FACTOR=10), 51),
        (lambda script: setattr(script["scaled"], "__defaults__", (7,)), 17),
        (lambda script: setattr(script["scaled"], "__kwdefaults__", {"times": 3}), 33),
        (lambda script: script["scaled"].__kwdefaults__.update(times=4), 44),
        (lambda script: setattr(script["scaled"], "__code__", (lambda value, add: value).__code__), 5),
        (lambda script: script.pop("FACTOR"), NameError),
    ],
)
def test_whatever_changes_in_a_function_arrives(script, change, answer):
    scaled = script["scaled"]
    assert arrived(scaled, 5) == 11
    change(script)
    if isinstance(answer, int):
        assert arrived(scaled, 5) == answer
    else:
        with pytest.raises(answer):
            arrived(scaled, 5)


def test_a_changed_closure_arrives(script):
    function = script["closing_over"](1)
    assert arrived(function) == 1
    function.__closure__[0].cell_contents = 2
    assert arrived(function) == 2


def test_what_could_change_in_place_is_packed_each_time(script):
    listed = script["listed"]
    assert fingerprint(listed) is None
    assert arrived(listed) == "mutable"
    script["NAMES"][0] = "changed"
    assert arrived(listed) == "changed"


def test_attributes_methods_and_classes_have_no_fingerprint(script):
    script["an_attribute"].word = 1
    assert fingerprint(script["an_attribute"]) is None
    assert fingerprint([].append) is None
    assert fingerprint(int) is None
    assert fingerprint(script["closing_over"]([1])) is None
    assert fingerprint(script["closing_over"](1)) is not None


def test_an_empty_cell_has_no_fingerprint():
    def outer():
        def inner():
            return later

        found = fingerprint(inner)
        later = 1
        return found, fingerprint(inner), later

    before, after, _ = outer()
    assert before is None
    assert after is not None
