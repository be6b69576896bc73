"""The audit's checks of pools: usage stands under the pool of its time, closes used what held, wallets signed it."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sqlalchemy import select
from sqlmodel import Session

from api.plane import Plane
from api.pool_moves import STATEMENT, terms_of
from api.pooled import pooled
from api.wallets import signer_of
from fabric.wire.errors import AuthError, InvalidRequest
from fabric.wire.pool_moves import TermsStatement, statement_from_json
from ledger.audit import Check, Finding
from ledger.closing import EPOCH, file_of
from ledger.epoch import EpochClock, read_file
from ledger.errors import PoolTermsRefused
from ledger.meters import METER, USAGE, standing
from ledger.poolbook import MOVE, TERMS, stays_of
from ledger.pools import as_of, pool_and_epoch, pool_at


def pool_checks(plane: Plane) -> tuple[Check, ...]:
    """The checks; they know the fabric's epochs from the plane."""
    clock = EpochClock(plane.ledger_settings.genesis_ms, plane.ledger_settings.epoch_ms)
    return (
        Check("usage stands under the pool of its time", 16, lambda session: _usage(session, clock)),
        Check("closes paid pools as they stood", 12, lambda session: _closes(plane, session)),
        Check("wallets signed what pools did", 24, _signed),
    )


def _usage(session: Session, clock: EpochClock) -> Iterator[Finding]:
    members = list(session.execute(select(MOVE.c.gpu_id).distinct()).scalars())
    stays = stays_of(session, members)
    rows = session.execute(
        select(USAGE.c.entry_id, USAGE.c.at_ms, USAGE.c.pool, METER.c.gpu_id, METER.c.operator)
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .where(standing())
        .order_by(USAGE.c.entry_id)
    )
    for row in rows:
        epoch = clock.at(row.at_ms)
        pool = pool_at(stays.get(row.gpu_id, ()), epoch)
        expected = row.operator if pool is None else as_of(pool, epoch)
        if row.pool != expected:
            yield Finding("ledger_usage", str(row.entry_id), f"it is under {row.pool}, its GPU was in {expected}")


def _closes(plane: Plane, session: Session) -> Iterator[Finding]:
    for n in session.execute(select(EPOCH.c.n).order_by(EPOCH.c.n)).scalars().all():
        body = file_of(session, n)
        if body is None:
            continue
        given, _ = read_file(body)
        names = {line.pool for line in given.lines}
        again = pooled(plane, session, names)
        if {name: terms for name, terms in given.pools.items() if pool_and_epoch(name)} != dict(again.terms):
            yield Finding("ledger_epoch_file", str(n), "its pools' terms are not those that held")
        if sorted(given.available) != sorted(again.available):
            yield Finding("ledger_epoch_file", str(n), "its availability is not what was seen")


def _signed(session: Session) -> Iterator[Finding]:
    signed: dict[bytes, Any] = {}
    for row in session.execute(select(STATEMENT).order_by(STATEMENT.c.at_ms, STATEMENT.c.digest)):
        problem = _problem_of(row)
        if problem:
            yield Finding("ledger_pool_statement", row.digest, problem)
        signed[row.signature] = row
    for row in session.execute(select(TERMS).order_by(TERMS.c.pool, TERMS.c.from_epoch)):
        stated = signed.get(row.signature)
        if not _says(stated, row, ("create", "terms")) or not _same_terms(stated, row):
            yield Finding("ledger_pool_terms", f"{row.pool}/{row.from_epoch}", "nobody signed these terms")
    for row in session.execute(select(MOVE).order_by(MOVE.c.gpu_id, MOVE.c.nth)):
        stated = signed.get(row.signature)
        actions = ("join",) if row.enters else ("leave", "kick")
        if stated is None or stated.gpu_id != row.gpu_id or not _says(stated, row, actions):
            yield Finding("ledger_pool_move", f"{row.gpu_id}/{row.nth}", "nobody signed this move")


def _says(stated: Any, row: Any, actions: tuple[str, ...]) -> bool:
    return stated is not None and stated.action in actions and (stated.pool, stated.signer) == (row.pool, row.signer)


def _same_terms(stated: Any, row: Any) -> bool:
    try:
        statement = statement_from_json(json.loads(stated.body))
        return (
            isinstance(statement, TermsStatement)
            and statement.entrance == row.entrance
            and asdict(terms_of(statement)) == json.loads(row.terms)
        )
    except (ValueError, InvalidRequest, PoolTermsRefused):
        return False


def _problem_of(row: Any) -> str:
    try:
        statement = statement_from_json(json.loads(row.body))
        signer, digest = signer_of(statement.typed_data(), row.signature)
    except (ValueError, AuthError) as error:
        return str(error)
    if (signer, digest) != (row.signer, row.digest):
        return f"signed by {signer}, the row says {row.signer}"
    about = getattr(statement, "gpu", "")
    if (statement.action, statement.pool, about.lower()) != (row.action, row.pool, row.gpu_id):
        return "its row says something else than what was signed"
    return ""
