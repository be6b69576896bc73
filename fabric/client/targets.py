"""What follows `fabric run`: `app.py::train --cfg x` as a function with arguments."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fabric.client.functions import Function
from fabric.wire.errors import InvalidRequest


def is_function(word: str) -> bool:
    """Whether a word names a function of a file rather than a program."""
    return ".py::" in word


def load_function(target: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of ``file.py::name``, and the keywords that `@fabric.function` gave it.

    Raises:
        InvalidRequest: no such file, no such function, or the file cannot be imported.
    """
    file, _, name = target.partition("::")
    path = Path(file).resolve()
    if not path.is_file():
        raise InvalidRequest(f"there is no file {file}")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018 - a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidRequest(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        names = ", ".join(n for n, v in vars(module).items() if inspect.isfunction(v) or isinstance(v, Function))
        raise InvalidRequest(f"{file} has no function {name!r}; it has: {names or 'none'}")
    return (found.local_function, dict(found.keywords)) if isinstance(found, Function) else (found, {})


def read_arguments(function: Callable[..., Any], words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments from `1 --lr 0.1 --name=x --fast`; checked against the function's signature.

    A word that is a Python literal becomes its value, unless the parameter is annotated `str`; a flag alone is True.

    Raises:
        InvalidRequest: the function does not take these arguments.
    """
    signature = inspect.signature(function)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word == "--":
            args.append(_value(word, None))
            continue
        name, given, text = word[2:].replace("-", "_").partition("=") if "=" not in word else _split(word)
        if not given and waiting and not waiting[0].startswith("--"):
            given, text = "=", waiting.pop(0)
        parameter = signature.parameters.get(name)
        kwargs[name] = _value(text, parameter.annotation if parameter is not None else None) if given else True
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(function, "__name__", "the function")
        raise InvalidRequest(f"{name}{signature} cannot be called like this: {error}") from None
    return args, kwargs


def _split(word: str) -> tuple[str, str, str]:
    name, _, text = word[2:].partition("=")
    return name.replace("-", "_"), "=", text


def _value(text: str, annotation: Any) -> Any:
    if annotation in (str, "str"):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
