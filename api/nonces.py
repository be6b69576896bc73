"""Nonces: what the control plane says to an agent at a time it knows, so that an echo proves "not before that time"."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlmodel import Session, col

from api.tables import NonceRow, UptimeRow
from ledger.bulk import among
from ledger.tables import table_of

KEPT_MS = 86_400_000
_BYTES = 32
_BEYOND = 2**63
_NONCES = table_of(NonceRow)
_LATER = _NONCES.alias("later")


def issue(session: Session, cluster: str, now_ms: int) -> NonceRow:
    """A fresh nonce for one cluster, issued now."""
    return issue_many(session, [cluster], now_ms)[0]


def issue_many(session: Session, clusters: Sequence[str], now_ms: int) -> list[NonceRow]:
    """A fresh nonce for each cluster, in the order given."""
    rows = [NonceRow(cluster=cluster, value=secrets.token_bytes(_BYTES), issued_ms=now_ms) for cluster in clusters]
    session.add_all(rows)
    session.flush()
    return rows


@dataclass(frozen=True, slots=True)
class Echo:
    """A nonce that a receipt may name: whose, when it was issued, and when that cluster's next one was, if it was."""

    cluster: str
    value: bytes
    issued_ms: int
    next_ms: int | None


def echoes(session: Session, seqs: Collection[int]) -> dict[int, Echo]:
    """The nonces with these numbers; one that was never issued, or was forgotten, is not in the answer."""
    following = (
        select(_LATER.c.issued_ms)
        .where(_LATER.c.cluster == _NONCES.c.cluster, _LATER.c.seq > _NONCES.c.seq)
        .order_by(_LATER.c.seq)
        .limit(1)
        .correlate(_NONCES)
        .scalar_subquery()
    )
    columns = (_NONCES.c.seq, _NONCES.c.cluster, _NONCES.c.value, _NONCES.c.issued_ms, following)
    possible = sorted(seq for seq in seqs if 0 < seq < _BEYOND)
    rows = session.execute(select(*columns).where(among(_NONCES.c.seq, possible)))
    return {seq: Echo(*echo) for seq, *echo in rows}


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
