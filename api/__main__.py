"""Starts a control plane: `python -P -m api`. Settings come from `FABRIC_` keys of the environment.

Exit codes: 0 stopped as asked, 1 database, bootstrap file or chain unusable, 2 wrong settings, 3 the port is taken.
"""

import logging
import os
import socket
import sys
from types import FrameType
from typing import NoReturn

import structlog
import uvicorn
from pydantic import ValidationError

from api.app import create_app
from api.bootstrap import BootstrapError
from api.database import DatabaseUnusable
from api.settings import Settings
from api.signals import Signals
from fabric.wire.clock import SystemClock
from fabric.wire.keys import UnknownKey, refuse_unknown
from fabric.wire.link import MAX_MESSAGE_BYTES
from ledger.chain.errors import ChainError
from ledger.chain.settings import ChainSettings

EXIT_UNUSABLE, EXIT_SETTINGS, EXIT_PORT = 1, 2, 3
SLOWED_S = 600.0
"""A peer of the relay that is slowed down answers a ping behind what it has sent already; so long that may take."""


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    settings, chain = _settings()
    _log_as_json(settings.log_level)
    with _listen(settings.host, settings.port) as listener:
        try:
            app = create_app(settings, SystemClock(), chain=chain)
        except (DatabaseUnusable, BootstrapError, ChainError) as error:
            _stop(str(error), EXIT_UNUSABLE)
        host, port = listener.getsockname()[:2]
        structlog.get_logger(__name__).info("control plane listens", url=f"http://{host}:{port}")
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_timeout=SLOWED_S,
            timeout_graceful_shutdown=5,
        )
        _Server(config, app.state.plane.signals).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Lets those who wait for a long poll go before connections are closed: an interrupted one would be a 500."""

    def __init__(self, config: uvicorn.Config, signals: Signals) -> None:
        super().__init__(config)
        self._signals = signals

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals.end()
        super().handle_exit(sig, frame)


def _settings() -> tuple[Settings, ChainSettings]:
    try:
        refuse_unknown(os.environ)
        return Settings(), ChainSettings()
    except (UnknownKey, ValidationError) as error:
        _stop(str(error), EXIT_SETTINGS)


def _listen(host: str, port: int) -> socket.socket:
    """Bind first, so that a taken port is refused before the database is touched."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        _stop(f"cannot listen on {host}:{port}: {error.strerror}; set FABRIC_PORT to a free port", EXIT_PORT)
    return listener


def _log_as_json(level: str) -> None:
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        _stop(f"FABRIC_LOG_LEVEL is {level!r}; allowed: debug, info, warning, error", EXIT_SETTINGS)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _stop(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
