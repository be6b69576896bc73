"""What every run of a session shares: the control plane, the lingering leases, the registrar of warm runs.

It asks for routes and releases; it decides nothing about runs.
"""

import asyncio
import platform
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import cache
from importlib.metadata import version
from typing import Any, TypeVar

from fabric.client.channel import Gone
from fabric.client.http import ControlPlane, Probe, away_delays_s
from fabric.client.lease_pool import HeldLease, LeasePool
from fabric.client.loop import LoopThread
from fabric.client.registrar import Registrar
from fabric.client.route import Route, note_unreachable
from fabric.client.terminal import print_line, say
from fabric.client.timesheet import Timesheet
from fabric.ping import round_trips_us
from fabric.wire.errors import Error, ServiceError
from fabric.wire.link import CONTROL
from fabric.wire.machines import LeaseState
from fabric.wire.reasons import Reason

T = TypeVar("T")

MEASURE_ROUNDS = 3
"""Landmarks, the few best by estimate, and those that are the best now that something is known."""

GRACE_S = 3.0
"""A request that is under way when it is time has so long to be answered."""

_NOT_OURS_TO_SAY = frozenset({Reason.OPERATOR_LOST, Reason.GPU_UNHEALTHY})
"""The control plane takes these from nobody: they make used time the operator's loss."""

_CONNECTABLE = frozenset({LeaseState.GRANTED, LeaseState.OPEN})


class Office:
    """One session's. `used` says whether the control plane has heard, or will hear, of a run of it."""

    def __init__(self, plane: ControlPlane, session: str, loop: LoopThread) -> None:
        self.plane = plane
        self.session = session
        self.loop = loop
        self.used = False
        self._telling: set[asyncio.Task[None]] = set()
        self.times = Timesheet(time.monotonic)
        self.pool = LeasePool(self._release, loop.start, print_line, self.times.end)
        self.registrar = Registrar(lambda runs: plane.register_runs(session, runs))
        self._away = False

    def note_away(self, error: ServiceError) -> None:
        """What asks again until it gets an answer got none: said once, until there is one."""
        if error.retryable and not self._away:
            self._away = True
            say(f"fabric: {error.message}; trying again")

    def note_answer(self) -> None:
        if self._away:
            self._away = False
            say("fabric: the control plane answers again")

    async def until_answered(self, ask: Callable[[], Awaitable[T]], until: float | None = None) -> T:
        """Ask again and again while the control plane is away.

        Args:
            ask: makes one request.
            until: when it is enough, by the monotonic clock; None for never.

        Raises:
            Error: what it answered; a retryable ServiceError only when there was no answer by `until`.
        """
        for delay in away_delays_s():
            try:
                answer = await ask()
            except ServiceError as error:
                left = delay if until is None else until - time.monotonic()
                if not error.retryable or left <= 0:
                    raise
                self.note_away(error)
                await asyncio.sleep(min(delay, left))
            else:
                self.note_answer()
                return answer
        raise AssertionError

    def start(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run beside everything else."""
        return self.loop.start(coroutine)

    def tell(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """As `start`, for what the control plane must hear before the session ends."""
        task = self.loop.start(coroutine)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        return task

    async def told(self, timeout_s: float | None = None) -> None:
        """Wait until the control plane has heard everything, so long at most."""
        if self._telling:
            await asyncio.wait(self._telling, timeout=timeout_s)

    def request(self, run: str, kind: str, members: dict[str, Any]) -> dict[str, Any]:
        """A RunRequest of this session and this Python."""
        self.used = True
        return {"id": run, "kind": kind, "session": self.session, **here(), **members}

    async def create_run(self, request: dict[str, Any], idempotency_key: str, *, measures: bool) -> dict[str, Any]:
        """Post a run; where it matters how far gateways are from here, the few best are measured first."""
        if measures:
            await self.measure(request)
        return await self.plane.create_run(request, idempotency_key)

    async def measure(self, request: dict[str, Any]) -> None:
        """Measure what the control plane finds worth measuring for this run, until it has nothing more to ask."""
        found: dict[str, int] = {}
        for _ in range(MEASURE_ROUNDS):
            probe = await self.plane.rtts(self.session, found, request)
            if not probe:
                return
            found = await self._round_trips_us(probe)
        await self.plane.rtts(self.session, found, request)

    async def _round_trips_us(self, probe: dict[str, Probe]) -> dict[str, int]:
        """To the control plane and these places: directly, and where a gateway cannot be reached through the relay."""
        direct = {place: one.gateway for place, one in probe.items() if one.gateway}
        found = await round_trips_us({**direct, CONTROL: self.plane.url})
        missing = {place: one for place, one in probe.items() if place not in found and one.relay}
        if not missing or CONTROL not in found:
            return found
        relayed = await round_trips_us({place: one.relay for place, one in missing.items()})
        for place in relayed:
            note_unreachable(missing[place].gateway)
        return {**found, **relayed}

    async def report_times(self) -> None:
        """Tell for how long this process has its leases; those that are over are told of once."""
        while lines := self.times.untold():
            await self.plane.report_times(self.session, [line.to_json() for line in lines])
            self.times.told(lines)

    async def find_route(self, held: HeldLease) -> Route | Gone | None:
        """A fresh route to a lease, why it is over, or None while it has none."""
        try:
            await self.registrar.flush()
            answer = await self.plane.route(held.run)
        except ServiceError as error:
            if self.plane.ended:
                return Gone(Reason.OPERATOR_LOST, error.message)
            self.note_away(error)
            raise
        self.note_answer()
        for route in answer["routes"]:
            if route["lease"] == held.id and route["generation"] == held.generation:
                return route_of(route)
        run = await self.plane.run(held.run)
        lease = next((lease for lease in run["leases"] if lease["id"] == held.id), None)
        if lease is None or lease["generation"] != held.generation:
            return Gone(Reason.OPERATOR_LOST, "the lease was given to nobody under this generation any more")
        if LeaseState(lease["state"]) in _CONNECTABLE:
            return None
        return Gone(Reason(lease["reason"] or run["reason"] or Reason.OPERATOR_LOST), run["message"])

    async def _release(self, held: HeldLease, reason: Reason) -> None:
        """That an operator is lost is not for a customer to say; that its node does not answer is."""
        said = Reason.INTERNAL_ERROR if reason in _NOT_OURS_TO_SAY else reason
        try:
            await self.until_answered(lambda: self.plane.release(held.id, held.generation, said))
        except ServiceError:
            return  # the session's end, or its silence, releases it too
        except Error:
            pass  # it is over already
        self.times.end(held.id)


def in_time(ask: Callable[[], Awaitable[T]], until: float | None) -> Callable[[], Awaitable[T]]:
    """The same request, given up a few seconds after it is time: for a small answer of a control plane that hangs."""

    async def asked() -> T:
        left = None if until is None else max(0.0, until - time.monotonic()) + GRACE_S
        try:
            async with asyncio.timeout(left):
                return await ask()
        except TimeoutError:
            raise ServiceError("the control plane has not answered yet", retryable=True) from None

    return asked


def route_of(route: dict[str, Any]) -> Route:
    return Route(
        route["lease"],
        route["generation"],
        route["gateway"],
        route["token"],
        route.get("fingerprint", ""),
        route.get("relay", ""),
    )


@cache
def here() -> dict[str, str]:
    return {"python": ".".join(platform.python_version_tuple()[:2]), "cloudpickle": version("cloudpickle")}
