"""`fabric run FILE.py::FUNCTION ARGUMENTS`."""

import sys

import pytest

from fabric.client.targets import is_function, load_function, read_arguments
from fabric.wire.errors import InvalidRequest


@pytest.fixture
def app_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "target_app.py"
    path.write_text(
        "import fabric\n"
        "def train(cfg, lr=0.1, name: str = ''): return cfg, lr, name\n"
        "@fabric.function(gpu='H100')\ndef embed(x): return x\n"
    )
    yield path
    sys.modules.pop("target_app", None)


def test_a_function_of_a_file_is_told_from_a_program():
    assert is_function("app.py::train")
    assert not is_function("train.py")
    assert not is_function("a::b")


def test_a_plain_function_is_loaded_without_keywords(app_file):
    function, keywords = load_function(f"{app_file}::train")
    assert (function("c"), keywords) == (("c", 0.1, ""), {})


def test_a_decorated_function_brings_its_keywords(app_file):
    function, keywords = load_function(f"{app_file}::embed")
    assert (function(1), keywords) == (1, {"gpu": "H100"})


def test_what_does_not_exist_is_refused_with_what_does(app_file):
    with pytest.raises(InvalidRequest, match="no function 'trian'; it has: train, embed"):
        load_function(f"{app_file}::trian")
    with pytest.raises(InvalidRequest, match="no file"):
        load_function("missing.py::train")
    app_file.write_text("1 / 0")
    with pytest.raises(InvalidRequest, match="ZeroDivisionError"):
        load_function(f"{app_file}::train")


def test_words_become_arguments():
    def train(cfg, *, lr=0.1, name: str = "", fast=False, steps=1):
        return cfg, lr, name, fast, steps

    words = ["x", "--lr", "0.5", "--name=7", "--steps", "-3", "--fast"]
    args, kwargs = read_arguments(train, words)
    assert (args, kwargs) == (["x"], {"lr": 0.5, "name": "7", "steps": -3, "fast": True})


def test_arguments_that_the_function_does_not_take_are_refused():
    with pytest.raises(InvalidRequest, match=r"train\(cfg\) cannot be called like this"):
        read_arguments(_train, ["a", "--lr", "1"])


def _train(cfg):
    return cfg


_train.__name__ = "train"
