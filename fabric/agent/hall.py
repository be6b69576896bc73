"""Customers whose connections the agent handed over to this node.

It trusts who knows the node's token to have checked the customer's.
"""

import asyncio
import hmac
import socket
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from websockets.http11 import Request

from fabric.agent.dialect import CHANNEL
from fabric.agent.handover import Door, Handed
from fabric.agent.inside import Inside
from fabric.agent.passage import Denied, NodeSide, Passage, Refusal
from fabric.agent.stream import FrameStream
from fabric.wire.frames import pack_bytes
from fabric.wire.reasons import Reason
from fabric.wire.tokens import LeaseToken


class Hall:
    """Of the node at `address`; nobody comes where the agent may be on another machine.

    Args:
        address: the node's own.
        token: the node's.
        serve: makes the node's end of a connection.
    """

    def __init__(self, address: str, token: str, serve: Callable[[], FrameStream]) -> None:
        """Raises OSError when nothing can listen there."""
        kind, _, path = address.partition(":")
        self._token = token
        self._serve = serve
        self._passages: set[Passage] = set()
        self._entering: set[asyncio.Task[object]] = set()
        self._door = Door(Path(path), self._on_handed) if kind == "unix" else None

    def close(self) -> None:
        """Let nobody else in; who is here goes when the node ends the connection."""
        if self._door is not None:
            self._door.close()

    def entered(self, passage: Passage) -> None:
        self._passages.add(passage)

    def left(self, passage: Passage) -> None:
        self._passages.discard(passage)

    def admit(self, request: Request) -> LeaseToken:  # noqa: ARG002 - whoever is here was let in before
        raise Denied(HTTPStatus.FORBIDDEN, "ask the gateway\n")

    async def node_of(self, token: LeaseToken) -> tuple[str, str]:
        raise Refusal(Reason.INTERNAL_ERROR, f"lease {token.lease} is to be reached through the gateway")

    def _on_handed(self, connection: socket.socket, given: Handed) -> None:
        if not hmac.compare_digest(given.token, self._token):
            connection.close()
            return
        loop = asyncio.get_running_loop()
        entering = loop.create_task(
            loop.connect_accepted_socket(lambda: Passage(self, lambda one: self._inside(one, given)), connection)
        )
        self._entering.add(entering)
        entering.add_done_callback(self._entering.discard)

    def _inside(self, passage: Passage, given: Handed) -> NodeSide:
        inside = Inside(passage, self._serve())
        inside.take([pack_bytes([CHANNEL, given.token, given.lease, given.generation]), given.early])
        return inside.way
