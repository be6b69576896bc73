"""Runs and leases as customers ask for them: submit, wait in the queue, more leases, release, cancel, finish, sessions.

Each method works inside the caller's transaction. Where a request goes is `fabric.placement`'s decision, what an event
means `api.lifecycle`'s, what is written `api.granting`'s and `api.transitions`'.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from api import evictions, gangs, slots, transitions
from api import fleet as fleets
from api.database import say
from api.decisions import explain, nearest_of, refused
from api.distances import caller_rtts_ms, wants_near, write_rtts
from api.errors import Conflict, NotFound
from api.fleet import node_key
from api.granting import default_budget_dc, grant, join
from api.lifecycle import NEAR_SILENT_MS, NOT_BILLED_BACK, LeaseEvent, RunStep, run_failed, run_finished
from api.plane import Plane
from api.schemas import RttsIn, RunRequest, Target, ToldRun
from api.signals import cluster_topic, run_topic
from api.surroundings import check_same_surroundings, check_surroundings
from api.tables import ClusterRow, LeaseRow, LeaseRunRow, RunRow, SessionRow
from api.ways import way_to
from fabric.placement.answer import Placement, Refusal, Verdict
from fabric.placement.fleet import Fleet
from fabric.placement.place import as_held, keep_clear, offers, place
from fabric.placement.queue import AGEING_MS, OVERDUE_MS, Waiting, next_up, overdue
from fabric.placement.request import Request
from fabric.wire import link
from fabric.wire.errors import BudgetExhausted, InsufficientFunds, InvalidRequest, PriceExceeded, ServiceError
from fabric.wire.ids import new_id
from fabric.wire.machines import ACTIVE_LEASE_STATES, RUN_EDGES, LeaseState, RunState, is_terminal, step
from fabric.wire.reasons import Reason
from fabric.wire.receipts import RunLine
from fabric.wire.retry import delay_s
from ledger.chain.stalled import stalled

MAX_UNOPENED = 4
"""Leases of one customer that may wait for their OPEN at the same time: so long nobody pays for them."""

_OWN_LEASES = ("actor", "serve")
_QUEUE_BATCH = 200
_ROOM_FOR = 8
"""So many runs that wait too long have room kept for them at the same time."""
_WAITS = "it waits: room is kept for runs that have waited longer, or too many leases of the account are not open yet"
_USABLE = (LeaseState.GRANTED.value, LeaseState.OPEN.value)


class Broker:
    """The broker inside one transaction; `writes` is False for one that only reads, which may but plan."""

    def __init__(self, plane: Plane, session: Session, *, writes: bool = True) -> None:
        self._plane = plane
        self._session = session
        self._writes = writes
        self._planning = ""

    def submit(self, customer: str, request: RunRequest) -> RunRow:
        """Take a run: place it now, or queue what fits but is taken.

        The same run sent again answers with the run that is there.

        Raises:
            NoCapacity: it never fits this fleet, or is taken and may not wait.
            PriceExceeded: all that fits costs more than the cap.
            InsufficientFunds, BudgetExhausted: not even the reserve of one lease can be held.
            InvalidRequest: contradicts itself. Conflict: the id is used by another run.
        """
        known = self._session.get(RunRow, request.id)
        if known is not None:
            return self._same(known, customer, request)
        _check(request)
        self._session_of(customer, request.session)
        run = self._new_run(customer, request)
        if request.lease is not None:
            self._register(run, request)
        else:
            self._start(run, request, raise_on_funds=True)
        self._plane.metrics.runs.inc()
        return run

    def told(self, customer: str, request: RunRequest) -> tuple[RunRow, bool]:
        """A run that its process sent to a lease by itself: noted, whatever became of the lease; and whether it is new.

        Raises:
            NotFound, InvalidRequest, Conflict: as `submit` with a `lease`.
        """
        known = self._session.get(RunRow, request.id)
        if known is not None:
            return self._same(known, customer, request), False
        _check(request)
        if request.lease is None:
            raise InvalidRequest(f"run {request.id} has no `lease`; submit it to get one")
        self._session_of(customer, request.session)
        run = self._new_run(customer, request)
        self._plane.metrics.runs.inc()
        lease = self._held_lease(run, request)
        join(self._session, lease.id, run.id, self._plane.now_ms())
        self._started(run)
        transitions.run_step(self._plane, self._session, run, RunStep(RunState.RUNNING))
        return run, True

    def told_over(self, customer: str, told: ToldRun, lines: Mapping[str, RunLine]) -> LeaseRunRow:
        """A new run that was over before it was told of: written as it ended, no step of it noted, nobody waits.

        The caller flushes, then adds the row that is returned, its part of the lease. It has checked that no run of
        this id exists and that the session is the customer's.

        Args:
            customer: whose.
            told: SUCCEEDED or FAILED.
            lines: of the lease's newest receipt, by run.

        Raises:
            NotFound, InvalidRequest, PriceExceeded: as `told`.
        """
        request = told.request
        _check(request)
        run = self._new_run(customer, request, stored=False)
        lease = self._held_lease(run, request)
        run.state, run.reason, run.message = told.state, reason_of(told.reason or Reason.DONE), told.message
        run.placements = 1
        run.started_ms = run.ended_ms = run.created_ms
        line = lines.get(run.id)
        part = (line.gpu_ms, line.idle_ms, line.setup_ms) if line is not None else (0, 0, 0)
        self._session.add(run)
        self._plane.metrics.runs.inc()
        return LeaseRunRow(
            lease=lease.id, run=run.id, joined_ms=run.created_ms, gpu_ms=part[0], idle_ms=part[1], setup_ms=part[2]
        )

    def plan(self, customer: str, request: RunRequest) -> tuple[RunRow, Placement]:
        """What `submit` would do, and at what price; the caller rolls back.

        Raises:
            NoCapacity, PriceExceeded: as `submit`; also when it would have to wait.
        """
        _check(request)
        self._planning = customer
        fleet, decided = self._decide(request, [])
        if isinstance(decided, Refusal):
            decided = self._by_eviction(fleet, request, []) or decided
        if isinstance(decided, Refusal):
            raise refused(decided, request.max_price_dc, self._dearer(fleet, request))
        run = self._new_run(customer, request, stored=False)
        run.explain = explain(decided)
        return run, decided

    def more_leases(self, run: RunRow, count: int, exclude: Sequence[str]) -> RunRow:
        """As many more leases for a map as fit now, at most `count`; none is an answer too."""
        request = RunRequest.model_validate(run.request)
        state = RunState(run.state)
        if state is RunState.PREEMPTING:
            self._leave(run)
            state = RunState(run.state)
        if state is RunState.QUEUED:
            self._try_queued(run, self._fleet(), self._kept_clear(self._fleet(), run))
        elif state in (RunState.STARTING, RunState.RUNNING):
            try:
                fleet = self._fleet()
                clear = self._kept_clear(fleet, run).union(exclude)
                self._grant_up_to(run, request, count, run.excluded_nodes, fleet, clear)
            except (InsufficientFunds, BudgetExhausted) as error:
                run.explain = {**run.explain, "text": error.message}
                self._session.add(run)
        return run

    def cancel(self, run: RunRow) -> RunRow:
        """Cancel; a run that is over stays as it ended."""
        transitions.cancel(self._plane, self._session, run)
        return run

    def finish(self, run: RunRow, to: RunState, reason: str, message: str) -> RunRow:
        """The run's own process says how it ended.

        Raises:
            Conflict: the run is detached: its agent says so, not a process.
        """
        if run.code:
            raise Conflict(f"run {run.id} is detached; it ends when its task does, or with cancel")
        decided = run_finished(RunState(run.state), to, reason_of(reason), message)
        transitions.run_step(self._plane, self._session, run, decided)
        return run

    def release(self, lease: LeaseRow, generation: int, reason: str) -> LeaseRow:
        """Give a lease back; a silent agent loses it at once. A lease that is over stays as it is.

        Raises:
            Conflict: another generation of an active lease.
            InvalidRequest: no reason, or one that only the fabric may give: it would make the time the operator's loss.
        """
        why = reason_of(reason)
        if why in NOT_BILLED_BACK:
            raise InvalidRequest(f"reason {reason!r} is for the fabric to say; a lease is given back as 'done'")
        if LeaseState(lease.state) not in ACTIVE_LEASE_STATES:
            return lease
        if generation != lease.generation:
            raise Conflict(f"lease {lease.id} is at generation {lease.generation}, not {generation}")
        self._end_lease(lease, why)
        return lease

    def heartbeat(self, customer: str, session: str) -> None:
        """The customer's process is alive.

        Raises:
            Conflict: the session is over.
        """
        row = self._session_of(customer, session)
        row.last_heard_ms = self._plane.now_ms()
        self._session.add(row)

    def heard_rtts(self, customer: str, session: str, told: RttsIn) -> list[Target]:
        """Keep what a customer's process measured; what it should measure next, nothing when the choice is confirmed.

        Raises:
            InvalidRequest: the run contradicts itself. Conflict: the session is over.
        """
        self._session_of(customer, session)
        now, distances = self._plane.now_ms(), self._plane.distances
        ways = {row.id: way_to(self._session, row) for row in self._session.scalars(select(ClusterRow))}
        rtts = [link.Rtt(place=one.place, rtt_us=one.rtt_us) for one in told.rtts]
        write_rtts(self._session, session, rtts, set(ways), now)
        if told.request.near or not wants_near(told.request):
            return []
        measured = caller_rtts_ms(self._session, session, now)
        anywhere = told.request.model_copy(update={"max_rtt_ms": None, "objective": "cost"})
        eligible = sorted({offer.cluster for offer in self._offers(anywhere)})
        probe = distances.to_probe(session, measured, eligible)
        return [Target(place=name, gateway=ways[name].gateway, relay=ways[name].ping(name)) for name in probe]

    def end_session(self, row: SessionRow, reason: Reason) -> None:
        """Release every lease of a session and end its runs, except detached ones."""
        if row.ended_ms is not None:
            return
        row.ended_ms = self._plane.now_ms()
        self._session.add(row)
        runs = select(RunRow).where(col(RunRow.session) == row.id, ~col(RunRow.detached))
        for run in self._session.scalars(runs):
            if not is_terminal(RUN_EDGES, RunState(run.state)):
                self._client_gone(run)
        leases = select(LeaseRow).join(RunRow, col(RunRow.id) == col(LeaseRow.run))
        for lease in self._session.scalars(leases.where(col(LeaseRow.session) == row.id, ~col(RunRow.detached))):
            if LeaseState(lease.state) in ACTIVE_LEASE_STATES:
                self._end_lease(lease, reason)

    def place_queued(self) -> int:
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
        found = {run.id: (run, turn) for run, turn in self._session.execute(waiting.limit(_QUEUE_BATCH))}
        ranked = next_up((_waiting(run) for run, _ in found.values()), now)
        ranked.sort(key=lambda one: found[one.name][1])
        return self._place_waiting([found[one.name][0] for one in ranked], now) if ranked else 0

    def _place_waiting(self, runs: Sequence[RunRow], now_ms: int) -> int:
        """Try these, of each turn the most urgent first; behind who waits too long, room is kept for it."""
        fleet = self._fleet()
        late = {one.name for one in overdue((_waiting(run) for run in runs), now_ms)}
        clear, placed = frozenset[str](), 0
        for run in runs:
            if self._try_queued(run, fleet, clear):
                placed += 1
            elif run.id in late and RunState(run.state) is RunState.QUEUED:
                clear |= self._room_for(fleet, run)
        return placed

    def expire_queued(self) -> int:
        """End runs whose `queue_timeout` is over, or wait again where `retry` covers `no_capacity`."""
        now = self._plane.now_ms()
        due = select(RunRow).where(col(RunRow.state) == RunState.QUEUED.value, col(RunRow.queued_until_ms) <= now)
        ended = 0
        for run in list(self._session.scalars(due)):
            ended += self._expire(run, now)
        return ended

    def _same(self, known: RunRow, customer: str, request: RunRequest) -> RunRow:
        if known.customer != customer or known.request != _stored(request):
            raise Conflict(f"run {request.id} exists and is another one; make a fresh id")
        return known

    def _new_run(self, customer: str, request: RunRequest, *, stored: bool = True) -> RunRow:
        now = self._plane.now_ms()
        detached = request.kind == "submit"
        run = RunRow(
            id=request.id,
            customer=customer,
            session=request.session,
            kind=request.kind,
            name=request.name,
            state=RunState.QUEUED.value,
            tier=request.tier,
            detached=detached,
            request=_stored(request),
            budget_dc=request.budget_dc,
            own_lease=detached or request.nodes > 1 or request.budget_dc is not None or request.kind in _OWN_LEASES,
            created_ms=now,
            queued_until_ms=now + request.queue_timeout_ms,
            tasks_total=request.tasks,
            code=request.work.code if request.work else "",
            args=request.work.args if request.work else "",
        )
        if stored:
            self._session.add(run)
            self._session.flush()
        return run

    def _session_of(self, customer: str, session: str) -> SessionRow:
        now = self._plane.now_ms()
        row = self._session.get(SessionRow, session)
        if row is None:
            row = SessionRow(id=session, customer=customer, created_ms=now, last_heard_ms=now)
            self._session.add(row)
            self._session.flush()
        if row.customer != customer:
            raise NotFound(f"there is no session {session}")
        if row.ended_ms is not None:
            raise Conflict(f"session {session} is over; start a new one")
        row.last_heard_ms = now
        self._session.add(row)
        return row

    def _register(self, run: RunRow, request: RunRequest) -> None:
        """Let a run use a lease that its session holds; it is there already, so the run starts at once."""
        lease = self._held_lease(run, request)
        wanted = request.lease
        if wanted is None or lease.generation != wanted.generation or lease.state not in _USABLE:
            raise Conflict(f"lease {lease.id} is {lease.state} at generation {lease.generation}; ask for a new one")
        join(self._session, lease.id, run.id, self._plane.now_ms())
        self._started(run)
        if lease.state == LeaseState.OPEN.value:
            transitions.run_step(self._plane, self._session, run, RunStep(RunState.RUNNING))

    def _held_lease(self, run: RunRow, request: RunRequest) -> LeaseRow:
        """The lease of this session that a run names, at a price within the run's cap."""
        lease = self._session.get(LeaseRow, request.lease.id) if request.lease else None
        if lease is None or lease.customer != run.customer or lease.session != run.session:
            raise NotFound(f"this session holds no lease {request.lease.id if request.lease else ''}")
        if run.own_lease:
            raise InvalidRequest("a run with `budget`, or a detached one, gets a lease of its own; leave out `lease`")
        check_same_surroundings(request, self._session.get_one(RunRow, lease.run).request)
        cap = request.max_price_dc
        if cap is not None and lease.price_dc_per_gpu_hour > cap:
            raise PriceExceeded(
                f"the lease costs {lease.price_dc_per_gpu_hour} DC per GPU-hour, the cap is {cap}; ask for another",
                max_price_dc=cap,
                offers=[],
            )
        return lease

    def _start(self, run: RunRow, request: RunRequest, *, raise_on_funds: bool) -> None:
        """Place a new run, refuse it, or leave it in the queue."""
        if request.slot:
            slots.expect_usable(self._session, request.slot, run.customer, self._plane.now_ms())
        why = stalled(self._session, self._plane.now_ms())
        if why:
            raise ServiceError(why, retryable=True)
        fleet, decided = self._decide(request, run.excluded_nodes)
        if isinstance(decided, Refusal):
            run.explain = explain(decided)
            self._session.add(run)
            waits = decided.kind is Verdict.TAKEN and request.queue_timeout_ms > 0
            if waits and self._evict(run, request, fleet):
                return
            covered = "no_capacity" in request.retry.on and decided.kind is not Verdict.PRICE
            if not (waits or covered):
                raise refused(decided, request.max_price_dc, self._dearer(fleet, request))
            return
        try:
            clear = self._kept_clear(fleet, run)
            if not self._grant_up_to(run, request, request.leases, run.excluded_nodes, fleet, clear):
                run.explain = {**explain(decided), "chosen": None, "text": _WAITS}
                self._session.add(run)
        except (InsufficientFunds, BudgetExhausted):
            if raise_on_funds:
                raise
            reason = Reason.BUDGET_EXHAUSTED if run.budget_dc is not None else Reason.INSUFFICIENT_FUNDS
            decided_step = run_failed(RunState(run.state), reason, "the next lease could not be paid")
            transitions.run_step(self._plane, self._session, run, decided_step)

    def _decide(self, request: RunRequest, exclude: Sequence[str]) -> tuple[Fleet, Placement | Refusal]:
        """Placement at the largest size that fits, or why not even the smallest does."""
        fleet, decided = self._decide_size(request, exclude)
        for nodes in gangs.sizes(request)[1:]:
            if isinstance(decided, Placement):
                break
            fleet, decided = self._decide_size(request.model_copy(update={"nodes": nodes}), exclude)
        return fleet, decided

    def _decide_size(self, request: RunRequest, exclude: Sequence[str]) -> tuple[Fleet, Placement | Refusal]:
        """Placement in the fleet as it is; "never" only when an absent agent would not help either."""
        now = self._plane.now_ms()
        fleet = self._fleet()
        decided = self._place(fleet, request, exclude)
        if isinstance(decided, Refusal) and decided.kind is not Verdict.TAKEN:
            known = self._plane.fleets.at(self._session, now, writes=self._writes, known=True)
            with_absent = self._place(known, request, exclude)
            if isinstance(with_absent, Placement):
                return known, Refusal(Verdict.TAKEN, decided.considered, decided.reasons, decided.nearest)
            return known, with_absent
        return fleet, decided

    def _fleet(self) -> Fleet:
        return self._plane.fleets.at(self._session, self._plane.now_ms(), writes=self._writes)

    def _place(
        self, fleet: Fleet, request: RunRequest, failed: Sequence[str], clear: frozenset[str] = frozenset()
    ) -> Placement | Refusal:
        """Somewhere else than where attempts failed, if there is; never where the last two did, nor what is kept clear.

        Args:
            fleet: where.
            request: what.
            failed: nodes of failed attempts in their order.
            clear: nodes where room collects for others.
        """
        decided = self._place_without(fleet, request, clear.union(failed))
        if isinstance(decided, Placement) or not failed:
            return decided
        return self._place_without(fleet, request, clear.union(failed[-1:] if failed[-2:-1] == failed[-1:] else ()))

    def _place_without(self, fleet: Fleet, request: RunRequest, exclude: frozenset[str]) -> Placement | Refusal:
        decided = place(fleet, self._wanted(fleet, request, exclude), now_ms=self._plane.now_ms())
        if isinstance(decided, Placement) and decided.evicts:
            return Refusal(Verdict.TAKEN, decided.explain.considered, decided.explain.rejected, ())
        return decided

    def _wanted(self, fleet: Fleet, request: RunRequest, exclude: frozenset[str]) -> Request:
        allowed = self._plane.settings.allow_simulated
        rtts = self._plane.distances.rtts_ms(self._session, request, self._plane.now_ms())
        return fleets.request_of(
            request, fleet, exclude=exclude, allow_simulated=allowed, rtt_ms=rtts, account=self._account(request)
        )

    def _by_eviction(self, fleet: Fleet, request: RunRequest, clear: Collection[str]) -> Placement | None:
        """Where the request fits only because spot leases go; None where it may not wait for that, or none would do."""
        if request.tier == "spot" or request.queue_timeout_ms == 0:
            return None
        decided = place(fleet, self._wanted(fleet, request, frozenset(clear)), now_ms=self._plane.now_ms())
        return decided if isinstance(decided, Placement) and decided.evicts else None

    def _evict(self, run: RunRow, request: RunRequest, fleet: Fleet, clear: Collection[str] = ()) -> bool:
        """Evict what has to go for a run that waits; whether it did."""
        placement = self._by_eviction(fleet, request, [*clear, *run.excluded_nodes])
        if placement is None or not evictions.begin(self._plane, self._session, run, placement):
            return False
        run.explain = {**explain(placement), "chosen": None}
        self._session.add(run)
        return True

    def _kept_clear(self, fleet: Fleet, run: RunRow) -> frozenset[str]:
        """Nodes where room collects for runs that have waited too long, which this one may not pass by."""
        now = self._plane.now_ms()
        late = (
            select(RunRow)
            .where(
                col(RunRow.state) == RunState.QUEUED.value,
                col(RunRow.created_ms) <= min(now - OVERDUE_MS, run.created_ms),
                col(RunRow.retry_at_ms) <= now,
                col(RunRow.id) != run.id,
            )
            .order_by(col(RunRow.created_ms), col(RunRow.id))
            .limit(_ROOM_FOR)
        )
        rooms = [self._room_for(fleet, other) for other in self._session.scalars(late)]
        return frozenset[str]().union(*rooms)

    def _room_for(self, fleet: Fleet, run: RunRow) -> frozenset[str]:
        request = RunRequest.model_validate(run.request)
        allowed = self._plane.settings.allow_simulated
        rtts = self._plane.distances.rtts_ms(self._session, request, self._plane.now_ms())
        failed = run.excluded_nodes
        wanted = fleets.request_of(
            request, fleet, exclude=failed, allow_simulated=allowed, rtt_ms=rtts, account=self._account(request)
        )
        return keep_clear(fleet, wanted)

    def _account(self, request: RunRequest) -> str:
        """Whose run it is."""
        row = self._session.get(SessionRow, request.session)
        return row.customer if row is not None else self._planning

    def _offers(self, request: RunRequest) -> list[Any]:
        """What would fit now."""
        return self._dearer(self._fleet(), request)

    def _dearer(self, fleet: Fleet, request: RunRequest) -> list[Any]:
        """What would fit at any price, for a refusal."""
        free = request.model_copy(update={"max_price_dc": None})
        allowed = self._plane.settings.allow_simulated
        rtts = self._plane.distances.rtts_ms(self._session, request, self._plane.now_ms())
        account = self._account(request)
        wanted = fleets.request_of(free, fleet, exclude=[], allow_simulated=allowed, rtt_ms=rtts, account=account)
        return offers(fleet, wanted)

    def _grant_up_to(
        self,
        run: RunRow,
        request: RunRequest,
        count: int,
        failed: Sequence[str],
        fleet: Fleet,
        clear: frozenset[str],
    ) -> int:
        """Grant leases while they fit; a shortage of money counts only when the run got none."""
        granted = 0
        if stalled(self._session, self._plane.now_ms()):
            return granted
        if gangs.is_gang(run):
            return self._grant_gang(run, request, failed, fleet, clear)
        room = MAX_UNOPENED - transitions.count_unopened(self._session, run.customer)
        while granted < min(count, room):
            placement = self._place(fleet, request, failed, clear)
            if isinstance(placement, Refusal):
                break
            try:
                with self._session.begin_nested():
                    self._grant(run, request, placement)
            except IntegrityError:
                break
            except (InsufficientFunds, BudgetExhausted):
                if not granted:
                    raise
                break
            held = as_held(placement, f"{run.id}/{new_id('held')}", safe_ms=self._plane.now_ms())
            self._plane.fleets.take(fleet, held)
            granted += 1
        return granted

    def _grant_gang(
        self, run: RunRow, request: RunRequest, failed: Sequence[str], fleet: Fleet, clear: frozenset[str]
    ) -> int:
        """All leases of a gang, or those that it lacks beside the ones it kept; these go back when none fit."""
        kept = gangs.members(self._session, run.id)
        if kept and len(kept) == run.tasks_total:
            gangs.enrol(self._session, run, (), run.placements + 1)
            self._started(run)
            gangs.send_when_complete(self._session, run, self._plane.now_ms())
            return 1
        if transitions.count_unopened(self._session, run.customer) >= MAX_UNOPENED:
            return 0
        if kept and gangs.has_own_network(self._session, run, [lease for _, lease in kept]):
            self._give_back(kept)  # its members know each other from the grant
            return 0
        wanted = [run.tasks_total - len(kept)] if kept else list(gangs.sizes(request))
        for nodes in wanted:
            part = request.model_copy(update={"nodes": nodes})
            placement = self._place(fleet, part, failed, clear | _all_but_beside(fleet, [lease for _, lease in kept]))
            if isinstance(placement, Placement) and self._grant_whole(run, part, placement):
                self._plane.fleets.take(fleet, as_held(placement, f"{run.id}/gang", safe_ms=self._plane.now_ms()))
                return 1
        self._give_back(kept)
        return 0

    def _give_back(self, kept: Sequence[gangs.Member]) -> None:
        for _, lease in kept:
            transitions.lease_event(self._plane, self._session, lease, LeaseEvent.RELEASE, Reason.DONE)

    def _grant_whole(self, run: RunRow, request: RunRequest, placement: Placement) -> bool:
        """Whether nobody was faster."""
        try:
            with self._session.begin_nested():
                self._grant(run, request, placement)
        except IntegrityError:
            return False
        return True

    def _grant(self, run: RunRow, request: RunRequest, placement: Placement) -> None:
        if (run.detached or run.kind == "serve") and run.budget_dc is None:
            available = self._plane.ledger(self._session).balance(run.customer).available
            run.budget_dc = default_budget_dc(placement, available)
        leases = grant(self._plane, self._session, run, placement, request.startup_timeout_ms)
        if gangs.is_gang(run):
            gangs.enrol(self._session, run, leases, run.placements + 1)
        if RunState(run.state) is RunState.QUEUED:
            run.explain = explain(placement)
            self._started(run)

    def _started(self, run: RunRow) -> None:
        step(RUN_EDGES, RunState(run.state), RunState.PLACING)
        run.state = step(RUN_EDGES, RunState.PLACING, RunState.STARTING).value
        run.reason = run.message = ""
        run.placements += 1
        self._session.add(run)
        self._session.flush()
        say(self._session, run_topic(run.id))

    def _try_queued(self, run: RunRow, fleet: Fleet, clear: frozenset[str]) -> bool:
        request = RunRequest.model_validate(run.request)
        eviction = evictions.of(self._session, run.id)
        if eviction is not None:
            if not evictions.is_over(self._plane, self._session, eviction):
                return False
            evictions.end(self._plane, self._session, eviction)
            fleet = self._fleet()
        try:
            granted = self._grant_up_to(run, request, request.leases, run.excluded_nodes, fleet, clear)
        except (InsufficientFunds, BudgetExhausted) as error:
            short = isinstance(error, BudgetExhausted)
            reason = Reason.BUDGET_EXHAUSTED if short else Reason.INSUFFICIENT_FUNDS
            decided = run_failed(RunState(run.state), reason, error.message)
            transitions.run_step(self._plane, self._session, run, decided)
            return False
        return granted > 0 or self._evicts_now(run, request, fleet, clear)

    def _evicts_now(self, run: RunRow, request: RunRequest, fleet: Fleet, clear: frozenset[str]) -> bool:
        """A run that waits evicts as soon as there is something to evict; it is placed later. Always False."""
        if transitions.count_unopened(self._session, run.customer) < MAX_UNOPENED:
            self._evict(run, request, fleet, clear)
        return False

    def _expire(self, run: RunRow, now_ms: int) -> bool:
        request = RunRequest.model_validate(run.request)
        delay = delay_s(transitions.retry_of(run), Reason.NO_CAPACITY, run.placements + 1)
        if delay is not None and "no_capacity" in request.retry.on:
            run.placements += 1
            run.retry_at_ms = now_ms + round(delay * 1000)
            run.queued_until_ms = run.retry_at_ms + request.queue_timeout_ms
            self._session.add(run)
            return False
        _, refusal = self._decide(request, run.excluded_nodes)
        run.explain = explain(refusal) if isinstance(refusal, Refusal) else run.explain
        text = f"nothing that fits became free within {request.queue_timeout_ms / 1000:g} s"
        text += "".join(f"; nearest: {near}" for near in nearest_of(refusal))
        decided = run_failed(RunState(run.state), Reason.NO_CAPACITY, text)
        return transitions.run_step(self._plane, self._session, run, decided)

    def _leave(self, run: RunRow) -> None:
        """A run whose leases all end by a notice looks for others before they do."""
        queued = RunStep(RunState.QUEUED, run.reason, run.message, retry_after_ms=0)
        transitions.run_step(self._plane, self._session, run, queued)

    def _client_gone(self, run: RunRow) -> None:
        decided = run_failed(RunState(run.state), Reason.CLIENT_LOST, "the process that started the run is gone")
        transitions.run_step(self._plane, self._session, run, decided)

    def _end_lease(self, lease: LeaseRow, reason: Reason) -> None:
        cluster = self._session.get(ClusterRow, lease.cluster)
        silent = cluster is None or self._plane.now_ms() - cluster.last_heard_ms >= NEAR_SILENT_MS
        event = LeaseEvent.LOST if silent else LeaseEvent.RELEASE
        lease.given_back = True
        transitions.lease_event(self._plane, self._session, lease, event, reason)
        say(self._session, cluster_topic(lease.cluster))


