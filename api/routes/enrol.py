"""Enrolment of operators: join tokens (admin), and the delegations that operators' wallets sign (no account)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import structlog
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api import enrolment
from api.deps import AdminDep, PlaneDep, WriteSession
from api.schemas import Name
from fabric.wire.delegation import Delegation, DelegationError, SignedDelegation, unhex
from fabric.wire.errors import Error, InvalidRequest
from fabric.wire.ids import new_id

_log = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1/operators", tags=["operators"])

_DAY_S = 86_400
_Address = Annotated[str, Field(description="Ethereum address: 0x and 40 hex digits")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JoinTokenRequest(_Model):
    """Whom to invite. `operator` may name one that is known; left out, a new one is made."""

    name: str = Field(min_length=1, max_length=100)
    wallet: _Address
    operator: Name | None = None
    payout: str = Field(default="", description="Where the operator is paid; the wallet when left out")
    lifetime_s: int = Field(default=7 * _DAY_S, ge=60, le=30 * _DAY_S)


class JoinToken(_Model):
    """The token is shown once."""

    token: str
    operator: str
    expires_at_ms: int


class SignedRequest(_Model):
    """A delegation with the wallet's signature and the session key's proof; docs/operators.md says what is signed."""

    delegation: dict[str, Any]
    signature: str = Field(max_length=200)
    proof: str = Field(max_length=200)


class EnrolRequest(SignedRequest):
    token: str = Field(max_length=300)


class RevokeRequest(_Model):
    operator: str
    session_key: str = Field(max_length=66)
    signature: str = Field(max_length=200)


class Accepted(_Model):
    """The session key that speaks for the operator until then."""

    operator: str
    session_key: str
    expires_at_ms: int


@router.post("/join-tokens", status_code=201, summary="Invite an operator")
def join_token(plane: PlaneDep, session: WriteSession, _admin: AdminDep, body: JoinTokenRequest) -> JoinToken:
    operator, now_ms = body.operator or new_id("op"), plane.now_ms()
    token = enrolment.issue_token(
        session,
        operator=operator,
        name=body.name,
        wallet=body.wallet,
        payout=body.payout,
        now_ms=now_ms,
        lifetime_ms=body.lifetime_s * 1000,
    )
    return JoinToken(token=token, operator=operator, expires_at_ms=now_ms + body.lifetime_s * 1000)


@router.post("/enrol", status_code=201, summary="Redeem a join token")
def enrol(plane: PlaneDep, session: WriteSession, body: EnrolRequest) -> Accepted:
    with _told():
        return _accepted(enrolment.redeem(session, plane.fabric_id, body.token, _signed(body), plane.now_ms()))


@router.post("/delegations", status_code=201, summary="Renew a delegation, or delegate to a further key")
def delegate(plane: PlaneDep, session: WriteSession, body: SignedRequest) -> Accepted:
    with _told():
        return _accepted(enrolment.renew(session, plane.fabric_id, _signed(body), plane.now_ms()))


@router.post("/delegations/revoke", summary="Take a session key back, for good")
def revoke(plane: PlaneDep, session: WriteSession, body: RevokeRequest) -> dict[str, str]:
    try:
        key, signature = unhex(body.session_key, "session_key"), unhex(body.signature, "signature")
    except DelegationError as error:
        raise InvalidRequest(str(error)) from None
    enrolment.revoke(session, plane.fabric_id, body.operator, key, signature, plane.now_ms())
    return {"operator": body.operator, "session_key": body.session_key}


@contextmanager
def _told() -> Iterator[None]:
    """Who was refused, and why, is for whoever runs this control plane to see too; the token is not."""
    try:
        yield
    except Error as error:
        _log.warning("enrolment refused", reason=str(error))
        raise


def _signed(body: SignedRequest) -> SignedDelegation:
    try:
        return SignedDelegation.from_json(body.model_dump())
    except DelegationError as error:
        raise InvalidRequest(str(error)) from None


def _accepted(delegation: Delegation) -> Accepted:
    return Accepted(
        operator=delegation.operator,
        session_key=delegation.session_key.hex(),
        expires_at_ms=delegation.expires_ms,
    )
