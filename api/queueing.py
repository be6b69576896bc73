"""Runs that wait: who is tried first, for whom room is kept, who evicts, and what becomes of those that waited in vain.

Works inside the caller's transaction. The order is `fabric.placement.queue`'s, whom to evict `fabric.placement`'s.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import case, func, select
from sqlmodel import Session, col

from api import evictions, transitions
from api.decisions import explain, nearest_of
from api.leasing import MAX_UNOPENED, Leasing
from api.lifecycle import run_failed
from api.placing import Placing
from api.plane import Plane
from api.schemas import RunRequest
from api.tables import RunRow
from fabric.placement.answer import Refusal
from fabric.placement.fleet import Fleet
from fabric.placement.queue import AGEING_MS, OVERDUE_MS, Waiting, next_up, overdue
from fabric.wire.errors import BudgetExhausted, InsufficientFunds
from fabric.wire.machines import RunState
from fabric.wire.reasons import Reason
from fabric.wire.retry import delay_s
from ledger.chain.stalled import stalled

_BATCH = 200
_ROOM_FOR = 8
"""So many runs that wait too long have room kept for them at the same time."""


class Queue:
    """The queue inside one transaction."""

    def __init__(self, plane: Plane, session: Session, placing: Placing, leasing: Leasing) -> None:
        self._plane = plane
        self._session = session
        self._placing = placing
        self._leasing = leasing

    def place(self) -> int:
        """Try the runs that wait: each customer's most urgent, then each one's next; returns how many were placed."""
        now = self._plane.now_ms()
        since = case((col(RunRow.tier) == "spot", col(RunRow.created_ms)), else_=col(RunRow.created_ms) - AGEING_MS)
        age = (since, col(RunRow.created_ms), col(RunRow.id))
        turns = (
            select(
                col(RunRow.id), func.row_number().over(partition_by=col(RunRow.customer), order_by=age).label("turn")
            )
            .where(col(RunRow.state) == RunState.QUEUED.value, col(RunRow.retry_at_ms) <= now)
            .subquery()
        )
        waiting = select(RunRow, turns.c.turn).join(turns, turns.c.id == col(RunRow.id)).order_by(turns.c.turn, *age)
        found = {run.id: (run, turn) for run, turn in self._session.execute(waiting.limit(_BATCH))}
        ranked = next_up((_waiting(run) for run, _ in found.values()), now)
        ranked.sort(key=lambda one: found[one.name][1])
        return self._place_waiting([found[one.name][0] for one in ranked], now) if ranked else 0

    def expire(self) -> int:
        """End runs whose `queue_timeout` is over, or wait again where `retry` covers `no_capacity`."""
        now = self._plane.now_ms()
        due = select(RunRow).where(col(RunRow.state) == RunState.QUEUED.value, col(RunRow.queued_until_ms) <= now)
        ended = 0
        for run in list(self._session.scalars(due)):
            ended += self._expire(run, now)
        return ended

    def try_run(self, run: RunRow, fleet: Fleet, clear: frozenset[str]) -> bool:
        request = RunRequest.model_validate(run.request)
        eviction = evictions.of(self._session, run.id)
        if eviction is not None:
            if not evictions.is_over(self._plane, self._session, eviction):
                return False
            clear -= evictions.nodes_of(eviction)
            evictions.end(self._plane, self._session, eviction)
            fleet = self._placing.fleet()
        try:
            granted = self._leasing.grant_up_to(run, request, request.leases, run.excluded_nodes, fleet, clear)
        except (InsufficientFunds, BudgetExhausted) as error:
            short = isinstance(error, BudgetExhausted)
            reason = Reason.BUDGET_EXHAUSTED if short else Reason.INSUFFICIENT_FUNDS
            decided = run_failed(RunState(run.state), reason, error.message)
            transitions.run_step(self._plane, self._session, run, decided)
            return False
        if granted:
            run.evicted_gpus = []  # what it evicted for is had, or was not needed: no later lease pays for it
        return granted > 0 or self._evicts_now(run, request, fleet, clear)

    def evict(self, run: RunRow, request: RunRequest, fleet: Fleet, clear: Collection[str] = ()) -> bool:
        """Evict what has to go for a run that waits; whether it did."""
        if not self._may_be_granted(run) or evictions.left_one(self._plane, self._session, run.customer):
            return False
        placement = self._placing.by_eviction(fleet, request, [*clear, *run.excluded_nodes])
        if placement is None or not evictions.begin(self._plane, self._session, run, placement):
            return False
        run.explain = {**explain(placement), "chosen": None}
        self._session.add(run)
        return True

    def kept_clear(self, fleet: Fleet, run: RunRow | None = None) -> frozenset[str]:
        """Nodes where room collects for runs that waited too long; not for this one (None: a new one)."""
        now = self._plane.now_ms()
        since = now if run is None else run.created_ms
        late = (
            select(RunRow)
            .where(
                col(RunRow.state) == RunState.QUEUED.value,
                col(RunRow.created_ms) <= min(now - OVERDUE_MS, since),
                col(RunRow.retry_at_ms) <= now,
                col(RunRow.id) != ("" if run is None else run.id),
            )
            .order_by(col(RunRow.created_ms), col(RunRow.id))
            .limit(_ROOM_FOR)
        )
        rooms = [self._placing.room_for(fleet, other) for other in self._session.scalars(late)]
        return frozenset[str]().union(*rooms)

    def _place_waiting(self, runs: Sequence[RunRow], now_ms: int) -> int:
        """Try these, of each turn the most urgent first; behind who waits too long, room is kept for it."""
        fleet = self._placing.fleet()
        late = {one.name for one in overdue((_waiting(run) for run in runs), now_ms)}
        clear, placed = frozenset[str](), 0
        for run in runs:
            if self.try_run(run, fleet, clear):
                placed += 1
            elif run.id in late and RunState(run.state) is RunState.QUEUED:
                clear |= self._placing.room_for(fleet, run)
        return placed

    def _evicts_now(self, run: RunRow, request: RunRequest, fleet: Fleet, clear: frozenset[str]) -> bool:
        """A run that waits evicts as soon as there is something to evict; it is placed later. Always False.

        A gang evicts for the nodes that it lacks; what it kept goes back when nothing can complete it. While leases of
        its own are closing it evicts nobody: they may be all it needs.
        """
        if not self._may_be_granted(run) or transitions.is_closing(self._session, run.id):
            return False
        lacking, elsewhere = self._leasing.lacking(run, request, fleet)
        if not self.evict(run, lacking, fleet, clear | elsewhere):
            self._leasing.give_back(run)
        return False

    def _may_be_granted(self, run: RunRow) -> bool:
        """Whether a lease could be granted at all, so that nobody leaves for one that could not."""
        if stalled(self._session, self._plane.now_ms()):
            return False
        return transitions.count_unopened(self._session, run.customer) < MAX_UNOPENED

    def _expire(self, run: RunRow, now_ms: int) -> bool:
        request = RunRequest.model_validate(run.request)
        delay = delay_s(transitions.retry_of(run), Reason.NO_CAPACITY, run.placements + 1)
        if delay is not None and "no_capacity" in request.retry.on:
            run.placements += 1
            run.retry_at_ms = now_ms + round(delay * 1000)
            run.queued_until_ms = run.retry_at_ms + request.queue_timeout_ms
            self._session.add(run)
            return False
        _, refusal = self._placing.decide(request, run.excluded_nodes)
        run.explain = explain(refusal) if isinstance(refusal, Refusal) else run.explain
        text = f"nothing that fits became free within {request.queue_timeout_ms / 1000:g} s"
        text += "".join(f"; nearest: {near}" for near in nearest_of(refusal))
        decided = run_failed(RunState(run.state), Reason.NO_CAPACITY, text)
        return transitions.run_step(self._plane, self._session, run, decided)


def _waiting(run: RunRow) -> Waiting:
    """What a run is in the queue: who pays for not being evicted goes before spot, ageing aside."""
    return Waiting(run.id, run.created_ms, 0 if run.tier == "spot" else 1)


def queue(plane: Plane, session: Session) -> Queue:
    """The queue of a transaction that has no broker."""
    placing = Placing(plane, session)
    return Queue(plane, session, placing, Leasing(plane, session, placing))
