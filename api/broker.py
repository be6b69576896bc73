"""Runs and leases as customers ask for them: submit, more leases, release, cancel, finish, sessions.

Each method works inside the caller's transaction. Where a request goes is `api.placing`'s to find out, whether leases
are granted `api.leasing`'s, what waits `api.queueing`'s; what an event means is `api.lifecycle`'s, what is written
`api.granting`'s and `api.transitions`'.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from api import evictions, slots, transitions
from api.database import say
from api.decisions import explain, refused
from api.distances import caller_rtts_ms, wants_near, write_rtts
from api.errors import Conflict, NotFound
from api.gangs import check_gang
from api.granting import join
from api.inherited import begin_with
from api.leasing import Leasing
from api.lifecycle import NEAR_SILENT_MS, NOT_BILLED_BACK, LeaseEvent, RunStep, run_failed, run_finished
from api.placing import Placing
from api.plane import Plane
from api.queueing import Queue
from api.schemas import RttsIn, RunRequest, Target, ToldRun
from api.signals import cluster_topic
from api.surroundings import check_same_surroundings, check_surroundings
from api.tables import ClusterRow, LeaseRow, LeaseRunRow, RunRow, SessionRow
from api.ways import way_to
from fabric.placement.answer import Placement, Refusal, Verdict
from fabric.wire import link
from fabric.wire.errors import (
    BudgetExhausted,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    PriceExceeded,
    ServiceError,
)
from fabric.wire.machines import ACTIVE_LEASE_STATES, RUN_EDGES, LeaseState, RunState, is_terminal
from fabric.wire.reasons import Reason
from fabric.wire.receipts import RunLine
from ledger.chain.stalled import stalled

_OWN_LEASES = ("actor", "serve")
_SILENT = (
    "nothing was heard for three minutes from the process that started the run: it is gone, asleep or cut off; "
    "a run of fabric.submit goes on without its process"
)
_WAITS = "it waits: room is kept for runs that have waited longer, or too many leases of the account are not open yet"
_USABLE = (LeaseState.GRANTED.value, LeaseState.OPEN.value)


class Broker:
    """The broker inside one transaction; `writes` is False for one that only reads, which may but plan."""

    def __init__(self, plane: Plane, session: Session, *, writes: bool = True) -> None:
        self._plane = plane
        self._session = session
        self._placing = Placing(plane, session, writes=writes)
        self._leasing = Leasing(plane, session, self._placing)
        self._queue = Queue(plane, session, self._placing, self._leasing)

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
        if request.checkpoint:
            begin_with(self._plane, self._session, run, request.checkpoint)
        if request.lease is not None:
            self._register(run, request)
        else:
            self._start(run, request, raise_on_funds=True)
        self._plane.metrics.runs.inc()
        return run

    def told(self, customer: str, request: RunRequest) -> RunRow:
        """A run that its process sent to a lease by itself: noted, whatever became of the lease.

        Raises:
            NotFound, InvalidRequest, Conflict: as `submit` with a `lease`.
        """
        known = self._session.get(RunRow, request.id)
        if known is not None:
            return self._same(known, customer, request)
        _check(request)
        if request.lease is None:
            raise InvalidRequest(f"run {request.id} has no `lease`; submit it to get one")
        self._session_of(customer, request.session)
        run = self._new_run(customer, request)
        self._plane.metrics.runs.inc()
        lease = self._held_lease(run, request)
        join(self._session, lease.id, run.id, self._plane.now_ms())
        self._leasing.started(run)
        transitions.run_step(self._plane, self._session, run, RunStep(RunState.RUNNING))
        return run

    def told_over(self, customer: str, told: ToldRun, lines: Mapping[str, RunLine]) -> LeaseRunRow:
        """A new run that was over before it was told of: written as it ended, no step of it noted, nobody waits.

        The caller flushes, then adds the row that is returned, its part of the lease. It has checked that no run of
        this id exists and that the session is the customer's.

        Args:
            customer: whose.
            told: SUCCEEDED or FAILED.
            lines: what the lease's receipts said of such runs before they were told of, by run.

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
            NoCapacity, PriceExceeded: as `submit`; also when it would have to wait, for room that is kept too.
            ServiceError, NotFound, InvalidRequest: as `submit`.
        """
        _check(request)
        self._placing.planning = customer
        self._expect_startable(customer, request)
        fleet, decided = self._placing.decide(request, [])
        clear = self._queue.kept_clear(fleet)
        if isinstance(decided, Refusal) and not evictions.left_one(self._plane, self._session, customer):
            decided = self._placing.by_eviction(fleet, request, clear) or decided
        elif clear:
            decided = self._placing.largest(fleet, request, clear)
            if isinstance(decided, Refusal):
                raise NoCapacity(f"nothing now: {_WAITS}", considered=decided.considered, rejected={}, next_best=None)
        if isinstance(decided, Refusal):
            raise refused(decided, request.max_price_dc, self._placing.dearer(fleet, request))
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
            self._queue.try_run(run, self._placing.fleet(), self._queue.kept_clear(self._placing.fleet(), run))
        elif state in (RunState.STARTING, RunState.RUNNING):
            try:
                fleet = self._placing.fleet()
                clear = self._queue.kept_clear(fleet, run).union(exclude)
                self._leasing.grant_up_to(run, request, count, run.excluded_nodes, fleet, clear)
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
        eligible = sorted({offer.cluster for offer in self._placing.offers(anywhere)})
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
                self._client_gone(run, reason)
        leases = select(LeaseRow).join(RunRow, col(RunRow.id) == col(LeaseRow.run))
        for lease in self._session.scalars(leases.where(col(LeaseRow.session) == row.id, ~col(RunRow.detached))):
            if LeaseState(lease.state) in ACTIVE_LEASE_STATES:
                self._end_lease(lease, reason)

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
            own_lease=detached
            or request.nodes > 1
            or request.budget_dc is not None
            or bool(request.checkpoint)
            or request.kind in _OWN_LEASES,
            created_ms=now,
            queued_until_ms=now + request.queue_timeout_ms,
            tasks_total=request.tasks,
            code=request.work.code if request.work else "",
            args=request.work.args if request.work else "",
            # given, not left to their factories: pydantic parses a builtin's signature for each, half of a row's cost
            explain={},
            excluded_nodes=[],
            evicted_gpus=[],
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
        self._leasing.started(run)
        if lease.state == LeaseState.OPEN.value:
            transitions.run_step(self._plane, self._session, run, RunStep(RunState.RUNNING))

    def _held_lease(self, run: RunRow, request: RunRequest) -> LeaseRow:
        """The lease of this session that a run names, at a price within the run's cap."""
        lease = self._session.get(LeaseRow, request.lease.id) if request.lease else None
        if lease is None or lease.customer != run.customer or lease.session != run.session:
            raise NotFound(f"this session holds no lease {request.lease.id if request.lease else ''}")
        if run.own_lease:
            raise InvalidRequest(
                "a run with `budget` or `checkpoint`, or a detached one, gets a lease of its own; leave out `lease`"
            )
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
        self._expect_startable(run.customer, request)
        fleet, decided = self._placing.decide(request, run.excluded_nodes)
        if isinstance(decided, Refusal):
            run.explain = explain(decided)
            self._session.add(run)
            waits = decided.kind is Verdict.TAKEN and request.queue_timeout_ms > 0
            if waits and self._queue.evict(run, request, fleet, self._queue.kept_clear(fleet, run)):
                return
            covered = "no_capacity" in request.retry.on and decided.kind is not Verdict.PRICE
            if not (waits or covered):
                raise refused(decided, request.max_price_dc, self._placing.dearer(fleet, request))
            return
        try:
            clear = self._queue.kept_clear(fleet, run)
            if not self._leasing.grant_up_to(run, request, request.leases, run.excluded_nodes, fleet, clear):
                run.explain = {**explain(decided), "chosen": None, "text": _WAITS}
                self._session.add(run)
        except (InsufficientFunds, BudgetExhausted):
            if raise_on_funds:
                raise
            reason = Reason.BUDGET_EXHAUSTED if run.budget_dc is not None else Reason.INSUFFICIENT_FUNDS
            decided_step = run_failed(RunState(run.state), reason, "the next lease could not be paid")
            transitions.run_step(self._plane, self._session, run, decided_step)

    def _expect_startable(self, customer: str, request: RunRequest) -> None:
        """That a lease could be granted at all now."""
        if request.slot:
            slots.expect_usable(self._session, request.slot, customer, self._plane.now_ms())
        why = stalled(self._session, self._plane.now_ms())
        if why:
            raise ServiceError(why, retryable=True)

    def _leave(self, run: RunRow) -> None:
        """A run whose leases all end by a notice looks for others before they do."""
        queued = RunStep(RunState.QUEUED, run.reason, run.message, retry_after_ms=0)
        transitions.run_step(self._plane, self._session, run, queued)

    def _client_gone(self, run: RunRow, why: Reason) -> None:
        said = _SILENT if why is Reason.CLIENT_LOST else "the process that started the run is gone"
        decided = run_failed(RunState(run.state), Reason.CLIENT_LOST, said)
        transitions.run_step(self._plane, self._session, run, decided)

    def _end_lease(self, lease: LeaseRow, reason: Reason) -> None:
        cluster = self._session.get(ClusterRow, lease.cluster)
        silent = cluster is None or self._plane.now_ms() - cluster.last_heard_ms >= NEAR_SILENT_MS
        event = LeaseEvent.LOST if silent else LeaseEvent.RELEASE
        transitions.give_back(lease)
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
    if request.checkpoint and request.kind not in ("run", "submit"):
        raise InvalidRequest(f"a {request.kind} begins with no checkpoint of another run; leave out `checkpoint`")
    check_gang(request)
    check_surroundings(request)


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