def _check(request: RunRequest) -> None:
    """What makes no sense whatever the fleet.

    Raises:
        InvalidRequest: says the member and what to do.
    """
    if request.kind == "submit" and request.work is None:
        raise InvalidRequest("a `submit` needs `work`: the blobs of its code and arguments")
    if request.kind != "submit" and request.work is not None and request.nodes == 1:
        raise InvalidRequest("`work` belongs to a `submit`; a run's own process sends its tasks itself")
    if request.kind not in ("map", "serve") and request.leases > 1:
        raise InvalidRequest(f"`leases` is {request.leases}; only a map or an endpoint uses several, a gang is `nodes`")
    gangs.check_gang(request)
    check_surroundings(request)


def _all_but_beside(fleet: Fleet, kept: Sequence[LeaseRow]) -> frozenset[str]:
    """Nodes that cannot complete a gang: of other clusters, or its own already; none when it has nothing yet."""
    if not kept:
        return frozenset()
    mine = {node_key(lease.cluster, lease.node) for lease in kept}
    cluster = kept[0].cluster
    return frozenset(name for name, node in fleet.nodes.items() if node.cluster != cluster or name in mine)


def _waiting(run: RunRow) -> Waiting:
    """What a run is in the queue: who pays for not being evicted goes before spot, ageing aside."""
    return Waiting(run.id, run.created_ms, 0 if run.tier == "spot" else 1)


def _stored(request: RunRequest) -> dict[str, Any]:
    return request.model_dump(mode="json")


def reason_of(text: str) -> Reason:
    """The reason that a customer names.

    Raises:
        InvalidRequest: it is not of the closed list.
    """
    try:
        return Reason(text)
    except ValueError:
        allowed = ", ".join(sorted(Reason))
        raise InvalidRequest(f"reason {text!r} is unknown; allowed: {allowed}") from None
