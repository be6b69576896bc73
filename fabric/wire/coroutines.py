"""What an `async def` of a customer comes to where it runs: a coroutine has no value before somebody runs it."""

import asyncio
from collections.abc import Coroutine
from typing import Any


def settled(value: Any) -> Any:
    """What a function returned; a coroutine is run to its end first, in an event loop of its own."""
    return asyncio.run(value) if isinstance(value, Coroutine) else value
