"""One endpoint as its router serves it: takes requests, has replicas for them, none when nobody asks."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from api.serving.affinity import Prompt
from api.serving.replicas import Here, Replicas
from api.serving.scaling import Scaler
from fabric.client.answers import Answers
from fabric.client.events import AttemptEnded, Broken, Event, Part, Placed, Results
from fabric.client.http import ControlPlane
from fabric.client.office import Office
from fabric.client.options import RunOptions
from fabric.client.pack import Packed, pack_arguments
from fabric.wire import channel
from fabric.wire.errors import BudgetExhausted, Error, InvalidRequest, ServiceError, Timeout, run_failed
from fabric.wire.ids import new_id
from fabric.wire.reasons import Reason
from fabric.wire.retry import Retry

_log = structlog.get_logger(__name__)

HEARTBEAT_S = 60.0
TAKEN_EVERY = 8
WAIT_S = 600.0
"""A request that has no answer by then, for want of a replica or of a first word, is given up."""
MAX_OPEN = 2048
"""Requests that an endpoint has at work and waiting; more are refused."""
BACKOFF_S = 5.0
"""After a run that could not begin, the next one waits so long."""


@dataclass(eq=False)
class _Open:
    """A request that somebody waits for: (what, value) pairs arrive in order."""

    arrived: "asyncio.Queue[tuple[str, Any]]" = field(default_factory=asyncio.Queue)
    next_seq: int = 0
    size: int = 0


class Endpoint:
    """Made from what `/v1/serving/endpoints` says; lives in the router's loop."""

    def __init__(self, facts: dict[str, Any], plane: ControlPlane, router: ControlPlane, *, idle_s: float) -> None:
        self.facts = facts
        before = facts.get("report") or {}  # of the router before this one: counts go on
        self.requests, self.failures = int(before.get("requests", 0)), int(before.get("failures", 0))
        self.tokens = {name: int(before.get(name, 0)) for name in ("prompt_tokens", "completion_tokens")}
        self.fault = ""
        self._plane, self._router = plane, router
        self._here = Here()
        self._session = new_id("ses")
        self._scaler = Scaler(facts["min_replicas"], facts["max_replicas"], facts["at_once"], idle_s)
        self._replicas: Replicas | None = None
        self._code: bytes | None = None
        self._open: dict[int, _Open] = {}
        self._early: dict[int, tuple[Any, Prompt]] = {}
        self._next = 0
        self._beginning = False
        self._not_before = 0.0
        self._heard_at = time.monotonic()
        self._answers = Answers(None, InvalidRequest, facts["id"])

    @property
    def id(self) -> str:
        return self.facts["id"]

    @property
    def full(self) -> bool:
        """Whether no further request is taken for now."""
        return len(self._open) >= MAX_OPEN

    @property
    def open_bytes(self) -> int:
        """Of the requests that somebody waits for."""
        return sum(waiting.size for waiting in self._open.values())

    def has(self, method: str) -> bool:
        return method in self.facts["methods"]

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The value of a plain method; its own exception is raised as itself."""
        async for kind, value in self._ask(method, args, kwargs, Prompt(), streams=False):
            if kind == "value":
                return value
        raise AssertionError("a request ends with a value or an exception")

    async def stream(self, method: str, prompt: Prompt, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The parts of a generator as they come."""
        async for kind, value in self._ask(method, args, kwargs, prompt, streams=True):
            if kind == "part":
                yield value

    async def tick(self) -> None:
        """Twice a second: more replicas or fewer, and the session's sign of life."""
        now = time.monotonic()
        wanted = self._scaler.wanted(len(self._open), now)
        if wanted and self._replicas is None and not self._beginning and now >= self._not_before:
            await self._begin(wanted)
        elif not wanted and self._replicas is not None and not self._open:
            self._end()
        elif self._replicas is not None:
            self._replicas.scale(max(wanted, 1))
        if now - self._heard_at >= HEARTBEAT_S:
            self._heard_at = now
            await self._plane.heartbeat(self._session)

    async def report(self) -> None:
        """Tell the control plane how it stands."""
        replicas = [] if self._replicas is None else self._replicas.facts()
        load = {"in_flight": len(self._open), "requests": self.requests, "failures": self.failures}
        self.facts = await self._said({"replicas": replicas, "fault": self.fault, **load, **self.tokens})

    async def close(self) -> None:
        """Release everything; who waits is told."""
        for waiting in self._open.values():
            waiting.arrived.put_nowait(("error", ServiceError("the endpoint was stopped")))
        self._end()
        try:
            await self._plane.end_session(self._session)
        except Error as error:
            _log.info("a session was not ended", endpoint=self.id, error=str(error))
        await self._plane.close()

    async def clear_old(self) -> None:
        """Runs of a router before this one are over: their requests went with it."""
        for run in self.facts["runs"]:
            try:
                await self._plane.cancel(run)
            except ServiceError:
                raise
            except Error:
                continue  # it was noted, but never submitted

    def put(self, event: Event) -> None:
        """What the replicas tell, in the loop."""
        match event:
            case Part(task, seq, pieces):
                self._on_part(task, seq, pieces)
            case Results(results):
                for task, status, pieces in results:
                    value, answer = self._answers.read(status, pieces)
                    self._finish(task, "value" if value else "error", answer)
            case AttemptEnded(ended, _) if ended.retry_at is None:
                self._finish(ended.task.index, "error", self._answers.error_of(ended))
            case Broken(error):
                self._on_broken(error)
            case Placed():
                self.fault = ""
            case _:
                pass

    async def _ask(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], prompt: Prompt, *, streams: bool
    ) -> AsyncIterator[tuple[str, Any]]:
        pieces = pack_arguments((method, streams, args, kwargs), {})
        index, self._next = self._next, self._next + 1
        self._open[index] = waiting = _Open(size=sum(memoryview(piece).nbytes for piece in pieces))
        self.requests += 1
        try:
            if self._replicas is None:
                await self.tick()
            self._early[index] = (pieces, prompt)
            self._hand_over()
            async for item in self._arrivals(index, waiting):
                yield item
        finally:
            self._early.pop(index, None)
            if self._open.pop(index, None) is not None and self._replicas is not None:
                self._replicas.end_task(index)
                self._replicas.done(index)

    async def _arrivals(self, index: int, waiting: _Open) -> AsyncIterator[tuple[str, Any]]:
        read = 0
        while True:
            try:
                async with asyncio.timeout(WAIT_S):
                    kind, value = await waiting.arrived.get()
            except TimeoutError:
                raise Timeout(
                    f"no answer within {WAIT_S:.0f} s{': ' + self.fault if self.fault else ''}", reason=Reason.TIMEOUT
                ) from None
            if kind == "error":
                self.failures += 1
                raise value
            if kind == "part":
                read += 1
                if self._replicas is not None and (read % TAKEN_EVERY == 0 or waiting.arrived.empty()):
                    self._replicas.taken(index, read - 1)
            yield kind, value
            if kind == "value":
                return

    def _hand_over(self) -> None:
        if self._replicas is not None:
            for index, (pieces, prompt) in list(self._early.items()):
                del self._early[index]
                self._replicas.send(index, pieces, prompt)

    async def _begin(self, wanted: int) -> None:
        """A run for the replicas; the control plane notes it before it is submitted."""
        self._beginning = True
        try:
            code = self._code or await self._plane.blob(self.facts["code"])
            self._code = code
            packed = Packed(code, hashlib.sha256(code).digest(), self.facts["name"], frozenset(), self.facts["at_once"])
            office = Office(self._plane, self._session, self._here)  # type: ignore[arg-type]  # the loop is this process's own
            request = await self._request()
            replicas = Replicas(office, _options(request), packed, request, self)
            await self._said({}, run=replicas.run)
            replicas.wanted = wanted
            self._replicas = replicas
            replicas.begin()
            self._hand_over()
        except Error as error:
            self._on_broken(error)
        finally:
            self._beginning = False

    async def _request(self) -> dict[str, Any]:
        """The customer's, with what is left of the budget.

        Raises:
            BudgetExhausted: nothing is.
        """
        facts = await self._plane.get(f"/v1/endpoints/{self.id}")
        given = {k: v for k, v in self.facts["request"].items() if k not in ("id", "kind", "session", "lease", "work")}
        if facts["budget_dc"] is None:
            return given
        left = int(facts["budget_dc"]) - int(facts["spent_dc"])
        if left <= 0:
            raise BudgetExhausted(f"the endpoint's budget of {facts['budget_dc']} DC is used up")
        return {**given, "budget_dc": left}

    async def _said(self, report: dict[str, Any], **more: Any) -> dict[str, Any]:
        return await self._router.put(f"/v1/serving/endpoints/{self.id}", {"report": report, **more})

    def _end(self) -> None:
        replicas, self._replicas = self._replicas, None
        if replicas is not None:
            replicas.dismiss()

    def _on_broken(self, error: BaseException) -> None:
        self.fault = str(error)
        self._replicas = None
        self._not_before = time.monotonic() + BACKOFF_S
        for waiting in self._open.values():
            waiting.arrived.put_nowait(("error", error))

    def _on_part(self, index: int, seq: int, pieces: list[memoryview]) -> None:
        waiting = self._open.get(index)
        if waiting is None or seq != waiting.next_seq:
            return
        if waiting.arrived.qsize() > 2 * channel.PARTS_AHEAD:
            self._on_flood(index)
            return
        waiting.next_seq += 1
        if self._replicas is not None:
            self._replicas.first_answer(index)
        value, answer = self._answers.read(channel.STATUS_VALUE, pieces)
        waiting.arrived.put_nowait(("part" if value else "error", answer))

    def _on_flood(self, index: int) -> None:
        """A node waits for whoever reads; one that does not would fill this process's memory."""
        if self._replicas is not None:
            self._replicas.end_task(index)
        message = f"the replica sent more than {channel.PARTS_AHEAD} parts ahead of its reader"
        self._finish(index, "error", run_failed(Reason.CRASHED, message))

    def _finish(self, index: int, kind: str, answer: Any) -> None:
        if self._replicas is not None:
            self._replicas.done(index)
        waiting = self._open.pop(index, None)
        if waiting is not None:
            waiting.arrived.put_nowait((kind, answer))


def _options(request: dict[str, Any]) -> RunOptions:
    retry = request["retry"]
    rule = Retry(tuple(retry["on"]), retry["max"], retry["backoff_ms"] / 1000, tuple(retry["exit_codes"]))
    return RunOptions(
        retry=rule,
        timeout_ms=request["timeout_ms"],
        budget_dc=1,  # its leases are its own
        near=request["near"],  # with none given, distances are this router's, as everything goes through it
        max_rtt_ms=request["max_rtt_ms"],
        objective=request["objective"],
    )
