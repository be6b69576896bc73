"""The relay: a customer's connection and the one that the operator's agent dials for it, joined.

For operators whose gateway cannot be reached. Bytes pass in pieces; a slow side slows the other and no more than a few
pieces are held. They are those of a connection to the gateway, which checks the lease token again. What is decided here
is only whom an agent is called for.
"""

import asyncio
import contextlib
import hmac
import secrets
from dataclasses import dataclass, field
from http import HTTPStatus

import structlog
from anyio import to_thread
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.agents import Agents
from api.plane import Plane
from api.tables import ClusterRow, LeaseRow
from fabric.wire import link
from fabric.wire.channel import RELAY_PATH
from fabric.wire.ids import new_id
from fabric.wire.machines import ACTIVE_LEASE_STATES, LeaseState
from fabric.wire.tokens import TokenError, read_token

_log = structlog.get_logger(__name__)

ANSWER_S = 5.0
"""How long an agent may take to dial."""


class _Denied(Exception):
    """The connection opens nothing: an HTTP status and words for the customer."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True, eq=False)
class _Line:
    """One customer's way to one lease, from the call for the agent to the end."""

    secret: str
    dialled: "asyncio.Future[WebSocket]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody else took over, or either side is gone."""


class Relay:
    """The lines of this process: one per lease, a newer one ends the older."""

    def __init__(self, plane: Plane, agents: Agents) -> None:
        self._plane = plane
        self._agents = agents
        self._lines: dict[str, _Line] = {}
        self._called: dict[str, _Line] = {}

    async def customer(self, websocket: WebSocket) -> None:
        """A customer's end, from its request to the end."""
        try:
            lease, cluster = await to_thread.run_sync(self._admit, websocket.headers.get("authorization", ""))
            line = self._begin(lease)
        except _Denied as denied:
            await _deny(websocket, denied)
            return
        try:
            agent = await self._call(line, cluster)
            await websocket.accept()
            await _join(websocket, agent, line.over)
        except _Denied as denied:
            await _deny(websocket, denied)
        finally:
            line.over.set()
            if self._lines.get(lease) is line:
                del self._lines[lease]

    async def agent(self, websocket: WebSocket, name: str) -> None:
        """An agent's end: it was called under this name, with a secret."""
        line = self._called.get(name)
        _, _, secret = websocket.headers.get("authorization", "").partition(" ")
        if line is None or line.dialled.done() or not hmac.compare_digest(secret, line.secret):
            await _deny(websocket, _Denied(HTTPStatus.NOT_FOUND, "nobody waits here"))
            return
        del self._called[name]
        await websocket.accept()
        line.dialled.set_result(websocket)
        await line.over.wait()

    async def ping(self, cluster: str) -> bool:
        """Wait as long as the way from here to the agent and back takes; False when it is not connected here."""
        connection = self._agents.find(cluster)
        took_s = connection.pulse.round_trip_s if connection is not None else None
        if took_s is None:
            return False
        await asyncio.sleep(took_s)
        return True

    def _admit(self, authorization: str) -> tuple[str, str]:
        """The lease and its cluster.

        Raises:
            _Denied: the token opens nothing.
        """
        scheme, _, compact = authorization.partition(" ")
        if scheme.lower() != "bearer" or not compact:
            raise _Denied(HTTPStatus.UNAUTHORIZED, "send the lease token: Authorization: Bearer <token>")
        try:
            token = read_token(compact.strip(), bytes(self._plane.token_key.verify_key), clock=self._plane.clock)
        except TokenError as error:
            raise _Denied(HTTPStatus.UNAUTHORIZED, str(error)) from None
        with self._plane.database.read() as session:
            lease = session.get(LeaseRow, token.lease)
            if lease is None or lease.operator != token.audience:
                raise _Denied(HTTPStatus.UNAUTHORIZED, "the lease token is for a lease that is not known here")
            if lease.generation != token.generation:
                raise _Denied(HTTPStatus.UNAUTHORIZED, "the lease token is of an older generation")
            if LeaseState(lease.state) not in ACTIVE_LEASE_STATES:
                raise _Denied(HTTPStatus.UNAUTHORIZED, f"the lease is over: {lease.reason}")
            return lease.id, session.get_one(ClusterRow, lease.cluster).id

    def _begin(self, lease: str) -> _Line:
        older, line = self._lines.get(lease), _Line(secrets.token_urlsafe(32))
        if older is not None:
            older.over.set()
        self._lines[lease] = line
        return line

    async def _call(self, line: _Line, cluster: str) -> WebSocket:
        """The agent's end, once it has dialled.

        Raises:
            _Denied: it is not connected here, does not answer, or a newer connection took over.
        """
        connection = self._agents.find(cluster)
        if connection is None:
            raise _Denied(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the operator's agent is not connected to this control plane; fetch the run's route again",
            )
        name = new_id("relay")
        self._called[name] = line
        connection.send(link.Relay(url=f"{self._plane.settings.public_url}{RELAY_PATH}/{name}", secret=line.secret))
        taken = asyncio.ensure_future(line.over.wait())
        try:
            await asyncio.wait((line.dialled, taken), timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            taken.cancel()
            self._called.pop(name, None)
        if not line.dialled.done():
            raise _Denied(HTTPStatus.GATEWAY_TIMEOUT, "the operator's agent did not answer; try again")
        return line.dialled.result()


async def _join(customer: WebSocket, agent: WebSocket, over: asyncio.Event) -> None:
    """Pass on what comes, until either side ends or somebody takes over."""
    ways = [asyncio.ensure_future(way) for way in (_pass_on(customer, agent), _pass_on(agent, customer), over.wait())]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (customer, agent):
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await end.close()


async def _pass_on(source: WebSocket, sink: WebSocket) -> None:
    """Piece by piece: the next one is taken when the one before has gone."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (message := await source.receive())["type"] == "websocket.receive":
            await sink.send({"type": "websocket.send", "bytes": message.get("bytes") or b""})


async def _deny(websocket: WebSocket, denied: _Denied) -> None:
    _log.info("a relayed connection was denied", status=denied.status.value, why=str(denied))
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await websocket.send_denial_response(PlainTextResponse(f"{denied}\n", denied.status))
