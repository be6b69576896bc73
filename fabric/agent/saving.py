"""Checkpoints on their way from a lease's child to the agent: few at a time, whatever the child sends. Pure.

An honest child waits for the agent's answer when four pieces are under way. One that does not would fill the memory of
node and agent, which all leases share.
"""

from fabric.wire import channel
from fabric.wire.frames import Buffer, FrameError

MAX_UNANSWERED = 16
MAX_PIECE_BYTES = 4 << 20
MAX_MANIFEST_BYTES = 32 << 20


class Saving:
    """What one lease sent and the agent has not answered."""

    def __init__(self) -> None:
        self._unanswered = 0

    def check(self, kind: str, body: Buffer) -> None:
        """Whether the child may send this now.

        Raises:
            FrameError: too much at once, or too large.
        """
        most = MAX_PIECE_BYTES if kind == channel.PIECE else MAX_MANIFEST_BYTES
        if memoryview(body).nbytes > most:
            raise FrameError(f"a {kind} of {memoryview(body).nbytes} bytes; at most {most}")
        if self._unanswered >= MAX_UNANSWERED:
            raise FrameError(f"{self._unanswered} pieces of checkpoints are under way; an honest child waits for four")

    def sent(self) -> None:
        self._unanswered += 1

    def answered(self) -> None:
        self._unanswered = max(0, self._unanswered - 1)

    def forget(self) -> None:
        """The agent is another one: it answers nothing that was sent before."""
        self._unanswered = 0
