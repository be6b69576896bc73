"""Ports to listen on. A free port can be taken by anybody before it is used: these are where few others look."""

import random
import socket

LOW, HIGH = 20_000, 32_768
"""Above Ray's own worker ports, below those that Linux gives to outgoing connections."""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nobody listens on now, all different, drawn at random."""
    drawn = random.SystemRandom().sample(range(LOW, HIGH), 50 * count)
    return [port for port in drawn if is_free(port, host)][:count]


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether one could listen there now."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError:
            return False
    return True
