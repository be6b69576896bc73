"""Idempotency keys: one effect per key, and the same answer to the same request.

A key is claimed in a transaction of its own before the work, so that a second request meanwhile sees it in flight; the
answer is stored in the transaction of the work itself. A refusal has no effect and gives the key back. Keys are kept
for ever: what they guard costs money, and a request that was stuck somewhere for a month must not cost it again.
"""

import hashlib
from typing import Any

from sqlmodel import Session

from api.errors import Conflict
from api.plane import Plane
from api.tables import IdempotencyRow
from fabric.wire.errors import InvalidRequest

MAX_KEY_CHARS = 200
_ABANDONED_MS = 60_000


def claim(plane: Plane, customer: str, key: str, body: bytes) -> dict[str, Any] | None:
    """The stored answer of a request done before, or None: the key is ours now.

    Raises:
        InvalidRequest: the key was used for another body, or is too long.
        Conflict: the same request is in flight.
    """
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InvalidRequest(f"an Idempotency-Key has 1 to {MAX_KEY_CHARS} characters, this one {len(key)}")
    digest = hashlib.sha256(body).hexdigest()
    with plane.database.write() as session:
        row = session.get(IdempotencyRow, (customer, key))
        if row is not None and row.body_sha256 != digest:
            raise InvalidRequest("this Idempotency-Key was used with another body; make a fresh key for a new request")
        if row is not None and row.answer is not None:
            return row.answer
        if row is not None and not _abandoned(plane, row):
            raise Conflict("a request with this Idempotency-Key is in flight; ask again in a moment")
        row = row or IdempotencyRow(customer=customer, key=key, body_sha256=digest, owner="", created_ms=0)
        row.owner, row.created_ms = plane.life, plane.now_ms()
        session.add(row)
    return None


def complete(session: Session, customer: str, key: str, status: int, answer: dict[str, Any]) -> None:
    """Store the answer in the transaction that has the effect."""
    row = session.get(IdempotencyRow, (customer, key))
    if row is None or row.answer is not None:
        raise Conflict("this Idempotency-Key was taken over by another request; ask again")
    row.status, row.answer = status, answer
    session.add(row)


def give_back(plane: Plane, customer: str, key: str) -> None:
    """The request was refused and changed nothing: the key may be used again."""
    with plane.database.write() as session:
        row = session.get(IdempotencyRow, (customer, key))
        if row is not None and row.answer is None:
            session.delete(row)


def _abandoned(plane: Plane, row: IdempotencyRow) -> bool:
    """Its process died with it, or it hung."""
    return row.owner != plane.life or plane.now_ms() - row.created_ms > _ABANDONED_MS
