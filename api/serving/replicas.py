"""The replicas of one endpoint: one run of the control plane, each replica a lease of it with the object in its child.

The SDK's crew gets leases, opens channels and sends again what a lost lease left; here it is decided how many there
are, and which of them gets a request.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from api.serving.affinity import Memory, Prompt
from fabric.client.channel import Channel
from fabric.client.crew import Crew, Events
from fabric.client.lease_pool import HeldLease
from fabric.client.office import Office
from fabric.client.options import RunOptions
from fabric.client.pace import FRAME_BYTES
from fabric.client.pack import Packed
from fabric.placement.routing import Replica, choose
from fabric.wire import channel
from fabric.wire.errors import NoCapacity, ServiceError
from fabric.wire.reasons import Reason

TOKENS_PER_S = 2000.0
"""How fast a replica reads prompts, before anything was measured."""
RECONNECT_S = 2.0
"""After this long without a connection a replica is given up and its requests go to others."""
WEIGHT = 0.2
"""Of the newest measurement in a running mean."""


class Here:
    """This process's loop, as the SDK wants its own."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@dataclass(eq=False)
class _Sent:
    """A request on its way: where, since when, whether its first answer is there."""

    prompt: Prompt
    lease: str = ""
    sent_at: float = 0.0
    answered: bool = False


@dataclass(eq=False)
class _Seen:
    """What is known of a replica. `first_ms` leaves out its first answer, which waited for the object to be made."""

    warm: bool = False
    memory: Memory = field(default_factory=Memory)
    ahead: int = 0
    first_ms: float = 0.0
    stay_ms: float = 1000.0
    draining: bool = False


