"""Sends the journal to the agent as it grows: at once when a lease opens or closes, else a little later, in bulk."""

import asyncio

from fabric.agent.dialect import METER
from fabric.agent.journal import Journal
from fabric.agent.stream import FrameStream

DELAY_S = 0.03
"""How long an event may wait for others before it is sent."""

_CHUNK_BYTES = 1 << 20
_UNSENT_BYTES = 16 << 20


class Feed:
    """One agent's reading of the journal from an offset on."""

    def __init__(self, journal: Journal, stream: FrameStream, offset: int) -> None:
        self._journal = journal
        self._stream = stream
        self._offset = offset
        self._timer: asyncio.TimerHandle | None = None
        self.flush()

    def notify(self, *, urgent: bool) -> None:
        """Something was appended."""
        if urgent:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_S, self.flush)

    def flush(self) -> None:
        """Send everything there is, unless the agent is far behind: then later."""
        self.stop()
        while self._offset < self._journal.end and self._stream.open:
            if self._stream.unsent_bytes > _UNSENT_BYTES:
                self.notify(urgent=False)
                return
            start = self._offset
            records, self._offset = self._journal.read(start, _CHUNK_BYTES)
            self._stream.send([METER, start, records])

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
