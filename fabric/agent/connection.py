"""A connection to a node's socket: the agent's, a customer's that the agent vouches for, or another node's of a gang.

Its first frame says which, with the node's token. What may be said then is for whom it concerns to check.
"""

from typing import Any, Protocol

import structlog

from fabric.agent import dialect
from fabric.agent.lease import Lease
from fabric.agent.mesh import GangLine
from fabric.agent.stream import FrameStream
from fabric.wire.frames import Buffer, FrameError

_log = structlog.get_logger(__name__)


class Host(Protocol):
    """The node. The three `take_…` raise FrameError when the token is not the node's."""

    def take_control(self, stream: FrameStream, token: str) -> None: ...
    def take_channel(self, stream: FrameStream, token: str, lease: str, generation: int) -> Lease | None: ...
    def take_gang(self, stream: FrameStream, token: str, group: str, other: int, rank: int) -> GangLine | None: ...
    def on_control(self, header: list[Any], body: Buffer = b"") -> None: ...
    def control_lost(self, stream: FrameStream) -> None: ...


class Connection:
    """What one connection is for, once it has said so."""

    def __init__(self, node: Host) -> None:
        self._node = node
        self._lease: Lease | None = None
        self._line: GangLine | None = None
        self._control = False
        self.stream = FrameStream(self._on_frame, self._on_closed)

    def _on_frame(self, header: list[Any], body: Buffer) -> None:
        try:
            self._dispatch(header, body)
        except (FrameError, TypeError, ValueError) as error:
            _log.warning("a connection was dropped", error=str(error))
            self.stream.abort()

    def _dispatch(self, header: list[Any], body: Buffer) -> None:
        if self._lease is not None:
            self._lease.handle(header, body)
            return
        if self._line is not None:
            self._line.handle(header, body)
            return
        if self._control:
            self._node.on_control(header, body)
            return
        match header:
            case [dialect.CONTROL, str() as token]:
                self._node.take_control(self.stream, token)
                self._control = True
            case [dialect.GANG, str() as token, str() as group, int() as other, int() as rank]:
                self._line = self._node.take_gang(self.stream, token, group, other, rank)
            case [dialect.CHANNEL, str() as token, str() as lease, int() as generation]:
                self._lease = self._node.take_channel(self.stream, token, lease, generation)
            case _:
                raise FrameError(f"a connection began with {header[0]!r}")

    def _on_closed(self, error: Exception | None) -> None:
        if error is not None:
            _log.info("a connection broke", error=str(error))
        if self._lease is not None:
            self._lease.detach(self.stream)
        if self._control:
            self._node.control_lost(self.stream)
