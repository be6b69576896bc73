"""What routes ask for: the plane, one transaction per request, and who is calling."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlmodel import Session

from api import keys, router_tokens
from api.plane import Plane
from api.tables import ApiKeyRow, CustomerRow
from api.wallets import addresses_of
from fabric.wire.errors import AuthError, PermissionDenied

_bearer = HTTPBearer(auto_error=False, description="An API key of the customer's account")


def plane_of(request: Request) -> Plane:
    return request.app.state.plane


PlaneDep = Annotated[Plane, Depends(plane_of)]


def _write(plane: PlaneDep) -> Iterator[Session]:
    with plane.database.write() as session:
        yield session


def _read(plane: PlaneDep) -> Iterator[Session]:
    with plane.database.read() as session:
        yield session


WriteSession = Annotated[Session, Depends(_write, scope="function")]
"""Committed before the answer is sent, rolled back when the route raises."""

ReadSession = Annotated[Session, Depends(_read, scope="function")]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a customer, and whether with an admin key."""

    customer: str
    name: str
    test: bool
    admin: bool


def caller_of(plane: Plane, token: str | None) -> Caller:
    """The customer whose API key this is.

    Raises:
        AuthError: no key, an unknown or a revoked one.
    """
    if not token:
        raise AuthError("an API key is needed: Authorization: Bearer <key>; `fabric login` gets one")
    if token.startswith(router_tokens.PREFIX):
        return _served_caller(plane, token)
    with plane.database.read() as session:
        key = session.get(ApiKeyRow, keys.sha256_hex(token))
        customer = session.get(CustomerRow, key.customer) if key is not None and key.revoked_ms is None else None
    if key is None or customer is None:
        raise AuthError("this API key is not known here, or was revoked; check FABRIC_API_KEY and FABRIC_URL")
    return Caller(customer.id, customer.name, customer.test, key.admin)


def _served_caller(plane: Plane, token: str) -> Caller:
    """The customer for whom the serving router acts."""
    customer_id = router_tokens.read(router_tokens.load_secret(plane.settings.state_dir), token, plane.now_ms())
    with plane.database.read() as session:
        customer = session.get(CustomerRow, customer_id)
    if customer is None:
        raise AuthError("the serving router names no customer of this fabric")
    return Caller(customer.id, customer.name, customer.test, admin=False)


def _token(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str | None:
    return credentials.credentials if credentials else None


Token = Annotated[str | None, Depends(_token)]


def _caller(plane: PlaneDep, token: Token) -> Caller:
    return caller_of(plane, token)


CallerDep = Annotated[Caller, Depends(_caller)]


def _perhaps(plane: PlaneDep, token: Token) -> Caller | None:
    try:
        return caller_of(plane, token)
    except AuthError:
        return None


PerhapsCaller = Annotated[Caller | None, Depends(_perhaps)]
"""Who calls what needs no account; None for anybody."""


def _admin(caller: CallerDep) -> Caller:
    if not caller.admin:
        raise PermissionDenied("this needs an admin key")
    return caller


AdminDep = Annotated[Caller, Depends(_admin)]


def _agent(plane: PlaneDep, token: Token) -> str:
    return keys.read_blob_token(plane.token_key, token or "", plane.now_ms())


AgentOperator = Annotated[str, Depends(_agent)]
"""The operator whose blob token this is."""


def _own_holder(plane: PlaneDep, session: ReadSession, token: Token, of: str, name: str) -> None:
    if of != "holder":
        return
    caller = caller_of(plane, token)
    if not caller.admin and name.lower() not in addresses_of(session, caller.customer):
        raise PermissionDenied(
            f"holder {name} is not this account's: link its wallet (PUT /v1/account/wallet); what each GPU, pool and "
            "epoch paid, and to whom, needs no account"
        )


OwnHolder = Depends(_own_holder)
"""For routes of `{of}s/{name}`: what is added up for a holder is for the account that speaks for the address."""
