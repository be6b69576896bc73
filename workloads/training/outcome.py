"""What comes of a training: what rank 0 answers, what the caller gets, and what went wrong."""

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fabric


class RankLost(RuntimeError):
    """A rank is gone, did not come, or did not take part; the message names it. All begin anew from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An exception of the loop, on any rank. It is answered and not raised: to try the same again would fail again."""

    rank: int
    type_name: str
    message: str
    traceback: str

    def as_json(self) -> dict[str, Any]:
        return {"rank": self.rank, "type": self.type_name, "message": self.message, "traceback": self.traceback}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "Failed":
        return cls(members["rank"], members["type"], members["message"], members["traceback"])

    def error(self, world_size: int) -> BaseException:
        """The exception to raise at the caller's: its own class where that is Python's or the fabric's."""
        known = getattr(builtins, self.type_name, None) or getattr(fabric, self.type_name, None)
        where = f"on rank {self.rank} of {world_size}:\n{self.traceback}"
        if self.type_name == "OutOfMemoryError":  # torch's, of a GPU
            error: BaseException = fabric.OutOfMemory(self.message)
            error.reason = type(error.reason).OOM
        elif isinstance(known, type) and issubclass(known, Exception):
            try:
                error = known(self.message)
            except TypeError:
                error = self._remote()
        else:
            error = self._remote()
        error.add_note(where)
        return error

    def _remote(self) -> fabric.RemoteError:
        return fabric.RemoteError(self.message, type_name=self.type_name, traceback=self.traceback)


@dataclass(frozen=True, slots=True)
class Trained:
    """A training that is over.

    Attributes:
        value: what the loop returned on rank 0.
        metrics: its records in order; see `workloads.training.metrics`.
        stopped: why it ended before its loop would have, such as "budget"; "" when it did not.
        world_size: ranks of the last attempt.
        attempts: how often it was begun.
        run: its id.
        cost: of the run, all attempts together.
    """

    value: Any
    metrics: tuple[Mapping[str, Any], ...]
    stopped: str
    world_size: int
    attempts: int
    run: str = ""
    cost: fabric.Cost | None = field(default=None, compare=False)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The record with the lowest loss; None when none has one."""
        told = [record for record in self.metrics if record.get("loss") is not None]
        return min(told, key=lambda record: record["loss"], default=None)

    def plot(self, path: str | Path) -> Path:
        """Write the curves as one HTML file that any browser opens."""
        from workloads.training.plot import page

        target = Path(path)
        target.write_text(page(self), encoding="utf-8")
        return target
