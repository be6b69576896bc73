"""Checkpoints inside the sandbox child: a folder per run and task, sent to the node in pieces, and put back from them.

A checkpoint is a manifest (which file consists of which pieces) and pieces of at most 4 MiB, each named by its SHA-256.
Only pieces that are new travel. The node says in the shared page how far it has stored what it was sent.
"""

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fabric.agent.page import Page
from fabric.wire import channel
from fabric.wire.checkpoints import pack_manifest, read_manifest
from fabric.wire.frames import Buffer

PIECE_BYTES = 4 << 20
AHEAD = 4
"""So many pieces may be under way: the node holds no more of a checkpoint than that."""
LOOK_S = 0.005

Key = tuple[str, int]
Send = Callable[[Sequence[Any], Sequence[Buffer]], None]


class CheckpointFolder:
    """The folders of this child. `send` may be called from any thread."""

    def __init__(self, page: Page, send: Send) -> None:
        self._page = page
        self._send = send
        self._lock = threading.Lock()
        self._base: Path | None = None
        self._known: set[str] = set()
        self._restored: dict[str, bytes] = {}
        self._sent = 0
        self._used: set[Key] = set()

    def of(self, run: str, task: int) -> Path:
        """The folder; it is there."""
        if self._base is None:
            self._base = Path(tempfile.mkdtemp(prefix="fabric-checkpoint-"))
        folder = self._base / f"{run}-{task}"
        folder.mkdir(exist_ok=True)
        self._used.add((run, task))
        return folder

    def is_used(self, run: str, task: int) -> bool:
        return (run, task) in self._used

    def store(self, run: str, task: int, attempt: int) -> None:
        """Send what the folder holds; returns when all of it is durable, as one whole.

        Raises:
            OSError: it was refused, with the reason.
        """
        with self._lock:
            files = [self._file(run, task, attempt, path) for path in _files(self.of(run, task))]
            self._put([channel.CHECKPOINT, run, task, attempt], pack_manifest(files))
            self._wait(self._sent)

    def take_piece(self, digest: str, body: Buffer) -> None:
        """A piece of a checkpoint that is being put back."""
        self._restored[digest] = bytes(body)
        self._known.add(digest)

    def restore(self, run: str, task: int, manifest: Buffer) -> None:
        """Write the files of a manifest, whose pieces came before it.

        Raises:
            ManifestError: it is malformed, or names a place outside the folder; nothing is written.
        """
        folder = self.of(run, task)
        for name, digests in read_manifest(bytes(manifest)):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for digest in digests:
                    file.write(self._restored[digest])
        self._restored.clear()

    def _file(self, run: str, task: int, attempt: int, path: Path) -> tuple[str, list[str]]:
        digests: list[str] = []
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                digest = hashlib.sha256(piece).hexdigest()
                digests.append(digest)
                if digest not in self._known:
                    self._put([channel.PIECE, run, task, attempt], piece)
                    self._known.add(digest)
        return str(path.relative_to(self.of(run, task))), digests

    def _put(self, header: list[Any], body: bytes) -> None:
        self._sent += 1
        self._send([*header, self._sent], [body])
        self._wait(self._sent - AHEAD)

    def _wait(self, number: int) -> None:
        while self._page.stored < number:
            problem = self._page.problem
            if problem:
                self._known.clear()
                self._page.store(self._sent)
                raise OSError(f"the checkpoint was not stored: {problem}")
            time.sleep(LOOK_S)


def _files(folder: Path) -> list[Path]:
    return sorted(
        Path(root) / name
        for root, _, names in os.walk(folder)
        for name in names
        if (Path(root) / name).is_file() and not (Path(root) / name).is_symlink()
    )
