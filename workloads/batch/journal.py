"""What a batch has done so far, on disk beside its output: one line per finished row, in the order of rows.

A line counts once it is whole; what a crash cut off is taken away when the journal is opened again.
"""

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class JournalMismatch(ValueError):
    """The journal belongs to another data set."""


class Journal:
    """Append only. `done` is how many rows are in it, `failed` how many of them with an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = self.failed = 0
        self._digests: list[str] = []
        whole = self._read()
        self._file = path.open("ab")
        self._file.truncate(whole)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def check(self, number: int, row: Any) -> None:
        """That a row which is done is the one that stands here.

        Raises:
            JournalMismatch: says which row is another one.
        """
        if self._digests[number] != digest_of(row):
            raise JournalMismatch(
                f"{self.path} was begun with other inputs: row {number} is not the one that it has; "
                "give another output, or remove the journal to begin anew"
            )

    def add(self, row: Any, outcome: dict[str, Any]) -> None:
        """The next row is done; durable before this returns."""
        line = json.dumps({"digest": digest_of(row), **outcome}, default=_plain) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fdatasync(self._file.fileno())
        self.done += 1
        self.failed += "error" in outcome

    def write_output(self, output: Path) -> None:
        """All outcomes in the order of rows; the output appears whole or not at all. The journal is gone then."""
        part = output.with_name(output.name + ".part")
        with part.open("w", encoding="utf-8") as lines, self.path.open(encoding="utf-8") as done:
            for number, line in enumerate(done):
                outcome = json.loads(line)
                del outcome["digest"]
                lines.write(json.dumps({"row": number, **outcome}) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        part.replace(output)
        self.path.unlink()

    def _read(self) -> int:
        """Where the last whole line ends."""
        whole = 0
        if not self.path.exists():
            return whole
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                outcome = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                outcome = None
            if outcome is None:
                break
            whole += len(line)
            self.done += 1
            self.failed += "error" in outcome
            self._digests.append(outcome["digest"])
        return whole


def digest_of(row: Any) -> str:
    """Names a row's content."""
    text = json.dumps(row, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """NumPy's and torch's values as JSON has them.

    Raises:
        TypeError: it is no such value.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not JSON; return numbers, texts, lists or dicts")
