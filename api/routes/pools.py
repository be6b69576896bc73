"""Pools: founded, changed, joined and left by what wallets sign; the signature is the credential, not an account."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlmodel import Session

from api import pool_moves
from api.deps import PlaneDep, ReadSession, WriteSession
from api.errors import NotFound
from api.plane import Plane
from api.pool_moves import STATEMENT, Taken
from api.schemas import Dc
from api.wallets import operator_by_wallet
from fabric.wire.delegation import DelegationError, unhex
from fabric.wire.errors import InvalidRequest
from fabric.wire.pool_moves import PoolStatementError, Statement, statement_from_json
from ledger.poolbook import PoolBook
from ledger.pools import Membership, TermsRow, terms_at

router = APIRouter(prefix="/v1/pools", tags=["pools"])

_MAX = 2**63 - 1
PoolName = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]


class SignedStatement(BaseModel):
    """A statement with the wallet's signature (0x-hex); docs/pools.md says what is signed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statement: dict[str, Any]
    signature: str = Field(max_length=200)


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class Accepted(_Out):
    """From which epoch on it holds; for `leave` and `kick`, from which on the GPU is out."""

    pool: str
    action: str
    from_epoch: int


class Terms(_Out):
    from_epoch: int
    entrance: str
    operator_bps: int
    shared_bps: int
    used_bps: int
    operator_payout: str
    price_ceiling_dc: Dc | None
    model_weights: dict[str, int]


class Pool(_Out):
    """`terms` are those in force, none before the pool's first epoch; `next_terms` those that wait."""

    id: str
    founder: str
    operator: str | None
    terms: Terms | None
    next_terms: Terms | None
    members: int


class Pools(_Out):
    epoch: int
    exit_delay_epochs: int
    pools: list[Pool]
    next: str | None


class Member(_Out):
    gpu: str
    from_epoch: int
    until_epoch: int | None


class PoolDetail(Pool):
    epoch: int
    gpus: list[Member]


class Stated(_Out):
    digest: str
    statement: dict[str, Any]
    signer: str
    signature: str
    at_ms: int


class Statements(_Out):
    statements: list[Stated]
    next: int | None


@router.get("", summary="All pools, by name")
def list_pools(
    plane: PlaneDep,
    session: ReadSession,
    cursor: Annotated[str, Query(max_length=80, description="`next` of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Pools:
    book, epoch = PoolBook(session, plane.pool_rules), plane.ledger(session).epoch_now()
    names = [name for name in book.names() if name > cursor]
    shown = [_pool(session, book, name, epoch) for name in names[:limit]]
    more = names[limit - 1] if len(names) > limit else None
    return Pools(epoch=epoch, exit_delay_epochs=plane.pool_rules.exit_delay_epochs, pools=shown, next=more)


@router.post("", status_code=201, summary="Found a pool (statement `create`)")
def create(plane: PlaneDep, session: WriteSession, body: SignedStatement) -> Accepted:
    return _take(plane, session, body, ("create",), None)


@router.get("/{pool}", summary="A pool: its terms, and the GPUs that are in it or will be")
def show(plane: PlaneDep, session: ReadSession, pool: PoolName) -> PoolDetail:
    book, epoch = _known(plane, session, pool), plane.ledger(session).epoch_now()
    gpus = [
        Member(gpu=stay.gpu_id, from_epoch=stay.from_epoch, until_epoch=stay.until_epoch)
        for stay in _stays(book, pool, epoch)
    ]
    return PoolDetail(**_pool(session, book, pool, epoch).model_dump(), epoch=epoch, gpus=gpus)


@router.post("/{pool}/moves", status_code=201, summary="Terms, invitations, joining, leaving, kicking")
def move(plane: PlaneDep, session: WriteSession, pool: PoolName, body: SignedStatement) -> Accepted:
    return _take(plane, session, body, ("terms", "invite", "join", "leave", "kick"), pool)


@router.get("/{pool}/statements", summary="Everything that wallets signed about a pool, oldest first")
def statements(
    plane: PlaneDep,
    session: ReadSession,
    pool: PoolName,
    cursor: Annotated[int, Query(ge=0, le=_MAX)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Statements:
    _known(plane, session, pool)
    rows = session.execute(
        select(STATEMENT)
        .where(STATEMENT.c.pool == pool)
        .order_by(STATEMENT.c.at_ms, STATEMENT.c.digest)
        .offset(cursor)
        .limit(limit + 1)
    ).all()
    shown = [
        Stated(
            digest=row.digest,
            statement=json.loads(row.body),
            signer=row.signer,
            signature="0x" + row.signature.hex(),
            at_ms=row.at_ms,
        )
        for row in rows[:limit]
    ]
    return Statements(statements=shown, next=cursor + limit if len(rows) > limit else None)


def _take(
    plane: Plane, session: Session, body: SignedStatement, allowed: tuple[str, ...], pool: str | None
) -> Accepted:
    statement, signature = _read(body)
    if statement.action not in allowed:
        raise InvalidRequest(f"a statement {statement.action!r} does not go here; here go {', '.join(allowed)}")
    if pool is not None and statement.pool != pool:
        raise InvalidRequest(f"the statement is about pool {statement.pool}, the address about {pool}")
    taken: Taken = pool_moves.take(plane, session, statement, signature)
    return Accepted(pool=taken.pool, action=statement.action, from_epoch=taken.from_epoch)


def _read(body: SignedStatement) -> tuple[Statement, bytes]:
    try:
        return statement_from_json(body.statement), unhex(body.signature, "signature")
    except (PoolStatementError, DelegationError) as error:
        raise InvalidRequest(str(error)) from None


def _known(plane: Plane, session: Session, name: str) -> PoolBook:
    book = PoolBook(session, plane.pool_rules)
    if not book.history(name):
        raise NotFound(f"there is no pool {name}; `fabric pool list` shows them")
    return book


def _pool(session: Session, book: PoolBook, name: str, epoch: int) -> Pool:
    history, founder = book.history(name), book.founder(name)
    operator = operator_by_wallet(session, founder)
    waiting = [row for row in history if row.from_epoch > epoch]
    in_force = terms_at(history, epoch)
    return Pool(
        id=name,
        founder=founder,
        operator=operator.id if operator is not None else None,
        terms=None if in_force is None else _terms(in_force),
        next_terms=_terms(waiting[-1]) if waiting else None,
        members=sum(stay.covers(epoch) for stay in _stays(book, name, epoch)),
    )


def _stays(book: PoolBook, name: str, epoch: int) -> list[Membership]:
    """Stays in the pool that are not over."""
    return [
        stay
        for _, stays in sorted(book.members(name).items())
        for stay in stays
        if stay.pool == name and (stay.until_epoch is None or stay.until_epoch > epoch)
    ]


def _terms(row: TermsRow) -> Terms:
    terms = row.terms
    return Terms(
        from_epoch=row.from_epoch,
        entrance=row.entrance.value,
        operator_bps=terms.operator_bps,
        shared_bps=terms.shared_bps,
        used_bps=terms.used_bps,
        operator_payout=terms.operator_payout,
        price_ceiling_dc=terms.price_ceiling_dc,
        model_weights=dict(terms.model_weights),
    )