class Replicas(Crew):
    """`wanted` may change at any time; every method runs in the loop.

    Args:
        office: the endpoint's session.
        options: retry rule and times of its requests.
        packed: the object.
        request: the RunRequest's members that its customer gave.
        events: hears answers, parts and the end.
    """

    def __init__(
        self, office: Office, options: RunOptions, packed: Packed, request: dict[str, Any], events: Events
    ) -> None:
        super().__init__(office, "serve", options, packed, total=0, fail_fast=False, events=events)
        self.wanted = 0
        self.queued: dict[int, _Sent] = {}
        self._given = request
        self._seen_of: dict[str, _Seen] = {}

    @property
    def ready(self) -> int:
        """Replicas that take requests."""
        return sum(held.channel.is_open and not self._goes(held) for held in self._leases.values())

    def send(self, index: int, pieces: Any, prompt: Prompt) -> None:
        """Queue a request; it goes to the replica whose first answer is expected earliest."""
        self.queued[index] = _Sent(prompt)
        self.add([(index, pieces)])

    def first_answer(self, index: int) -> None:
        """The first part of this request's answer, or all of it, is there."""
        sent = self.queued.get(index)
        seen = self._seen_of.get(sent.lease) if sent is not None else None
        if sent is None or sent.answered or seen is None:
            return
        sent.answered = True
        seen.ahead -= sent.prompt.tokens
        if not seen.warm:
            seen.warm = True
            return
        took_ms = (self._now() - sent.sent_at) * 1000
        seen.first_ms = took_ms if not seen.first_ms else min(took_ms, seen.first_ms * (1 + WEIGHT))

    def done(self, index: int) -> None:
        """This request is over."""
        self.first_answer(index)
        sent = self.queued.pop(index, None)
        seen = self._seen_of.get(sent.lease) if sent is not None else None
        if sent is not None and seen is not None:
            seen.stay_ms += WEIGHT * ((self._now() - sent.sent_at) * 1000 - seen.stay_ms)

    def scale(self, wanted: int) -> None:
        """Have so many replicas: more are asked for, those too many finish what they have and go."""
        self.wanted = wanted
        for held in list(self._leases.values()):
            if len(self._leases) - self._draining() > wanted and not self._goes(held):
                self._fewest().draining = True
        for lease, held in list(self._leases.items()):
            if self._goes(held) and not self._tasks.out.get(lease):
                del self._leases[lease]
                self._give(held)
        self._ask_for_more()

    def facts(self) -> list[dict[str, Any]]:
        """Each replica, for people."""
        return [
            {
                "lease": lease,
                "operator": held.facts["operator_name"],
                "node": held.facts["node"],
                "gpu": held.facts["gpus"][0]["model"] if held.facts["gpus"] else "",
                "in_flight": len(self._tasks.out.get(lease, ())),
                "state": "draining" if self._goes(held) else "ready" if held.channel.is_open else "connecting",
            }
            for lease, held in self._leases.items()
        ]

    def on_gone(self, channel: Channel, reason: Reason, message: str) -> None:
        self._seen_of.pop(channel.lease, None)
        super().on_gone(channel, reason, message)
        self._feed_all()

    def _request(self, held: HeldLease | None = None) -> dict[str, Any]:
        del held
        return self._office.request(self.run, "serve", {**self._given, "leases": 1, "tasks": 0})

    def _wanted_now(self) -> int:
        return self.wanted

    def _join(self, held: HeldLease) -> None:
        held.channel.reconnect_s = RECONNECT_S
        super()._join(held)

    def _settle(self, lease: str, index: int, attempt: int, status: int) -> bool:
        """What the object itself raises is its answer, whatever the retry rule says of processes that end."""
        task = self._tasks.out.get(lease, {}).get(index)
        if task is not None and status != channel.STATUS_VALUE:
            task.once = True
        return super()._settle(lease, index, attempt, status)

    def _ask_for_more(self) -> None:
        missing = self.wanted - (len(self._leases) - self._draining()) - self._opening
        if not self._over and not self._asking and missing > 0 and self._registered:
            self._asking = True
            self._start(self._ask(missing))

    async def _ask(self, count: int) -> None:
        """On other nodes than those there are, where that is possible."""
        try:
            answer = await self._office.plane.route(self.run)
            if all(route["lease"] in self._seen for route in answer["routes"]):
                used = [f"{held.facts['cluster']}/{held.facts['node']}" for held in self._leases.values()]
                before = {lease["id"] for lease in (await self._office.plane.run(self.run))["leases"]}
                for exclude in ([*self._lost_nodes, *used], self._lost_nodes):
                    run = await self._office.plane.more_leases(self.run, count, exclude)
                    if {lease["id"] for lease in run["leases"]} - before:
                        break
                else:
                    return
            await self._open_routes({})
        except (NoCapacity, ServiceError) as error:
            if isinstance(error, ServiceError) and not error.retryable:
                raise
        finally:
            self._asking = False

    def _leave_idle(self) -> None:
        """Who is idle leaves by `scale`."""

    def _starve(self) -> bool:
        return False

    def _feed(self, held: HeldLease) -> None:
        del held
        self._feed_all()

    def _feed_all(self) -> None:
        while (index := self._tasks.next_index(self._now())) is not None:
            held = self._choose(self.queued[index].prompt if index in self.queued else Prompt())
            if held is None:
                return
            taken = self._tasks.take(held.id, 1, FRAME_BYTES, self._now())
            held.channel.call(self.run, self._packed, taken, self._options.timeout_ms)
            self._note_sent(held, index)

    def _note_sent(self, held: HeldLease, index: int) -> None:
        sent, seen = self.queued.get(index), self._of(held)
        if sent is not None:
            sent.lease, sent.sent_at, sent.answered = held.id, self._now(), False
            seen.ahead += sent.prompt.tokens
            seen.memory.note(sent.prompt)

    def _choose(self, prompt: Prompt) -> HeldLease | None:
        open_ = {held.id: held for held in self._leases.values() if held.channel.is_open and not self._goes(held)}
        views = [self._view(held, prompt) for held in open_.values()]
        chosen = choose([view for view in views if view.in_flight < 2 * view.slots], prompt.tokens)
        return None if chosen is None else open_[chosen.name]

    def _view(self, held: HeldLease, prompt: Prompt) -> Replica:
        seen = self._of(held)
        return Replica(
            held.id,
            max(seen.first_ms, self._silent_ms(held.id)),
            seen.ahead,
            len(self._tasks.out.get(held.id, ())),
            self._packed.at_once,
            TOKENS_PER_S,
            seen.stay_ms,
            seen.memory.cached_tokens(prompt),
        )

    def _silent_ms(self, lease: str) -> float:
        """How long its oldest request waits for a first answer: whoever takes requests and says nothing gets fewer."""
        waiting = (sent.sent_at for sent in self.queued.values() if sent.lease == lease and not sent.answered)
        return 1000 * (self._now() - min(waiting, default=self._now()))

    def _goes(self, held: HeldLease) -> bool:
        """Whether it gets no more requests: there are too many, or its lease got its notice."""
        return held.leaving or self._of(held).draining

    def _of(self, held: HeldLease) -> _Seen:
        return self._seen_of.setdefault(held.id, _Seen())

    def _draining(self) -> int:
        return sum(map(self._goes, self._leases.values()))

    def _fewest(self) -> _Seen:
        """Of the replica that has least to finish."""
        staying = [held for held in self._leases.values() if not self._goes(held)]
        return self._of(min(staying, key=lambda held: len(self._tasks.out.get(held.id, ()))))
