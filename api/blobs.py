"""The content-addressed store: opaque bytes in one folder per customer, named by their SHA-256, with quota and expiry.

It never looks inside a blob. Bytes go to a temporary file, are flushed to disk, compared with their name, and renamed
into place in the transaction that writes their row; so a row without its file cannot be.
"""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread
from sqlalchemy import func, select, update
from sqlmodel import Session, col

from api import egress
from api.database import Database
from api.errors import NotFound, PayloadTooLarge
from api.tables import BlobRow, LeaseRow
from fabric.wire.clock import Clock
from fabric.wire.errors import InvalidRequest
from ledger.bulk import among

KEPT_MS = 7 * 86_400_000


@dataclass(frozen=True, slots=True)
class Large:
    """The quota of who has paid for so much use, in DC."""

    quota_bytes: int
    after_dc: int


class Blobs:
    """Blobs of all customers below one folder."""

    def __init__(
        self,
        folder: Path,
        database: Database,
        clock: Clock,
        *,
        quota_bytes: int,
        max_bytes: int,
        large: "Large | None" = None,
    ) -> None:
        self._folder = folder
        self._database = database
        self._clock = clock
        self._quota = quota_bytes
        self._large = large
        self._max = max_bytes
        self._arriving: Counter[str] = Counter()
        (folder / "incoming").mkdir(parents=True, exist_ok=True)
        for left_over in (folder / "incoming").iterdir():
            left_over.unlink()

    async def put(self, customer: str, sha256: str, chunks: AsyncIterator[bytes], announced_bytes: int = 0) -> BlobRow:
        """Keep a blob for seven days from now; putting it again only renews that.

        What does not fit the quota is refused before a byte of it is taken where its size is announced, else as soon as
        it no longer fits, other uploads that are under way counted. The transaction that keeps it counts once more.

        Raises:
            InvalidRequest: the bytes have another digest.
            PayloadTooLarge: beyond the largest size or the customer's quota.
        """
        arrival = _Arrival(
            self._arriving, customer, await to_thread.run_sync(self._room, customer, sha256, announced_bytes)
        )
        arrival.expect(announced_bytes, self._max)
        handle, name = tempfile.mkstemp(dir=self._folder / "incoming")
        try:
            with os.fdopen(handle, "wb") as file:
                size = await self._receive(file, sha256, chunks, arrival)
            return await to_thread.run_sync(self._keep, customer, sha256, size, Path(name))
        finally:
            arrival.over()
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

    def renew(self, session: Session, customer: str, digests: Collection[str]) -> None:
        """Keep them for seven days from now, in one statement however many they are.

        Raises:
            NotFound: this customer has not all of them, or no longer; none is renewed once the transaction is undone.
        """
        wanted, now = set(digests), self._clock.now_ms()
        kept = (col(BlobRow.customer) == customer, col(BlobRow.expires_ms) > now, among(col(BlobRow.sha256), wanted))
        renewed: Any = session.execute(update(BlobRow).where(*kept).values(expires_ms=now + KEPT_MS))
        if renewed.rowcount != len(wanted):
            gone = len(wanted) - renewed.rowcount
            raise NotFound(f"{gone} of {len(wanted)} blobs are gone; their {KEPT_MS // 86_400_000} days are over")

    def begin_download(self, customer: str, sha256: str) -> Path:
        """The file of a blob that its customer is about to read; counts in what may be downloaded in a day.

        Raises:
            NotFound: as `find`.
            PayloadTooLarge: more than the customer's quota in one day.
        """
        with self._database.write() as session:
            size, now = self.find(session, customer, sha256).size_bytes, self._clock.now_ms()
            wanted = egress.downloaded(session, customer, now) + size
            egress.count(session, customer, size, self._quota_for(session, customer, wanted), now)
        return self.path(customer, sha256)

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

    def _room(self, customer: str, sha256: str, announced_bytes: int) -> "_Room":
        with self._database.read() as session:
            used = self._used(session, customer)
            known = session.get(BlobRow, (customer, sha256)) is not None
            wanted = used + self._arriving[customer] + (announced_bytes or self._max)
            return _Room(used, self._quota_for(session, customer, wanted), renewed=known)

    def _quota_for(self, session: Session, customer: str, wanted_bytes: int) -> int:
        """The large one only where it matters: it takes a sum over the customer's leases."""
        if self._large is None or wanted_bytes <= self._quota:
            return self._quota
        spent = select(func.coalesce(func.sum(LeaseRow.charged_dc), 0)).where(col(LeaseRow.customer) == customer)
        return self._large.quota_bytes if (session.scalar(spent) or 0) >= self._large.after_dc else self._quota

    async def _receive(self, file: Any, sha256: str, chunks: AsyncIterator[bytes], arrival: "_Arrival") -> int:
        digest, size = hashlib.sha256(), 0
        async for chunk in chunks:
            size += len(chunk)
            if size > self._max:
                raise _too_large(self._max)
            arrival.take(len(chunk))
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
        used = self._used(session, customer)
        quota = self._quota_for(session, customer, used + size)
        if used + size > quota:
            raise _beyond_quota(used, size, quota)

    def _used(self, session: Session, customer: str) -> int:
        used = session.scalar(
            select(func.coalesce(func.sum(BlobRow.size_bytes), 0)).where(col(BlobRow.customer) == customer)
        )
        return int(used or 0)


@dataclass(frozen=True, slots=True)
class _Room:
    """What a customer had stored when an upload began; `renewed` when the blob is there already and takes no room."""

    used_bytes: int
    quota_bytes: int
    renewed: bool


class _Arrival:
    """One upload's part of what is arriving for its customer."""

    def __init__(self, arriving: Counter[str], customer: str, room: _Room) -> None:
        self._arriving = arriving
        self._customer = customer
        self._room = room
        self._taken = 0

    def expect(self, announced_bytes: int, max_bytes: int) -> None:
        """Raises PayloadTooLarge when what is announced does not fit."""
        if announced_bytes > max_bytes:
            raise _too_large(max_bytes)
        self._check(announced_bytes)

    def take(self, size: int) -> None:
        """Raises PayloadTooLarge when so much more does not fit."""
        self._check(size)
        self._arriving[self._customer] += size
        self._taken += size

    def over(self) -> None:
        self._arriving[self._customer] -= self._taken
        if not self._arriving[self._customer]:
            del self._arriving[self._customer]
        self._taken = 0

    def _check(self, size: int) -> None:
        room, arriving = self._room, self._arriving[self._customer]
        if not room.renewed and room.used_bytes + arriving + size > room.quota_bytes:
            raise _beyond_quota(room.used_bytes + arriving, size, room.quota_bytes)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"a blob may have {max_bytes} bytes; this one has more", max_bytes=max_bytes)


def _beyond_quota(used: int, size: int, quota: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"{used} bytes are stored or arriving, {size} more would pass the quota of {quota}; "
        "wait until older blobs expire, or use smaller arguments",
        quota_bytes=quota,
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
