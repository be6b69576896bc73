"""Exceptions: the same class where the caller may know it, a RemoteError elsewhere, the worker's traceback in sight."""

import json
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.wire.codec import CodecError, FunctionTypes, NoTypes, decode, decode_exception, encode, encode_exception
from fabric.wire.errors import RemoteError


class Diverged(Exception):
    def __init__(self, loss, *, step):
        if step == 13:
            raise AssertionError("must not run again")
        super().__init__(f"loss {loss}")
        self.loss = loss
        self.step = step


class Forged(OSError):
    def __new__(cls, *args):
        if args == ("remote",):
            raise AssertionError("must not run again")
        return super().__new__(cls, *args)


def function(): ...


OWN = FunctionTypes(function)
REMOTE = 'Traceback (most recent call last):\n  File "train.py", line 7, in train\nValueError: bad\n'


def there_and_back(exception, types=OWN, text=REMOTE):
    return decode_exception(*encode_exception(exception, text), types=types)


@pytest.mark.parametrize(
    "exception",
    [
        *(ValueError("bad", 3), KeyError("k"), ZeroDivisionError(), FileNotFoundError(2, "no", "f.txt"), MemoryError()),
        *(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), StopIteration(3), ExceptionGroup("g", [ValueError(1)])),
    ],
)
def test_a_builtin_exception_comes_back_as_itself(exception):
    back = there_and_back(exception, NoTypes())
    assert type(back) is type(exception)
    assert str(back) == str(exception)
    assert getattr(back, "errno", None) == getattr(exception, "errno", None)


def test_an_exception_of_the_functions_module_comes_back_with_its_attributes_and_without_running_init():
    raised = Diverged(3.5, step=12)
    raised.step = 13
    back = there_and_back(raised)
    assert type(back) is Diverged
    assert (str(back), back.loss, back.step) == ("loss 3.5", 3.5, 13)


def test_a_users_new_does_not_run():
    forged = encode_exception(Forged("other"), "").header.replace(b"\xa5other", b"\xa6remote")
    assert decode_exception(forged, [], types=OWN).args == ("remote",)


def test_an_exception_of_an_unknown_class_becomes_a_remote_error():
    back = there_and_back(json.JSONDecodeError("bad", "{", 1))
    assert type(back) is RemoteError
    assert back.type_name == "json.decoder.JSONDecodeError"
    assert (back.message, back.traceback) == ("bad: line 1 column 2 (char 1)", REMOTE)


@pytest.mark.parametrize("exception", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_no_worker_can_end_the_callers_process(exception):
    back = there_and_back(exception)
    assert type(back) is RemoteError
    assert back.type_name == type(exception).__name__


@pytest.mark.parametrize("exception", [ValueError("bad"), json.JSONDecodeError("bad", "", 0)])
def test_the_workers_traceback_is_printed(exception):
    printed = "".join(traceback.format_exception(there_and_back(exception)))
    assert 'Traceback on the worker:\nTraceback (most recent call last):\n  File "train.py", line 7' in printed


def test_the_notes_of_the_worker_stay_in_its_traceback():
    raised = ValueError("bad")
    raised.add_note("while training")
    assert there_and_back(raised).__notes__ == [f"Traceback on the worker:\n{REMOTE.rstrip()}"]


def test_without_a_traceback_there_is_no_note():
    assert not hasattr(there_and_back(ValueError(), text=""), "__notes__")


class Rude:
    def __repr__(self):
        raise ValueError


class Mute(Exception):
    def __str__(self):
        raise ValueError


def test_arguments_that_do_not_travel_are_told_in_words():
    raised = Diverged(1, step=1)
    raised.args = (function, Rude(), 3)
    raised.loss, raised.step = function, 4
    back = there_and_back(raised)
    assert back.args[0].startswith("<function function at")
    assert back.args[1:] == ("<Rude, whose __repr__ raised ValueError>", 3)
    assert not hasattr(back, "loss")
    assert back.step == 4


def test_an_exception_without_words_still_arrives():
    assert str(there_and_back(Mute(), NoTypes()).message) == "(no message: its __str__ raised ValueError)"


def test_exceptions_are_values_too():
    first, second = decode(*encode([ValueError("a"), {"b": KeyError(1)}]), types=NoTypes())
    assert (type(first), first.args) == (ValueError, ("a",))
    assert repr(second["b"]) == "KeyError(1)"


def test_a_value_is_not_taken_for_an_exception():
    with pytest.raises(CodecError, match="a list where an exception was announced"):
        decode_exception(*encode([1]), types=NoTypes())


@settings(deadline=None)
@given(st.sampled_from([ValueError, OSError, KeyError, UnicodeError, ImportError]), st.lists(st.integers() | st.text()))
def test_any_arguments_come_back(cls, arguments):
    exception = cls(*arguments)
    assert there_and_back(exception).args == exception.args
