"""The process's one session with a fabric: opened by the first call, ended with the process.

It builds everything the SDK needs in one place and keeps the control plane informed that the process lives.
"""

import asyncio
import atexit
import os
import signal
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

from fabric import local
from fabric.client.http import ControlPlane
from fabric.client.loop import LoopThread
from fabric.client.office import Office
from fabric.client.settings import ClientSettings
from fabric.client.terminal import say
from fabric.wire import job
from fabric.wire.errors import Error, InvalidRequest
from fabric.wire.ids import new_id

T = TypeVar("T")

HEARTBEAT_S = 60.0
GOODBYE_S = 3.0
"""How long the end of the process may be held up to release its leases."""
TOLD_S = 1.5
"""How much of it to tell how its runs ended; the end of the session ends them too."""


class Session:
    """A connection to one control plane as one account."""

    def __init__(self, plane: ControlPlane, session: str) -> None:
        self.id = session
        self.pid = os.getpid()
        self.loop = LoopThread()
        self.plane = plane
        self.office = Office(self.plane, session, self.loop)
        self.loop.post(lambda: self.loop.start(self._beat()))

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a request and wait for its answer."""
        return self.loop.call(coroutine, timeout)

    def close(self) -> None:
        """Release every lease and end; at most `GOODBYE_S`."""
        with suppress(TimeoutError, RuntimeError):
            self.loop.call(self._goodbye(), GOODBYE_S)
        self.loop.stop()

    async def _goodbye(self) -> None:
        self.office.pool.close()
        with suppress(Error):
            await self.office.told(TOLD_S)
            await self.office.registrar.flush()
            if self.office.used:
                with suppress(Error):
                    await self.office.report_times()
                await self.plane.end_session(self.id)
        await self.plane.close()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with suppress(Error):
                await self.plane.heartbeat(self.id)
                await self.office.report_times()


def current() -> Session:
    """The process's session; opened when there is none, or its fabric ended, or this process was forked from its owner.

    Raises:
        InvalidRequest: a mistyped key in the environment, or no fabric to talk to.
        ServiceError: the embedded fabric does not start.
    """
    global _session  # noqa: PLW0603 - one per process is the point
    with _lock:
        if _session is not None and _session.pid == os.getpid() and not _session.plane.ended:
            return _session
        _session = _open(_chosen or ClientSettings.from_environ(os.environ))
        _end_with_the_process()
        return _session


def choose(url: str | None, api_key: str | None) -> None:
    """Talk to this fabric from now on; a session with another one ends.

    Raises:
        InvalidRequest: a key without a URL, or what is no text.
    """
    global _chosen  # noqa: PLW0603
    for name, given in (("url", url), ("api_key", api_key)):
        if given is not None and (not isinstance(given, str) or not given.isprintable()):
            raise InvalidRequest(f"fabric.init({name}={given!r:.80}): it is no text of printable characters")
    if api_key and not url:
        raise InvalidRequest("fabric.init(api_key=…) needs the url of its control plane too")
    end()
    _chosen = ClientSettings(url, api_key or "") if url else None


def end() -> None:
    """End the process's session, if it has one."""
    global _session
    with _lock:
        ending, _session = _session, None
    if ending is not None and ending.pid == os.getpid():
        ending.close()


_session: Session | None = None
_chosen: ClientSettings | None = None
_lock = threading.Lock()
_hooked = False


def _open(settings: ClientSettings) -> Session:
    session = new_id("ses")
    if settings.url:
        return Session(ControlPlane(settings.url, settings.api_key), session)
    if job.checkpoint_dir is not None:
        raise InvalidRequest(
            "a job of the fabric starts no fabric of its own: call fabric from the process that started the job, or "
            "give the job an account with secrets=['FABRIC_URL', 'FABRIC_API_KEY'] and a network that reaches it"
        )
    embedded = local.ensure(session, say)
    return Session(ControlPlane(embedded.url, embedded.api_key, embedded.is_over), session)


def _end_with_the_process() -> None:
    global _hooked  # noqa: PLW0603
    if _hooked:
        return
    _hooked = True
    atexit.register(end)
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, _frame: FrameType | None) -> None:
    end()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
