"""Takes what wallets signed about pools: verifies who signed, and lets `ledger.poolbook` write it.

Each statement is taken once, and only near the time it was signed, so that nothing that was signed long ago, or was
taken already, moves anything again.
"""

import json
import re
from dataclasses import dataclass

from eth_utils.address import is_address
from sqlalchemy import insert, select
from sqlmodel import Session

from api.errors import Conflict, NotFound
from api.plane import Plane
from api.tables import OperatorRow
from api.wallets import gpu_by_id, operator_by_wallet, owner_of, signer_of, wallet_of
from fabric.wire.errors import InvalidRequest, PermissionDenied
from fabric.wire.pool_moves import MoveStatement, Statement, TermsStatement
from ledger.pool_tables import PoolStatementRow
from ledger.poolbook import PoolBook, Signed
from ledger.pools import Entrance
from ledger.split import PoolTerms
from ledger.tables import table_of

STATEMENT = table_of(PoolStatementRow)
TAKEN_WITHIN_MS = 600_000
CLOCK_SLACK_MS = 300_000
MAX_INVITATION_MS = 366 * 86_400_000
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_BPS_PER_REPUTATION = 10
"""Reputations are 0 to 1000."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A statement that holds: from which epoch on; a leave or kick says from when the GPU is out."""

    pool: str
    from_epoch: int


def take(plane: Plane, session: Session, statement: Statement, signature: bytes) -> Taken:
    """Verify and apply one statement.

    Raises:
        InvalidRequest: for another fabric, or signed too long ago or ahead.
        AuthError, PermissionDenied: not signed by whoever may say it.
        NotFound: no such pool or GPU. Conflict: taken already.
        PoolTermsRefused: outside the rules of pools.
    """
    now = plane.now_ms()
    _expect_here_and_now(plane, statement, now)
    signer, digest = signer_of(statement.typed_data(), signature)
    if session.execute(select(STATEMENT.c.digest).where(STATEMENT.c.digest == digest)).first() is not None:
        raise Conflict("this statement was taken already; sign a new one")
    signed, epoch = Signed(signer, signature, now), plane.ledger(session).epoch_now()
    book = PoolBook(session, plane.pool_rules)
    if isinstance(statement, TermsStatement):
        from_epoch = _terms(session, book, statement, signed, epoch)
    else:
        from_epoch = _ACTS[statement.action](session, book, statement, signed, epoch)
    _keep(session, statement, signed, digest)
    return Taken(statement.pool, from_epoch)


def invited(session: Session, pool: str, gpu_id: str, now_ms: int) -> bool:
    """Whether the pool's founder has invited the GPU, and the invitation is neither used nor over."""
    about = (STATEMENT.c.pool == pool, STATEMENT.c.gpu_id == gpu_id)
    rows = session.execute(select(STATEMENT).where(*about).order_by(STATEMENT.c.at_ms)).all()
    used_ms = max((row.at_ms for row in rows if row.action == "join"), default=-1)
    return any(
        row.action == "invite" and row.at_ms > used_ms and json.loads(row.body)["expires_ms"] > now_ms for row in rows
    )


def _expect_here_and_now(plane: Plane, statement: Statement, now_ms: int) -> None:
    if statement.fabric != plane.fabric_id:
        raise InvalidRequest(f"the statement is for fabric {statement.fabric}, this is {plane.fabric_id}")
    if not _NAME.fullmatch(statement.pool):
        raise InvalidRequest(f"{statement.pool!r} is no name of a pool; 1 to 80 letters, digits, '_', '.' and '-'")
    if not now_ms - TAKEN_WITHIN_MS <= statement.issued_ms <= now_ms + CLOCK_SLACK_MS:
        raise InvalidRequest(
            f"the statement was signed at {statement.issued_ms} ms and it is {now_ms} ms; sign it anew, with a clock "
            "that is right"
        )


def _terms(session: Session, book: PoolBook, statement: TermsStatement, signed: Signed, epoch: int) -> int:
    terms, entrance = terms_of(statement), Entrance(statement.entrance)
    if statement.action == "create":
        operator = operator_by_wallet(session, signed.signer)
        if operator is None:
            raise PermissionDenied(f"{signed.signer} is no operator's wallet here; pools are founded by operators")
        if statement.pool != operator.id and session.get(OperatorRow, statement.pool) is not None:
            raise Conflict(f"{statement.pool} is another operator's id; take another name for the pool")
        return book.found(statement.pool, terms, entrance, now_epoch=epoch, signed=signed).from_epoch
    _expect_founder(book, statement.pool, signed)
    return book.change_terms(statement.pool, terms, entrance, now_epoch=epoch, signed=signed).from_epoch


