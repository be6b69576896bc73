"""Live streams of the ledger as server-sent events: what is new, in order, each once, from where the asker left off.

An event's id is its number: `Last-Event-ID` (or `after=`) goes on behind it, so that nothing is missed or comes twice.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import anyio
from anyio import to_thread
from fastapi.responses import StreamingResponse

from fabric.wire.errors import ServiceError

MAX_OPEN = 256
"""Streams at once in one process: each asks the database once a second."""

PIECE = 500
_PAUSE_S, _KEEP_ALIVE_LOOKS = 1.0, 15


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; numbers grow."""

    number: int
    kind: str
    data: str


Look = Callable[[int], Sequence[Event]]
"""The next events behind a number, oldest first, at most `PIECE`."""


class Following:
    """The streams that are open."""

    def __init__(self) -> None:
        self.open = 0

    def answer(self, look: Look, after: int, count: int | None) -> StreamingResponse:
        """A stream of what `look` finds behind `after`; with `count` it ends after so many events.

        Raises:
            ServiceError: too many are open.
        """
        if self.open >= MAX_OPEN:
            raise ServiceError(f"{MAX_OPEN} streams are open; ask again later, or page with `cursor`", retryable=True)
        stream = self._events(look, after, count)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _events(self, look: Look, after: int, count: int | None) -> AsyncIterator[str]:
        self.open += 1
        try:
            quiet, left = 0, count
            while left is None or left > 0:
                found = (await to_thread.run_sync(look, after))[:left]
                for event in found:
                    yield f"id: {event.number}\nevent: {event.kind}\ndata: {event.data}\n\n"
                    after = event.number
                left = None if left is None else left - len(found)
                quiet = 0 if found else quiet + 1
                if quiet == _KEEP_ALIVE_LOOKS:
                    quiet = 0
                    yield ": still here\n\n"
                if not found:
                    await anyio.sleep(_PAUSE_S)
            yield f"event: end\ndata: {json.dumps({'after': after})}\n\n"
        finally:
            self.open -= 1
