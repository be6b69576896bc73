"""Grants a run the leases that fit now, a gang all or none, inside the caller's transaction.

Where they go is `api.placing`'s to find out, what is written `api.granting`'s.
"""

from collections.abc import Sequence

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from api import gangs, transitions
from api.database import say
from api.decisions import explain
from api.fleet import node_key
from api.granting import default_budget_dc, grant
from api.lifecycle import LeaseEvent, run_opened
from api.placing import Placing
from api.plane import Plane
from api.schemas import RunRequest
from api.signals import run_topic
from api.tables import LeaseRow, RunRow
from fabric.placement.answer import Placement, Refusal
from fabric.placement.fleet import Fleet
from fabric.placement.place import as_held
from fabric.wire.errors import BudgetExhausted, InsufficientFunds
from fabric.wire.ids import new_id
from fabric.wire.machines import RUN_EDGES, LeaseState, RunState, step
from fabric.wire.reasons import Reason
from ledger.chain.stalled import stalled

MAX_UNOPENED = 4
"""Leases of one customer that may wait for their OPEN at the same time: so long nobody pays for them."""


class Leasing:
    """Grants of one transaction."""

    def __init__(self, plane: Plane, session: Session, placing: Placing) -> None:
        self._plane = plane
        self._session = session
        self._placing = placing

    def grant_up_to(
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
            placement = self._placing.place(fleet, request, failed, clear)
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

    def started(self, run: RunRow) -> None:
        step(RUN_EDGES, RunState(run.state), RunState.PLACING)
        run.state = step(RUN_EDGES, RunState.PLACING, RunState.STARTING).value
        run.reason = run.message = ""
        run.placements += 1
        self._session.add(run)
        self._session.flush()
        say(self._session, run_topic(run.id))

    def lacking(self, run: RunRow, request: RunRequest, fleet: Fleet) -> tuple[RunRequest, frozenset[str]]:
        """What a run needs at least beside the leases that it kept, and the nodes that are no help for that."""
        kept = gangs.members(self._session, run.id) if gangs.is_gang(run) else []
        least = gangs.sizes(request)[-1] - len(kept)
        missing = request.model_copy(update={"nodes": least, "nodes_min": 0}) if kept else request
        return missing, _all_but_beside(fleet, [lease for _, lease in kept])

    def give_back(self, run: RunRow) -> None:
        """A gang that cannot be completed soon keeps nothing."""
        if gangs.is_gang(run):
            self._give_back(gangs.members(self._session, run.id))

    def _grant_gang(
        self, run: RunRow, request: RunRequest, failed: Sequence[str], fleet: Fleet, clear: frozenset[str]
    ) -> int:
        """All leases of a gang, or more beside the ones it kept; those alone where they are enough and none fits."""
        kept, least = gangs.members(self._session, run.id), gangs.sizes(request)[-1]
        if not kept and least < request.nodes and transitions.is_closing(self._session, run.id):
            return 0  # a larger gang may have room in a moment
        own_network = gangs.has_own_network(self._session, run, [lease for _, lease in kept])
        if own_network and len(kept) < run.tasks_total:
            self._give_back(kept)  # its members know each other from the grant
            return 0
        if not own_network and self._grant_more(run, request, kept, failed, fleet, clear):
            return 1
        if len(kept) < least:
            return 0
        gangs.enrol(self._session, run, (), run.placements + 1)
        self.started(run)
        if any(lease.state == LeaseState.OPEN.value for _, lease in kept):
            transitions.run_step(self._plane, self._session, run, run_opened(RunState(run.state)))
        gangs.send_when_complete(self._session, run, self._plane.now_ms())
        return 1

    def _grant_more(
        self,
        run: RunRow,
        request: RunRequest,
        kept: Sequence[gangs.Member],
        failed: Sequence[str],
        fleet: Fleet,
        clear: frozenset[str],
    ) -> bool:
        """As many new leases as fit, up to what the gang may have; a shortage of money counts for the least only."""
        if transitions.count_unopened(self._session, run.customer) >= MAX_UNOPENED:
            return False
        least = gangs.sizes(request)[-1] - len(kept)
        elsewhere = _all_but_beside(fleet, [lease for _, lease in kept])
        for nodes in range(request.nodes - len(kept), max(least, 1) - 1, -1):
            part = request.model_copy(update={"nodes": nodes, "nodes_min": 0})
            placement = self._placing.place(fleet, part, failed, clear | elsewhere)
            try:
                if isinstance(placement, Placement) and self._grant_whole(run, part, placement):
                    self._plane.fleets.take(fleet, as_held(placement, f"{run.id}/gang", safe_ms=self._plane.now_ms()))
                    return True
            except (InsufficientFunds, BudgetExhausted):
                if nodes == least:
                    raise
        return False

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
            self.started(run)


def _all_but_beside(fleet: Fleet, kept: Sequence[LeaseRow]) -> frozenset[str]:
    """Nodes that cannot complete a gang: of other clusters, or its own already; none when it has nothing yet."""
    if not kept:
        return frozenset()
    mine = {node_key(lease.cluster, lease.node) for lease in kept}
    cluster = kept[0].cluster
    return frozenset(name for name, node in fleet.nodes.items() if node.cluster != cluster or name in mine)
