"""A customer's connection, given by the agent to a node on the same machine as an open socket.

Beside the node's own socket lies another one; what comes there is one message with one descriptor. Nothing is decided
here: who gives knows the node's token, and the node checks it.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import cast

import msgpack

MAX_EARLY_BYTES = 32 << 10
"""A customer who has sent more before the lease was open keeps the gateway between."""

_MESSAGE_BYTES = MAX_EARLY_BYTES + 4096


@dataclass(frozen=True, slots=True)
class Handed:
    """What goes with the socket. `token` is the node's; `early` is what the customer has sent for it already."""

    token: str
    lease: str
    generation: int
    early: bytes


def hand_over(address: str, descriptor: int, given: Handed) -> bool:
    """Give an open connection to the node at `unix:<path>`; False when it cannot take it: then it is still ours."""
    kind, _, path = address.partition(":")
    if kind != "unix" or len(given.early) > MAX_EARLY_BYTES:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as node:
        node.setblocking(False)
        try:
            node.connect(str(door_of(Path(path))))
            socket.send_fds(node, [cast("bytes", msgpack.packb(astuple(given)))], [descriptor])
        except OSError:
            return False
    return True


def door_of(path: Path) -> Path:
    """Where the node whose own socket is at `path` takes connections."""
    return path.with_name(f"{path.name}.door")


class Door:
    """The node's end. `on_handed` gets each socket, to keep or to close, and what came with it."""

    def __init__(self, path: Path, on_handed: Callable[[socket.socket, Handed], None]) -> None:
        """Raises OSError when nothing can listen there."""
        self._path = door_of(path)
        self._on_handed = on_handed
        self._loop = asyncio.get_running_loop()
        self._path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listening.bind(str(self._path))
        self._listening.listen(128)
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def close(self) -> None:
        """Twice is once."""
        if self._listening.fileno() < 0:
            return
        self._loop.remove_reader(self._listening.fileno())
        self._listening.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        """Take one; the giver has sent everything before it hangs up, or nothing comes of it."""
        with suppress(OSError):
            giver, _ = self._listening.accept()
            giver.setblocking(False)
            self._loop.add_reader(giver.fileno(), self._take, giver)

    def _take(self, giver: socket.socket) -> None:
        self._loop.remove_reader(giver.fileno())
        with giver:
            try:
                message, descriptors, *_ = socket.recv_fds(giver, _MESSAGE_BYTES, 1)
            except OSError:
                return
        if len(descriptors) == 1:
            self._open(descriptors[0], message)

    def _open(self, descriptor: int, message: bytes) -> None:
        try:
            token, lease, generation, early = msgpack.unpackb(message)
            given = Handed(str(token), str(lease), int(generation), bytes(early))
            connection = socket.socket(fileno=descriptor)
        except (ValueError, TypeError, OSError, msgpack.exceptions.UnpackException):
            os.close(descriptor)
            return
        connection.setblocking(False)
        self._on_handed(connection, given)
