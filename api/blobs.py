"""The content-addressed store: opaque bytes in one folder per customer, named by their SHA-256, with quota and expiry.

It never looks inside a blob. Bytes go to a temporary file, are flushed to disk, compared with their name, and renamed
into place in the transaction that writes their row; so a row without its file cannot be.
"""

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from anyio import to_thread
from sqlalchemy import func, select
from sqlmodel import Session, col

from api.database import Database
from api.errors import NotFound, PayloadTooLarge
from api.tables import BlobRow
from fabric.wire.clock import Clock
from fabric.wire.errors import InvalidRequest

KEPT_MS = 7 * 86_400_000


class Blobs:
    """Blobs of all customers below one folder."""

    def __init__(self, folder: Path, database: Database, clock: Clock, *, quota_bytes: int, max_bytes: int) -> None:
        self._folder = folder
        self._database = database
        self._clock = clock
        self._quota = quota_bytes
        self._max = max_bytes
        (folder / "incoming").mkdir(parents=True, exist_ok=True)
        for left_over in (folder / "incoming").iterdir():
            left_over.unlink()

    async def put(self, customer: str, sha256: str, chunks: AsyncIterator[bytes]) -> BlobRow:
        """Keep a blob for seven days from now; putting it again only renews that.

        Raises:
            InvalidRequest: the bytes have another digest.
            PayloadTooLarge: beyond the largest size or the customer's quota.
        """
        handle, name = tempfile.mkstemp(dir=self._folder / "incoming")
        try:
            with os.fdopen(handle, "wb") as file:
                size = await self._receive(file, sha256, chunks)
            return await to_thread.run_sync(self._keep, customer, sha256, size, Path(name))
        finally:
            await to_thread.run_sync(_remove, name)

    def find(self, session: Session, customer: str, sha256: str) -> BlobRow:
        """The blob's row.

        Raises:
            NotFound: this customer has no such blob, or no longer.
        """
        row = session.get(BlobRow, (customer, sha256))
        if row is None or row.expires_ms <= self._clock.now_ms():
            raise NotFound(
                f"there is no blob {sha256}; it was never stored here, or its {KEPT_MS // 86_400_000} days are over"
            )
        return row

    def path(self, customer: str, sha256: str) -> Path:
        return self._folder / hashlib.sha256(customer.encode()).hexdigest()[:32] / sha256[:2] / sha256

    def expire(self) -> int:
        """Remove what is past its time; returns how many."""
        with self._database.write() as session:
            due = list(
                session.scalars(select(BlobRow).where(col(BlobRow.expires_ms) <= self._clock.now_ms()).limit(500))
            )
            for row in due:
                self.path(row.customer, row.sha256).unlink(missing_ok=True)
                session.delete(row)
        return len(due)

    async def _receive(self, file: Any, sha256: str, chunks: AsyncIterator[bytes]) -> int:
        digest, size = hashlib.sha256(), 0
        async for chunk in chunks:
            size += len(chunk)
            if size > self._max:
                raise PayloadTooLarge(f"a blob may have {self._max} bytes; this one has more", max_bytes=self._max)
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != sha256:
            raise InvalidRequest(
                f"the {size} bytes received have SHA-256 {digest.hexdigest()}, not {sha256}; send them again"
            )
        await to_thread.run_sync(_flush, file)
        return size

    def _keep(self, customer: str, sha256: str, size: int, temporary: Path) -> BlobRow:
        now = self._clock.now_ms()
        with self._database.write() as session:
            row = session.get(BlobRow, (customer, sha256))
            if row is None:
                self._check_quota(session, customer, size)
                row = BlobRow(customer=customer, sha256=sha256, size_bytes=size, created_ms=now, expires_ms=0)
            row.expires_ms = now + KEPT_MS
            session.add(row)
            session.flush()
            final = self.path(customer, sha256)
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(final)
            _flush_folder(final.parent)
            return row

    def _check_quota(self, session: Session, customer: str, size: int) -> None:
        used = session.scalar(
            select(func.coalesce(func.sum(BlobRow.size_bytes), 0)).where(col(BlobRow.customer) == customer)
        )
        if int(used or 0) + size > self._quota:
            raise PayloadTooLarge(
                f"{used} bytes are stored, {size} more would pass the quota of {self._quota}; "
                "wait until older blobs expire, or use smaller arguments",
                quota_bytes=self._quota,
                used_bytes=used,
            )


def _remove(name: str) -> None:
    Path(name).unlink(missing_ok=True)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
