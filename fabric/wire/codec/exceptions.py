"""Exceptions across the wire: what is sent of one, and how it is raised again where the caller is.

Sent are class name, arguments, attributes, message and traceback. It is rebuilt as the same class only when that class
is a builtin or comes from where the caller's own types do, and then without running any ``__init__`` but a builtin's.
All else becomes a ``RemoteError``; so do SystemExit, KeyboardInterrupt and GeneratorExit, with which a worker could
end the caller's process. The worker's traceback hangs on the exception as a note: Python prints it below the message,
and ``raise … from`` and ``__cause__`` stay the caller's own.
"""

import builtins
from typing import Any

from fabric.wire.codec.sources import TypeSource
from fabric.wire.errors import RemoteError

NOTE_HEADING = "Traceback on the worker:"


def fields(exception: BaseException, traceback: str) -> list[Any]:
    """[module, qualname, arguments, attributes, message, traceback]."""
    cls = type(exception)
    attributes = {name: value for name, value in vars(exception).items() if name != "__notes__"}
    arguments = list(OSError.__reduce__(exception)[1]) if isinstance(exception, OSError) else list(exception.args)
    return [cls.__module__, cls.__qualname__, arguments, attributes, _message(exception), traceback]


def rebuild(described: Any, types: TypeSource) -> BaseException:
    """The exception of ``fields``, or a RemoteError that names it."""
    module, qualname, arguments, attributes, message, traceback = described
    cls = vars(builtins).get(qualname) if module == "builtins" else types.find(module, qualname)
    rebuilt = _instance(cls, arguments) if isinstance(cls, type) and issubclass(cls, Exception) else None
    if rebuilt is None:
        name = qualname if module == "builtins" else f"{module}.{qualname}"
        rebuilt = RemoteError(message, type_name=name, traceback=traceback)
    else:
        rebuilt.__dict__.update(attributes)
    if traceback:
        rebuilt.add_note(f"{NOTE_HEADING}\n{traceback.rstrip()}")
    return rebuilt


def _instance(cls: type[Exception], arguments: list[Any]) -> Exception | None:
    """An instance made by the nearest builtin class in the ancestry; None when that one does not take the arguments."""
    builtin = next(base for base in cls.__mro__ if vars(builtins).get(base.__name__) is base)
    try:
        exception = builtin.__new__(cls, *arguments)
        builtin.__init__(exception, *arguments)
    except (TypeError, ValueError):
        try:
            exception = Exception.__new__(cls)
        except TypeError:
            return None
        exception.args = tuple(arguments)
    return exception


def _message(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception as error:  # noqa: BLE001 - a user's __str__ may raise anything; the exception must still be told
        return f"(no message: its __str__ raised {type(error).__name__})"
