"""Nonces: what the control plane says to an agent at a time it knows, so that an echo proves "not before that time"."""

import secrets
from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlmodel import Session, col

from api.tables import NonceRow, UptimeRow

KEPT_MS = 86_400_000
_BYTES = 32


def issue(session: Session, cluster: str, now_ms: int) -> NonceRow:
    """A fresh nonce for one cluster, issued now."""
    return issue_many(session, [cluster], now_ms)[0]


def issue_many(session: Session, clusters: Sequence[str], now_ms: int) -> list[NonceRow]:
    """A fresh nonce for each cluster, in the order given."""
    rows = [NonceRow(cluster=cluster, value=secrets.token_bytes(_BYTES), issued_ms=now_ms) for cluster in clusters]
    session.add_all(rows)
    session.flush()
    return rows


def issued(session: Session, cluster: str, seq: int, value: bytes | None = None) -> int | None:
    """When the nonce was issued to this cluster; None if it never was, or with another value, or was forgotten."""
    row = session.get(NonceRow, seq)
    if row is None or row.cluster != cluster or (value is not None and row.value != value):
        return None
    return row.issued_ms


def next_after(session: Session, cluster: str, seq: int) -> int | None:
    """When the cluster's nonce after `seq` was issued; None when there is none yet."""
    return session.scalar(
        select(NonceRow.issued_ms)  # type: ignore[call-overload]
        .where(col(NonceRow.cluster) == cluster, col(NonceRow.seq) > seq)
        .order_by(col(NonceRow.seq))
        .limit(1)
    )


def up_since(session: Session, since_ms: int, now_ms: int, life: str) -> int:
    """For how many ms since `since_ms` a control plane was up to take receipts. `life` is the one that asks: up now."""
    total = 0
    for row in session.scalars(select(UptimeRow).where(col(UptimeRow.last_seen_ms) >= since_ms)):
        last = now_ms if row.id == life else row.last_seen_ms
        total += max(0, min(last, now_ms) - max(row.started_ms, since_ms))
    return min(total, max(0, now_ms - since_ms))


def forget_old(session: Session, now_ms: int) -> None:
    """Drop nonces that no receipt can name any more."""
    session.execute(delete(NonceRow).where(col(NonceRow.issued_ms) < now_ms - KEPT_MS))


def newest(session: Session, cluster: str) -> int:
    """The seq of the cluster's newest nonce; 0 when it has none."""
    return session.scalar(select(func.max(NonceRow.seq)).where(col(NonceRow.cluster) == cluster)) or 0  # type: ignore[arg-type]
