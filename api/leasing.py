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
from api.lifecycle import LeaseEvent
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
from fabric.wire.machines import RUN_EDGES, RunState, step
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
        """What a run needs beside the leases that it kept, and the nodes that are no help for that."""
        return self._lacking(run, request, fleet, gangs.members(self._session, run.id) if gangs.is_gang(run) else [])

    def give_back(self, run: RunRow) -> None:
        """A gang that cannot be completed soon keeps nothing."""
        if gangs.is_gang(run):
            self._give_back(gangs.members(self._session, run.id))

    def _lacking(
        self, run: RunRow, request: RunRequest, fleet: Fleet, kept: Sequence[gangs.Member]
    ) -> tuple[RunRequest, frozenset[str]]:
        if not kept:
            return request, frozenset()
        missing = request.model_copy(update={"nodes": run.tasks_total - len(kept), "nodes_min": 0})
        return missing, _all_but_beside(fleet, [lease for _, lease in kept])

    def _grant_gang(
        self, run: RunRow, request: RunRequest, failed: Sequence[str], fleet: Fleet, clear: frozenset[str]
    ) -> int:
        """All leases of a gang, or those that it lacks beside the ones it kept."""
        kept = gangs.members(self._session, run.id)
        if kept and len(kept) == run.tasks_total:
            gangs.enrol(self._session, run, (), run.placements + 1)
            self.started(run)
            gangs.send_when_complete(self._session, run, self._plane.now_ms())
            return 1
        if transitions.count_unopened(self._session, run.customer) >= MAX_UNOPENED:
            return 0
        if kept and gangs.has_own_network(self._session, run, [lease for _, lease in kept]):
            self._give_back(kept)  # its members know each other from the grant
            return 0
        lacking, elsewhere = self._lacking(run, request, fleet, kept)
        for nodes in gangs.sizes(lacking):
            part = lacking.model_copy(update={"nodes": nodes})
            placement = self._placing.place(fleet, part, failed, clear | elsewhere)
            if isinstance(placement, Placement) and self._grant_whole(run, part, placement):
                self._plane.fleets.take(fleet, as_held(placement, f"{run.id}/gang", safe_ms=self._plane.now_ms()))
                return 1
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
            self.started(run)


def _all_but_beside(fleet: Fleet, kept: Sequence[LeaseRow]) -> frozenset[str]:
    """Nodes that cannot complete a gang: of other clusters, or its own already; none when it has nothing yet."""
    if not kept:
        return frozenset()
    mine = {node_key(lease.cluster, lease.node) for lease in kept}
    cluster = kept[0].cluster
    return frozenset(name for name, node in fleet.nodes.items() if node.cluster != cluster or name in mine)
