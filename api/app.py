"""The control plane's application: everything is built here, once per process, and nowhere else."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from random import SystemRandom

import structlog
from anyio import to_thread
from fastapi import FastAPI, Request, Response

from api import bootstrap, conduct, errors, ledger_jobs, rounds, sweeps
from api.agents import Agents
from api.following import Following
from api.ingest import Ingest
from api.limits import BodyLimit
from api.listening import Listener
from api.metering import Metering
from api.plane import Plane, build
from api.relay import Relay
from api.routes import (
    account,
    agent,
    audit,
    blobs,
    endpoints,
    enrol,
    health,
    inventory,
    investors,
    leases,
    ledger,
    offers,
    relay,
    runs,
    sessions,
    streams,
)
from api.routes import chain as chain_route
from api.routes import checkpoints as checkpoints_route
from api.routes import conduct as conduct_route
from api.routes import orders as orders_route
from api.routes import pools as pools_route
from api.routes import slots as slots_route
from api.settings import Settings
from api.signals import CAPACITY
from fabric.wire.clock import Clock
from ledger.chain.settings import ChainSettings

_log = structlog.get_logger(__name__)
_ROUTES = (
    health,
    endpoints,
    account,
    offers,
    runs,
    leases,
    sessions,
    blobs,
    inventory,
    enrol,
    investors,
    streams,
    ledger,
    chain_route,
    checkpoints_route,
    conduct_route,
    audit,
    agent,
    relay,
    pools_route,
    slots_route,
    orders_route,
)
_RANDOM = SystemRandom()
_DESCRIPTION = """
The control plane of Berkeley Compute: it knows every GPU, places runs, meters them by signed receipts and keeps the
ledger.

Amounts are integers of DC (1 DC = USD 0.00001) written as strings; GPU time is integer milliseconds; times are Unix
milliseconds. Errors are RFC 9457 problem documents whose `type` ends in a code. Offers, GPUs, operators and the
ledger's totals need no account; everything else needs `Authorization: Bearer <API key>`.
"""


def create_app(
    settings: Settings, clock: Clock, *, tick_s: float | None = 1.0, chain: ChainSettings | None = None
) -> FastAPI:
    """The application, with its database open and migrated.

    Args:
        settings: of this process.
        clock: its wall clock is the fabric's time.
        tick_s: seconds between beats and sweeps; None for none: whoever drives a clock by hand calls `tick`.
        chain: where epochs are settled; None for nowhere.

    Raises:
        DatabaseUnusable: corrupt, or of a newer version. BootstrapError: the bootstrap file is wrong. ChainError: the
            chain's settings cannot be used.
    """
    plane = build(settings, clock, chain)
    try:
        if settings.bootstrap is not None:
            bootstrap.apply(plane, settings.bootstrap)
    except BaseException:
        plane.database.close()
        raise
    app = FastAPI(title="Berkeley Compute", version=plane.version, description=_DESCRIPTION, lifespan=_lifespan(tick_s))
    app.state.plane = plane
    app.state.ingest = Ingest(Metering(plane))
    app.state.agents = Agents(plane, app.state.ingest)
    app.state.following = Following()
    app.state.relay = Relay(plane, app.state.agents)
    errors.install(app)
    app.middleware("http")(_measure)
    app.add_middleware(BodyLimit)
    for module in _ROUTES:
        app.include_router(module.router)
    return app


async def tick(app: FastAPI) -> None:
    """One beat: nonces to the agents, sweeps of time, the ledger's jobs."""
    plane: Plane = app.state.plane
    await app.state.agents.beat()
    await to_thread.run_sync(sweeps.sweep, plane)
    await to_thread.run_sync(sweeps.refit, plane)
    await to_thread.run_sync(rounds.sweep, plane, _RANDOM)
    await to_thread.run_sync(ledger_jobs.tick, plane)
    await to_thread.run_sync(conduct.sweep, plane)
    if plane.chain is not None:
        await to_thread.run_sync(_chain_job(plane))


def _chain_job(plane: Plane) -> Callable[[], None]:
    """Index, close, settle; imported only where there is a chain."""
    from api.chain_jobs import ChainJobs

    return ChainJobs(plane).tick


def _lifespan(tick_s: float | None) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        plane: Plane = app.state.plane
        plane.signals.bind(asyncio.get_running_loop())
        listener = _listener(plane)
        jobs = [asyncio.create_task(app.state.ingest.run()), asyncio.create_task(_queue(plane))]
        if tick_s is not None:
            jobs += [
                asyncio.create_task(_every(tick_s, app.state.agents.beat)),
                asyncio.create_task(_every(tick_s, lambda: to_thread.run_sync(sweeps.sweep, plane))),
                asyncio.create_task(_every(tick_s, lambda: to_thread.run_sync(sweeps.refit, plane))),
                asyncio.create_task(_every(tick_s, lambda: to_thread.run_sync(rounds.sweep, plane, _RANDOM))),
                asyncio.create_task(_every(tick_s, lambda: to_thread.run_sync(ledger_jobs.tick, plane))),
                asyncio.create_task(_every(10, lambda: to_thread.run_sync(conduct.sweep, plane))),
                asyncio.create_task(_every(60, lambda: to_thread.run_sync(plane.blobs.expire))),
                asyncio.create_task(_every(3600, lambda: to_thread.run_sync(plane.logs.expire, plane.now_ms()))),
            ]
        if tick_s is not None and plane.chain is not None:
            chain_job = _chain_job(plane)
            jobs.append(asyncio.create_task(_every(tick_s, lambda: to_thread.run_sync(chain_job))))
        try:
            yield
        finally:
            await app.state.agents.close()
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            if listener is not None:
                await to_thread.run_sync(listener.close)
            plane.database.close()

    return lifespan


def _listener(plane: Plane) -> Listener | None:
    """Hears the other control planes; on SQLite there are none."""
    if plane.database.is_sqlite:
        return None
    listener = Listener(plane.database.url, plane.signals.notify, plane.signals.notify_all)
    listener.start()
    return listener


async def _every(seconds: float, act: Callable[[], Awaitable[object]]) -> None:
    """For ever; a fault is logged and the next beat tried: the rows are the truth, so nothing is lost."""
    while True:
        started = time.monotonic()
        try:
            await act()
        except Exception:  # noqa: BLE001 - the outermost loop; the next beat tries again
            _log.exception("a periodic job failed")
        await asyncio.sleep(max(0.0, seconds - (time.monotonic() - started)))


async def _queue(plane: Plane) -> None:
    """Try the queue whenever something became free."""
    while True:
        seen = plane.signals.seen(CAPACITY)
        try:
            await to_thread.run_sync(sweeps.place_queued, plane)
        except Exception:  # noqa: BLE001 - the outermost loop; the next wake-up tries again
            _log.exception("placing queued runs failed")
        await plane.signals.wait(CAPACITY, seen, 60.0)


async def _measure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    started = time.perf_counter()
    response = await call_next(request)
    path = getattr(request.scope.get("route"), "path", "unknown")
    labels = request.app.state.plane.metrics.requests.labels(request.method, path, response.status_code)
    labels.observe(time.perf_counter() - started)
    return response
