"""The customers' door: listens, checks lease tokens, and opens a passage to the lease's node for who may pass.

A connection whose lease is not open yet is held until it is. What passes is not looked at.
"""

import asyncio
from http import HTTPStatus
from typing import Protocol

import structlog
from websockets.frames import CloseCode
from websockets.http11 import Request

from fabric.agent.certificate import Certificate
from fabric.agent.passage import HANDSHAKE_S, Denied, Passage, Refusal
from fabric.wire.channel import PING_PATH
from fabric.wire.clock import Clock
from fabric.wire.tokens import LeaseToken, TokenError, verify_token

__all__ = ["PATH", "Gateway", "Leases", "Refusal"]

_log = structlog.get_logger(__name__)

PATH = "/v1/channel"


class Leases(Protocol):
    """The leases of this operator, as the gateway needs them."""

    token_key: bytes | None

    def superseded(self, token: LeaseToken) -> bool:
        """Whether the token is of an older generation of its lease than the one known here."""
        ...

    async def node_of(self, token: LeaseToken) -> tuple[str, str]:
        """Wait until the lease is open; address and token of its node.

        Raises:
            Refusal: it is over, or does not open.
        """
        ...


class Gateway:
    """`start`, then customers may come, until `stop`."""

    def __init__(self, leases: Leases, *, operator: str, clock: Clock, certificate: Certificate | None = None) -> None:
        self._leases = leases
        self._operator = operator
        self._clock = clock
        self._certificate = certificate
        self._server: asyncio.Server | None = None
        self._passages: set[Passage] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def fingerprint(self) -> str:
        """Of its certificate; "" without one."""
        return self._certificate.fingerprint if self._certificate is not None else ""

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is a free one for 0.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Passage(self),
            host,
            port,
            ssl=self._certificate.context if self._certificate is not None else None,
            ssl_handshake_timeout=HANDSHAKE_S if self._certificate is not None else None,
        )
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for passage in list(self._passages):
                passage.close(CloseCode.GOING_AWAY)
            await self._empty.wait()
            await self._server.wait_closed()

    def entered(self, passage: Passage) -> None:
        self._passages.add(passage)
        self._empty.clear()

    def left(self, passage: Passage) -> None:
        self._passages.discard(passage)
        if not self._passages:
            self._empty.set()

    async def node_of(self, token: LeaseToken) -> tuple[str, str]:
        return await self._leases.node_of(token)

    def admit(self, request: Request) -> LeaseToken:
        """The token of who may pass.

        Raises:
            Denied: nobody else. Why a token opens nothing is in the log, without the token.
        """
        if request.path == PING_PATH:  # opens nothing; that there is an answer is all
            raise Denied(HTTPStatus.OK, "")
        if request.path != PATH:
            raise Denied(HTTPStatus.NOT_FOUND, f"nothing here; the data channel is {PATH}\n")
        scheme, _, compact = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not compact:
            raise Denied(HTTPStatus.UNAUTHORIZED, "send the lease token: Authorization: Bearer <token>\n")
        key = self._leases.token_key
        if key is None:
            raise Denied(HTTPStatus.SERVICE_UNAVAILABLE, "this operator has no control plane yet\n")
        try:
            token = verify_token(compact.strip(), key, audience=self._operator, clock=self._clock)
        except TokenError as error:
            raise _denied(str(error)) from None
        if self._leases.superseded(token):
            raise _denied("the lease token is of an older generation", token.lease)
        if token.fingerprint != self.fingerprint:
            raise _denied("the lease token is for another certificate; fetch the run's route again", token.lease)
        return token


def _denied(why: str, lease: str = "") -> Denied:
    _log.info("a customer was not let in", why=why, lease=lease)
    return Denied(HTTPStatus.UNAUTHORIZED, f"{why}\n")
