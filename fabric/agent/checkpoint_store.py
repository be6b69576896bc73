"""Checkpoints between the nodes and the control plane: pieces up as they come, in their order, and down again.

The agent looks into none of them. A checkpoint counts once its manifest is stored, which names pieces that are there.
"""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from fabric.agent.work import BlobError, Blobs
from fabric.wire.checkpoints import ManifestError, read_manifest

_Send = Callable[..., None]


class CheckpointStore:
    """All checkpoints under way."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._last: dict[str, asyncio.Task[None]] = {}

    def keep(self, lease: str, run: str, task: int, body: bytes, *, manifest: bool, told: _Send) -> None:
        """Store a piece, or the manifest that makes it a checkpoint; `told` hears "" or what went wrong.

        What comes from one lease is stored in its order; after a failure what was sent before it was known is refused.
        """
        before = self._last.get(lease)
        self._last[lease] = asyncio.ensure_future(self._keep(before, run, task, body, manifest=manifest, told=told))
        self._last[lease].add_done_callback(lambda done: self._forget(lease, done))

    async def fetch(self, run: str, task: int) -> tuple[list[tuple[str, bytes]], bytes] | None:
        """(pieces, manifest) of the newest checkpoint; None when there is none.

        Raises:
            BlobError: it is there and cannot be had. ManifestError: it is malformed.
        """
        known = await self._blobs.checkpoint(run, task)
        if not known:
            return None
        manifest = await self._blobs.piece(run, task, known)
        wanted = dict.fromkeys(digest for _, digests in read_manifest(manifest) for digest in digests)
        return [(digest, await self._blobs.piece(run, task, digest)) for digest in wanted], manifest

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
                pieces = list(dict.fromkeys(digest for _, digests in read_manifest(body) for digest in digests))
                await self._blobs.put_checkpoint(run, task, hashlib.sha256(body).hexdigest(), pieces)
        except (BlobError, ManifestError) as error:
            told(str(error))
        else:
            told("")

    def _forget(self, lease: str, done: "asyncio.Task[None]") -> None:
        if self._last.get(lease) is done:
            del self._last[lease]