def terms_of(statement: TermsStatement) -> PoolTerms:
    """The terms that a statement says."""
    payout = statement.operator_payout
    if payout and not (is_address(payout) and payout.startswith("0x")):
        raise InvalidRequest(f"operator_payout {payout!r} is not an Ethereum address; it is 0x and 40 hex digits")
    return PoolTerms(
        operator_bps=statement.operator_bps,
        shared_bps=statement.shared_bps,
        used_bps=statement.used_bps,
        operator_payout=payout.lower(),
        model_weights=dict(statement.model_weights),
        price_ceiling_dc=statement.price_ceiling_dc or None,
    )


def _invite(session: Session, book: PoolBook, move: MoveStatement, signed: Signed, epoch: int) -> int:
    _expect_founder(book, move.pool, signed)
    if not signed.at_ms < move.expires_ms <= signed.at_ms + MAX_INVITATION_MS:
        raise InvalidRequest("an invitation ends after now and within 366 days; set expires_ms so")
    gpu_by_id(session, move.gpu)
    return epoch + 1


def _join(session: Session, book: PoolBook, move: MoveStatement, signed: Signed, epoch: int) -> int:
    _expect_owner(session, move.gpu, signed)
    gpu = gpu_by_id(session, move.gpu)
    own = wallet_of(session, session.get_one(OperatorRow, gpu.operator)) == _founder(book, move.pool)
    stay = book.join(
        move.pool,
        gpu.id,
        now_epoch=epoch,
        signed=signed,
        own=own,
        invited=invited(session, move.pool, gpu.id, signed.at_ms),
    )
    return stay.from_epoch


def _leave(session: Session, book: PoolBook, move: MoveStatement, signed: Signed, epoch: int) -> int:
    _expect_owner(session, move.gpu, signed)
    _expect_member(book, move)
    return _end_of(book.leave(move.gpu, now_epoch=epoch, signed=signed).until_epoch)


def _kick(session: Session, book: PoolBook, move: MoveStatement, signed: Signed, epoch: int) -> int:
    _expect_founder(book, move.pool, signed)
    _expect_member(book, move)
    gpu = gpu_by_id(session, move.gpu)
    reputation_bps = session.get_one(OperatorRow, gpu.operator).reputation * _BPS_PER_REPUTATION
    return _end_of(book.kick(gpu.id, reputation_bps, now_epoch=epoch, signed=signed).until_epoch)


_ACTS = {"invite": _invite, "join": _join, "leave": _leave, "kick": _kick}


def _founder(book: PoolBook, pool: str) -> str:
    if not book.history(pool):
        raise NotFound(f"there is no pool {pool}; `fabric pool list` shows them")
    return book.founder(pool)


def _expect_founder(book: PoolBook, pool: str, signed: Signed) -> None:
    founder = _founder(book, pool)
    if founder != signed.signer:
        raise PermissionDenied(f"pool {pool} is spoken for by {founder}, who founded it; {signed.signer} signed")


def _expect_owner(session: Session, gpu_id: str, signed: Signed) -> None:
    owner = owner_of(session, gpu_by_id(session, gpu_id))
    if owner != signed.signer:
        raise PermissionDenied(f"GPU {gpu_id} is spoken for by {owner}; {signed.signer} signed")


def _expect_member(book: PoolBook, move: MoveStatement) -> None:
    stays = book.stays(move.gpu)
    if not stays or stays[-1].pool != move.pool:
        raise Conflict(f"GPU {move.gpu} is not in pool {move.pool}")


def _end_of(until_epoch: int | None) -> int:
    assert until_epoch is not None
    return until_epoch


def _keep(session: Session, statement: Statement, signed: Signed, digest: str) -> None:
    session.execute(
        insert(STATEMENT).values(
            digest=digest,
            action=statement.action,
            pool=statement.pool,
            gpu_id=statement.gpu.lower() if isinstance(statement, MoveStatement) else "",
            body=json.dumps(statement.to_json(), sort_keys=True, separators=(",", ":")),
            signer=signed.signer,
            signature=signed.signature,
            at_ms=signed.at_ms,
        )
    )
