"""All endpoints that the router serves: follows what the control plane says, one task per endpoint."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from api import router_tokens
from api.serving.endpoint import Endpoint
from fabric.client.http import ControlPlane
from fabric.wire.errors import AuthError, Error, ServiceError

_log = structlog.get_logger(__name__)

FOLLOW_S = 1.0
TICK_S = 0.25
REPORT_S = 2.0
KNOWN_S = 60.0
"""How long an API key that was good is believed."""
STALE_S = 600.0
"""And how much longer while the control plane cannot be asked: what is served outlives its absence."""
MAX_KEY = 200
RENEW_S = 3600.0
"""Tokens are good for a day and made anew each hour."""


@dataclass(eq=False)
class _Served:
    endpoint: Endpoint
    plane: ControlPlane
    task: "asyncio.Task[None] | None" = field(default=None)


class Registry:
    """`plane_of` makes a control plane as somebody: with this bearer token."""

    def __init__(self, url: str, secret: bytes, now_ms: Callable[[], int], *, idle_s: float) -> None:
        self._url, self._secret, self._now_ms, self._idle_s = url, secret, now_ms, idle_s
        self._router = self._as(router_tokens.ROUTER)
        self._served: dict[str, _Served] = {}
        self._keys: dict[str, tuple[float, str]] = {}
        self._followed_at = self._asked_at = 0.0
        self._renewed_at = time.monotonic()
        self._following = asyncio.Lock()

    @property
    def count(self) -> int:
        return len(self._served)

    @property
    def fresh(self) -> bool:
        """Whether the control plane was heard lately."""
        return time.monotonic() - self._followed_at < 30

    async def run(self) -> None:
        """Follow the control plane until cancelled."""
        while True:
            try:
                await self._follow()
            except Error as error:
                _log.warning("the control plane does not say what to serve", error=str(error))
            except Exception:  # noqa: BLE001 - the outermost loop: without it nothing new would be served any more
                _log.exception("what to serve was not understood")
            await asyncio.sleep(FOLLOW_S)

    async def find(self, name: str) -> Endpoint | None:
        """An endpoint by its id; one that was made this moment is asked for."""
        if name not in self._served:
            try:
                await self._follow(time.monotonic())
            except Error:
                return None
        served = self._served.get(name)
        return None if served is None else served.endpoint

    async def customer_of(self, key: str) -> str | None:
        """Whose API key this is; None for nobody's.

        Raises:
            ServiceError: the control plane does not answer.
        """
        if len(key) > MAX_KEY or not (key.isascii() and key.isprintable()):
            return None
        until, customer = self._keys.get(key, (0.0, ""))
        if until > time.monotonic():
            return customer
        plane = ControlPlane(self._url, key)
        try:
            customer = (await plane.account())["id"]
        except AuthError:
            self._keys.pop(key, None)
            return None
        except ServiceError:
            if customer and time.monotonic() < until + STALE_S:
                return customer
            raise
        finally:
            await plane.close()
        if len(self._keys) > 10_000:
            self._keys.clear()
        self._keys[key] = time.monotonic() + KNOWN_S, customer
        return customer

    async def close(self) -> None:
        """End every endpoint's replicas and the connections."""
        await asyncio.gather(*(self._drop(name) for name in list(self._served)), return_exceptions=True)
        await self._router.close()

    def open_bytes(self, customer: str) -> int:
        """Of the requests that this customer waits for now."""
        mine = (served.endpoint for served in self._served.values() if served.endpoint.facts["customer"] == customer)
        return sum(endpoint.open_bytes for endpoint in mine)

    async def _follow(self, since: float | None = None) -> None:
        """With `since`, only unless it was asked after that: many who wait for the same answer share it."""
        async with self._following:
            if since is not None and self._asked_at > since:
                return
            self._asked_at = time.monotonic()
            self._renew()
            listed = (await self._router.get("/v1/serving/endpoints"))["endpoints"]
            self._followed_at = time.monotonic()
            names = {facts["id"] for facts in listed}
            for name in set(self._served) - names:
                await self._drop(name)
            for facts in listed:
                if facts["id"] not in self._served:
                    plane = self._as(facts["customer"])
                    endpoint = Endpoint(facts, plane, self._router, idle_s=self._idle_s)
                    served = self._served[facts["id"]] = _Served(endpoint, plane)
                    served.task = asyncio.create_task(_keep(endpoint))

    async def _drop(self, name: str) -> None:
        served = self._served.pop(name)
        if served.task is not None:
            served.task.cancel()
        await served.endpoint.close()

    def _as(self, customer: str) -> ControlPlane:
        return ControlPlane(self._url, router_tokens.make(self._secret, customer, self._now_ms()))

    def _renew(self) -> None:
        if time.monotonic() - self._renewed_at < RENEW_S:
            return
        self._renewed_at = time.monotonic()
        self._router.renew(router_tokens.make(self._secret, router_tokens.ROUTER, self._now_ms()))
        for served in self._served.values():
            served.plane.renew(router_tokens.make(self._secret, served.endpoint.facts["customer"], self._now_ms()))


async def _keep(endpoint: Endpoint) -> None:
    """An endpoint's own loop; a fault is logged and tried again."""
    reported_at = 0.0
    cleared = False
    while True:
        try:
            if not cleared:
                await endpoint.clear_old()
                cleared = True
            await endpoint.tick()
            if time.monotonic() - reported_at >= REPORT_S:
                reported_at = time.monotonic()
                await endpoint.report()
        except Error as error:
            _log.warning("an endpoint's beat failed", endpoint=endpoint.id, error=str(error))
        except Exception:  # noqa: BLE001 - the outermost loop: an endpoint without it has no replicas any more
            _log.exception("an endpoint's beat failed", endpoint=endpoint.id)
        await asyncio.sleep(TICK_S)
