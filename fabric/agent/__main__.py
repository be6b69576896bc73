"""`python -P -m fabric.agent`: runs the agent that `FABRIC_AGENT_CONFIG` describes, until SIGTERM or SIGINT.

Exit code 0 after a clean stop, 1 when the control plane refuses it, 2 when it cannot start as it is configured.
"""

import asyncio
import importlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from fabric.agent.agent import Agent
from fabric.agent.certificate import CertificateError
from fabric.agent.cluster import ClusterError
from fabric.agent.executor import RayCluster
from fabric.agent.link import Refused
from fabric.agent.outbox import CorruptState, Outbox
from fabric.agent.settings import AgentSettings, ConfigError, load
from fabric.wire.clock import SystemClock

_log = structlog.get_logger("fabric.agent")


def main() -> int:
    try:
        environment, settings = load(dict(os.environ))
        _log_json(environment.log_level)
        settings.session_key()
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        outbox = Outbox(settings.state_dir / "receipts.db")
    except (ConfigError, CorruptState, OSError) as error:
        sys.stderr.write(f"fabric agent: {error}\n")
        return 2
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings, outbox))


async def _serve(settings: AgentSettings, outbox: Outbox) -> int:
    """Run the agent until a signal or its own end; then stop it."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    token = _node_token(settings.state_dir / "node.token")
    try:
        agent = Agent(
            settings,
            key=settings.session_key(),
            cluster=RayCluster(settings, token),
            outbox=outbox,
            node_token=token,
            clock=SystemClock(),
        )
    except CertificateError as error:
        sys.stderr.write(f"fabric agent: {error}\n")
        return 2
    running = asyncio.ensure_future(agent.run())
    signalled = asyncio.ensure_future(stopped.wait())
    await asyncio.wait((running, signalled), return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    code = _exit_code(running) if running.done() else 0
    await agent.stop()
    running.cancel()
    await asyncio.wait([running])
    return code


def _exit_code(ended: "asyncio.Task[None]") -> int:
    error = ended.exception()
    if error is not None and not isinstance(error, (Refused, ClusterError, OSError)):
        raise error
    sys.stderr.write(f"fabric agent: {error}\n")
    return 1 if isinstance(error, Refused) else 2


def _node_token(path: Path) -> str:
    """What connections to our nodes must know; the same after a restart, so that nodes that live on still answer."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text(encoding="ascii").strip()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """That of uvloop where it is installed."""
    try:
        return importlib.import_module("uvloop").new_event_loop
    except ModuleNotFoundError:
        return asyncio.new_event_loop


def _log_json(level: str) -> None:
    """One JSON object per line, to stderr."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
