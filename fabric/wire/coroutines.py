"""What an `async def` of a customer comes to where it runs: a coroutine has no value before somebody runs it."""

import asyncio
from collections.abc import Coroutine
from typing import Any


def settled(value: Any) -> Any:
    """What a function returned; a coroutine is run to its end first, in an event loop of its own.

    The thread's own loop stays what it was: `asyncio.run` would leave none to what runs there afterwards.
    """
    if not isinstance(value, Coroutine):
        return value
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(value)
