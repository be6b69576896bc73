"""Pools as signed rows: terms and moves of GPUs, appended in the caller's transaction and read for an epoch.

What is allowed is `ledger.pools`' business. Whoever calls has verified the signature; the row keeps it, so that anyone
can verify it again.
"""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import Session

from ledger.bulk import among
from ledger.errors import PoolTermsRefused
from ledger.pools import (
    Entrance,
    Membership,
    PoolRules,
    TermsRow,
    change_terms,
    found,
    join,
    kick,
    leave,
    pool_at,
    terms_at,
)
from ledger.split import PoolTerms
from ledger.tables import PoolMoveRow, PoolTermsRow, table_of

TERMS, MOVE = table_of(PoolTermsRow), table_of(PoolMoveRow)


@dataclass(frozen=True, slots=True)
class Signed:
    """Who signed what is written (0x-address), the signature, and when it arrived."""

    signer: str
    signature: bytes
    at_ms: int


class PoolBook:
    """The pools of one ledger."""

    def __init__(self, session: Session, rules: PoolRules) -> None:
        self._session = session
        self._rules = rules

    def found(self, pool: str, terms: PoolTerms, entrance: Entrance, *, now_epoch: int, signed: Signed) -> TermsRow:
        """A new pool, in force from the next epoch.

        Raises:
            PoolTermsRefused: unfair terms, or the name is taken.
        """
        if self.history(pool):
            raise PoolTermsRefused(f"there is a pool {pool} already; change its terms, or take another name")
        return self._write_terms(found(pool, terms, entrance, now_epoch=now_epoch), signed)

    def change_terms(
        self, pool: str, terms: PoolTerms, entrance: Entrance, *, now_epoch: int, signed: Signed
    ) -> TermsRow:
        """Other terms, in force after every member could have left. Errors as `ledger.pools.change_terms`."""
        row = change_terms(self._known(pool), terms, entrance, now_epoch=now_epoch, rules=self._rules)
        return self._write_terms(row, signed)

    def join(
        self, pool: str, gpu_id: str, *, now_epoch: int, signed: Signed, own: bool = False, invited: bool = False
    ) -> Membership:
        """A GPU enters from the next epoch. Errors as `ledger.pools.join`."""
        in_force = terms_at(self._known(pool), now_epoch)
        if in_force is None:
            raise PoolTermsRefused(f"pool {pool} takes members once its terms hold, from the next epoch on")
        stay = join(self.stays(gpu_id), in_force, gpu_id, now_epoch=now_epoch, own=own, invited=invited)
        self._write_move(gpu_id, pool, stay.from_epoch, signed, enters=True)
        return stay

    def leave(self, gpu_id: str, *, now_epoch: int, signed: Signed) -> Membership:
        """The GPU is out after the exit delay; leaving twice changes nothing."""
        stay = self._open_stay(gpu_id)
        return self._end(stay, leave(stay, now_epoch=now_epoch, rules=self._rules), signed)

    def kick(self, gpu_id: str, reputation_bps: int, *, now_epoch: int, signed: Signed) -> Membership:
        """The operator takes a member of poor reputation out. Errors as `ledger.pools.kick`."""
        stay = self._open_stay(gpu_id)
        return self._end(stay, kick(stay, reputation_bps, now_epoch=now_epoch, rules=self._rules), signed)

    def history(self, pool: str) -> list[TermsRow]:
        """A pool's terms, oldest first."""
        rows = self._session.execute(select(TERMS).where(TERMS.c.pool == pool).order_by(TERMS.c.from_epoch))
        return [_terms_row(row) for row in rows]

    def stays(self, gpu_id: str) -> list[Membership]:
        """A GPU's stays in pools, oldest first."""
        return stays_of(self._session, [gpu_id]).get(gpu_id, [])

    def names(self) -> list[str]:
        """All pools, in order."""
        return list(self._session.execute(select(TERMS.c.pool).distinct().order_by(TERMS.c.pool)).scalars())

    def founder(self, pool: str) -> str:
        """The 0x-address that founded a pool and speaks for it."""
        self._known(pool)
        query = select(TERMS.c.signer).where(TERMS.c.pool == pool).order_by(TERMS.c.from_epoch).limit(1)
        return self._session.execute(query).scalar_one()

    def members(self, pool: str) -> dict[str, list[Membership]]:
        """All stays of every GPU that ever was in a pool."""
        ever = self._session.execute(select(MOVE.c.gpu_id).where(MOVE.c.pool == pool).distinct()).scalars()
        return stays_of(self._session, list(ever))

    def pool_of(self, gpu_id: str, epoch: int) -> str | None:
        """The pool a GPU was in; none when it stood alone."""
        return pool_at(self.stays(gpu_id), epoch)

    def terms_in(self, epoch: int) -> dict[str, PoolTerms]:
        """The terms of every pool in an epoch: what `ledger.closing.EpochTerms` takes."""
        held = ((name, terms_at(self.history(name), epoch)) for name in self.names())
        return {name: row.terms for name, row in held if row is not None}

    def _known(self, pool: str) -> list[TermsRow]:
        history = self.history(pool)
        if not history:
            raise PoolTermsRefused(f"there is no pool {pool}")
        return history

    def _open_stay(self, gpu_id: str) -> Membership:
        stays = self.stays(gpu_id)
        if not stays:
            raise PoolTermsRefused(f"GPU {gpu_id} is in no pool")
        return stays[-1]

    def _end(self, before: Membership, after: Membership, signed: Signed) -> Membership:
        if after != before and after.until_epoch is not None:
            self._write_move(after.gpu_id, after.pool, after.until_epoch, signed, enters=False)
        return after

    def _write_terms(self, row: TermsRow, signed: Signed) -> TermsRow:
        values = {"pool": row.pool, "from_epoch": row.from_epoch, "entrance": row.entrance.value}
        text = json.dumps(asdict(row.terms), sort_keys=True, separators=(",", ":"))
        self._session.execute(insert(TERMS).values(**values, terms=text, **asdict(signed)))
        return row

    def _write_move(self, gpu_id: str, pool: str, from_epoch: int, signed: Signed, *, enters: bool) -> None:
        nth = len(self._session.execute(select(MOVE.c.nth).where(MOVE.c.gpu_id == gpu_id)).all())
        values = {"gpu_id": gpu_id, "nth": nth, "pool": pool, "enters": enters, "from_epoch": from_epoch}
        self._session.execute(insert(MOVE).values(**values, **asdict(signed)))


def stays_of(session: Session, gpu_ids: Collection[str]) -> dict[str, list[Membership]]:
    """The stays of these GPUs, each's oldest first; a GPU that never was in a pool is not in the answer."""
    stays: dict[str, list[Membership]] = {}
    moves = select(MOVE).where(among(MOVE.c.gpu_id, gpu_ids)).order_by(MOVE.c.gpu_id, MOVE.c.nth)
    for row in session.execute(moves):
        own = stays.setdefault(row.gpu_id, [])
        if row.enters:
            own.append(Membership(row.gpu_id, row.pool, row.from_epoch))
        else:
            own[-1] = Membership(row.gpu_id, row.pool, own[-1].from_epoch, row.from_epoch)
    return stays


def _terms_row(row: Any) -> TermsRow:
    return TermsRow(row.pool, row.from_epoch, PoolTerms(**json.loads(row.terms)), Entrance(row.entrance))
