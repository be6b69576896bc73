"""Checkpoints between the nodes and the control plane: pieces up as they come, in their order, and down again.

The agent looks into none of them. A checkpoint counts once its manifest is stored, which names pieces that are there.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fabric.agent.work import BlobError, Blobs
from fabric.wire.checkpoints import ManifestError, read_manifest

_Send = Callable[..., None]


class CheckpointStore:
    """All checkpoints under way."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._last: dict[str, asyncio.Task[None]] = {}
        self._turns: dict[str, tuple[asyncio.Lock, set[object]]] = {}

    def keep(self, lease: str, run: str, task: int, body: bytes, *, manifest: bool, told: _Send) -> None:
        """Store a piece, or the manifest that makes it a checkpoint; `told` hears "" or what went wrong.

        What comes from one lease is stored in its order; after a failure what was sent before it was known is refused.
        """
        before = self._last.get(lease)
        self._last[lease] = asyncio.ensure_future(self._keep(before, run, task, body, manifest=manifest, told=told))
        self._last[lease].add_done_callback(lambda done: self._forget(lease, done))

    @contextlib.asynccontextmanager
    async def alone(self, lease: str) -> AsyncIterator[None]:
        """One checkpoint of a lease is fetched at a time; the others wait."""
        turn, waiting = self._turns.setdefault(lease, (asyncio.Lock(), set()))
        me = object()
        waiting.add(me)
        try:
            async with turn:
                yield
        finally:
            waiting.discard(me)
            if not waiting:
                self._turns.pop(lease, None)

    async def manifest(self, run: str, task: int) -> bytes | None:
        """Of the newest checkpoint; None when there is none. Raises BlobError when it cannot be had."""
        known = await self._blobs.checkpoint(run, task)
        return await self._blobs.piece(run, task, known) if known else None

    @staticmethod
    def digests(manifest: bytes) -> list[str]:
        """The pieces of a manifest, each once. Raises ManifestError when it is malformed."""
        return list(dict.fromkeys(digest for _, digests in read_manifest(manifest) for digest in digests))

    async def piece(self, run: str, task: int, digest: str) -> bytes:
        """Raises BlobError when it cannot be had."""
        return await self._blobs.piece(run, task, digest)

    async def stop(self) -> None:
        for task in list(self._last.values()):
            task.cancel()
        if self._last:
            await asyncio.wait(list(self._last.values()))

    async def _keep(self, before: Any, run: str, task: int, body: bytes, *, manifest: bool, told: _Send) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await self._blobs.put_piece(run, task, body)
            if manifest:
                await self._blobs.put_checkpoint(run, task, hashlib.sha256(body).hexdigest(), self.digests(body))
        except (BlobError, ManifestError) as error:
            told(str(error))
        else:
            told("")

    def _forget(self, lease: str, done: "asyncio.Task[None]") -> None:
        if self._last.get(lease) is done:
            del self._last[lease]
