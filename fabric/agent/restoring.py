"""Checkpoints on their way back into a lease's child: calls that wait for them, and the frames that bring them."""

from typing import Any

from fabric.agent.tasks import Call, Key
from fabric.wire import channel
from fabric.wire.frames import Buffer


class Restoring:
    """Kept until the task is over, and sent with its call: the child of this moment may die before it begins."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Call, set[Key]]] = []
        self._pieces: list[tuple[list[Any], bytes]] = []
        self._frames: dict[Key, list[tuple[list[Any], bytes]]] = {}

    def wait(self, call: Call, keys: set[Key]) -> None:
        """The call begins when of each of these the agent has said what there is."""
        self._waiting.append((call, keys))

    def add_piece(self, digest: str, body: Buffer) -> None:
        """Of the checkpoint that `arrived` will name."""
        self._pieces.append(([channel.PIECE, digest], bytes(body)))

    def arrived(self, run: str, task: int, manifest: Buffer | None) -> list[Call]:
        """The newest checkpoint of a task, None for none; returns the calls that may begin now."""
        if manifest is not None:
            self._frames[run, task] = [*self._pieces, ([channel.CHECKPOINT, run, task], bytes(manifest))]
        self._pieces = []
        begin: list[Call] = []
        for call, waiting in list(self._waiting):
            if (run, task) not in waiting:
                continue
            waiting.discard((run, task))
            if not waiting:
                self._waiting.remove((call, waiting))
                begin.append(call)
        return begin

    def frames(self, run: str, task: int) -> list[tuple[list[Any], bytes]]:
        """What goes to the child before the task's call."""
        return self._frames.get((run, task), [])

    def forget(self, key: Key) -> None:
        """The task is over."""
        self._frames.pop(key, None)
