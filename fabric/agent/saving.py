"""Checkpoints on their way from a lease's child to the agent: few at a time, whatever the child sends.

An honest child waits for the agent's answer when four pieces are under way. One that does not would fill the memory of
node and agent, which all leases share.
"""

from collections.abc import Callable
from typing import Any

from fabric.agent.dialect import CHECKPOINT, PIECE
from fabric.agent.lease_spec import LeaseSpec
from fabric.wire import channel
from fabric.wire.frames import Buffer, FrameError

MAX_UNANSWERED = 16
MAX_PIECE_BYTES = 4 << 20
MAX_MANIFEST_BYTES = 32 << 20


class Saving:
    """What one lease sent and the agent has not answered. `forward` takes a frame to the agent; False without one."""

    def __init__(self, spec: LeaseSpec, forward: Callable[[list[Any], Buffer], bool]) -> None:
        self._spec = spec
        self._forward = forward
        self.unanswered = 0

    def keep(self, kind: str, run: str, task: int, number: int, body: Buffer) -> None:
        """Send a piece or a manifest on.

        Raises:
            FrameError: too much at once, or too large.
        """
        what, most = (PIECE, MAX_PIECE_BYTES) if kind == channel.PIECE else (CHECKPOINT, MAX_MANIFEST_BYTES)
        if memoryview(body).nbytes > most:
            raise FrameError(f"a {kind} of {memoryview(body).nbytes} bytes; at most {most}")
        if self.unanswered >= MAX_UNANSWERED:
            raise FrameError(f"{self.unanswered} pieces of checkpoints are under way; an honest child waits for four")
        if self._forward([what, self._spec.lease, self._spec.generation, run, task, number], body):
            self.unanswered += 1

    def answered(self) -> None:
        self.unanswered = max(0, self.unanswered - 1)

    def forget(self) -> bool:
        """The agent is another one: it answers nothing that was sent before. Whether something was under way."""
        lost, self.unanswered = self.unanswered > 0, 0
        return lost
