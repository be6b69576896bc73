"""Checkpoints on their way back into a lease's child: calls that wait for them, and the frames that bring them."""

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from fabric.agent.dialect import WANTED
from fabric.agent.lease_spec import LeaseSpec
from fabric.agent.tasks import Call, Key, size_of
from fabric.wire import channel
from fabric.wire.frames import Buffer

_log = structlog.get_logger(__name__)

MAX_BYTES = 10 << 30
"""Checkpoints of a lease that wait for their tasks have at most this size together: all that a customer may store."""


class Restoring:
    """Kept until the task is over, and sent with its call: the child of this moment may die before it begins."""

    def __init__(self, spec: LeaseSpec, forward: Callable[[list[Any]], bool]) -> None:
        self._spec = spec
        self._forward = forward
        self.waiting_bytes = 0
        self._kept_bytes = self._coming_bytes = 0
        self._waiting: list[tuple[Call, set[Key]]] = []
        self._pieces: list[tuple[list[Any], bytes]] = []
        self._frames: dict[Key, list[tuple[list[Any], bytes]]] = {}

    def ask(self, call: Call, keys: Sequence[Key]) -> bool:
        """Let the call wait until the agent has said what there is of each of these; False when there is no agent."""
        known = {key for _, awaited in self._waiting for key in awaited}
        if not all(self._want(key) for key in keys if key not in known):
            return False
        self._waiting.append((call, set(keys)))
        self.waiting_bytes += size_of(call)
        return True

    def ask_again(self) -> None:
        """The agent is another one."""
        for key in {key for _, awaited in self._waiting for key in awaited}:
            self._want(key)

    def add_piece(self, digest: str, body: Buffer) -> None:
        """Of the checkpoint that `arrived` will name."""
        self._coming_bytes += len(body)
        if self._kept_bytes + self._coming_bytes <= MAX_BYTES:
            self._pieces.append(([channel.PIECE, digest], bytes(body)))

    def arrived(self, run: str, task: int, manifest: Buffer | None) -> list[Call]:
        """The newest checkpoint of a task, None for none; returns the calls that may begin now."""
        self.forget((run, task))
        if manifest is not None and self._kept_bytes + self._coming_bytes <= MAX_BYTES:
            self._frames[run, task] = [*self._pieces, ([channel.CHECKPOINT, run, task], bytes(manifest))]
            self._kept_bytes += self._coming_bytes
        elif manifest is not None:
            _log.warning("a checkpoint was too large beside the others of its lease", run=run, task=task)
        self._pieces, self._coming_bytes = [], 0
        begin: list[Call] = []
        for call, waiting in list(self._waiting):
            if (run, task) not in waiting:
                continue
            waiting.discard((run, task))
            if not waiting:
                self._waiting.remove((call, waiting))
                self.waiting_bytes -= size_of(call)
                begin.append(call)
        return begin

    def frames(self, run: str, task: int) -> list[tuple[list[Any], bytes]]:
        """What goes to the child before the task's call."""
        return self._frames.get((run, task), [])

    def forget(self, key: Key) -> None:
        """The task is over."""
        frames = self._frames.pop(key, [])
        self._kept_bytes -= sum(len(piece) for _, piece in frames[:-1])

    def _want(self, key: Key) -> bool:
        return self._forward([WANTED, self._spec.lease, self._spec.generation, *key])
