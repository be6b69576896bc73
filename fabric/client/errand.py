"""What a verb's first arguments and keywords come to: the callable that travels, and its arguments.

A command becomes a function that runs it; secrets and a folder to work in go along as baggage.
"""

import platform
from collections.abc import Callable, Sequence
from typing import Any

from fabric.client.baggage import Baggage, Carrying, Loaded
from fabric.client.command import run_command
from fabric.client.options import RunOptions
from fabric.client.trusted import Pickling
from fabric.client.workdir import pack_workdir
from fabric.wire.errors import InvalidRequest


def errand(
    function: Callable[..., Any] | None, args: Sequence[Any], options: RunOptions
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """The callable and its positional arguments; baggage goes with the arguments.

    Raises:
        InvalidRequest: neither a function nor a command, both, or what does not go with a function.
    """
    function, args = _job(function, args, options)
    baggage = baggage_of(options)
    return (function, args) if baggage is None else (Carrying(function), (baggage, tuple(args)))


def laden(function: Callable[..., Any], options: RunOptions) -> Callable[..., Any]:
    """The callable of a map, which takes its baggage along once for all calls.

    Raises:
        InvalidRequest: as `errand`.
    """
    function, _ = _job(function, (), options)
    baggage = baggage_of(options)
    return function if baggage is None else Loaded(function, baggage)


def _job(
    function: Callable[..., Any] | None, args: Sequence[Any], options: RunOptions
) -> tuple[Callable[..., Any], Sequence[Any]]:
    if options.command is not None:
        if function is not None or args:
            raise InvalidRequest("give a function with its arguments, or command=…, not both")
        return run_command, (options.command,)
    if function is None:
        raise InvalidRequest("there is nothing to run: give a function, or command=…")
    own = ".".join(platform.python_version_tuple()[:2])
    if options.env is not None and options.env.python not in (None, own):
        raise InvalidRequest(
            f"Env(python={options.env.python!r}) with a function of Python {own}: functions do not travel between "
            f"minors; leave python out, or give command=…"
        )
    return Pickling(function) if options.trust else function, args


def baggage_of(options: RunOptions) -> Baggage | None:
    """What the options have travel along; None for nothing."""
    if not options.secrets and options.workdir is None:
        return None
    packed = b"" if options.workdir is None else pack_workdir(options.workdir)
    secrets = {secret.name: secret.value for secret in options.secrets}
    return Baggage(secrets, packed, fresh=options.command is not None)
