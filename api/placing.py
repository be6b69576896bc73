"""Where a request would go in the fleet as the database has it, inside one transaction; it books and writes nothing.

What is chosen is `fabric.placement`'s decision: here its request is made, with who asks, from how far, and what to
avoid.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlmodel import Session

from api import fleet as fleets
from api import gangs
from api.plane import Plane
from api.schemas import RunRequest
from api.tables import RunRow, SessionRow
from fabric.placement.answer import Placement, Refusal, Verdict
from fabric.placement.fleet import Fleet
from fabric.placement.place import keep_clear, offers, place
from fabric.placement.request import Request


class Placing:
    """Placement for one transaction; `writes` is False where it only reads.

    Attributes:
        planning: the account that plans without a session.
    """

    def __init__(self, plane: Plane, session: Session, *, writes: bool = True) -> None:
        self._plane = plane
        self._session = session
        self._writes = writes
        self.planning = ""

    def decide(self, request: RunRequest, exclude: Sequence[str]) -> tuple[Fleet, Placement | Refusal]:
        """Placement at the largest size that fits, or why not even the smallest does."""
        fleet, decided = self._decide_size(request, exclude)
        for nodes in gangs.sizes(request)[1:]:
            if isinstance(decided, Placement):
                break
            fleet, decided = self._decide_size(request.model_copy(update={"nodes": nodes}), exclude)
        return fleet, decided

    def largest(self, fleet: Fleet, request: RunRequest, clear: frozenset[str]) -> Placement | Refusal:
        """As `decide`, in this fleet and off the nodes where room is kept for others."""
        decided = self.place(fleet, request, (), clear)
        for nodes in gangs.sizes(request)[1:]:
            if isinstance(decided, Placement):
                break
            decided = self.place(fleet, request.model_copy(update={"nodes": nodes}), (), clear)
        return decided

    def fleet(self) -> Fleet:
        return self._plane.fleets.at(self._session, self._plane.now_ms(), writes=self._writes)

    def place(
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

    def by_eviction(self, fleet: Fleet, request: RunRequest, clear: Collection[str]) -> Placement | None:
        """Where the request fits only because spot leases go; None where it may not wait for that, or none would do.

        For nodes that a gang can do without nobody leaves.
        """
        if request.tier == "spot" or request.queue_timeout_ms == 0:
            return None
        least = request.model_copy(update={"nodes": gangs.sizes(request)[-1]})
        decided = place(fleet, self._wanted(fleet, least, frozenset(clear)), now_ms=self._plane.now_ms())
        return decided if isinstance(decided, Placement) and decided.evicts else None

    def room_for(self, fleet: Fleet, run: RunRow) -> frozenset[str]:
        request = RunRequest.model_validate(run.request)
        allowed = self._plane.settings.allow_simulated
        rtts = self._plane.distances.rtts_ms(self._session, request, self._plane.now_ms())
        failed = run.excluded_nodes
        wanted = fleets.request_of(
            request, fleet, exclude=failed, allow_simulated=allowed, rtt_ms=rtts, account=self._account(request)
        )
        return keep_clear(fleet, wanted)

    def offers(self, request: RunRequest) -> list[Any]:
        """What would fit now."""
        return self.dearer(self.fleet(), request)

    def dearer(self, fleet: Fleet, request: RunRequest) -> list[Any]:
        """What would fit at any price, for a refusal."""
        free = request.model_copy(update={"max_price_dc": None})
        allowed = self._plane.settings.allow_simulated
        rtts = self._plane.distances.rtts_ms(self._session, request, self._plane.now_ms())
        account = self._account(request)
        wanted = fleets.request_of(free, fleet, exclude=[], allow_simulated=allowed, rtt_ms=rtts, account=account)
        return offers(fleet, wanted)

    def _decide_size(self, request: RunRequest, exclude: Sequence[str]) -> tuple[Fleet, Placement | Refusal]:
        """Placement in the fleet as it is; "never" only when an absent agent would not help either."""
        now = self._plane.now_ms()
        fleet = self.fleet()
        decided = self.place(fleet, request, exclude)
        if isinstance(decided, Refusal) and decided.kind is not Verdict.TAKEN:
            known = self._plane.fleets.at(self._session, now, writes=self._writes, known=True)
            with_absent = self.place(known, request, exclude)
            if isinstance(with_absent, Placement):
                return known, Refusal(Verdict.TAKEN, decided.considered, decided.reasons, decided.nearest)
            return known, with_absent
        return fleet, decided

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

    def _account(self, request: RunRequest) -> str:
        """Whose run it is."""
        row = self._session.get(SessionRow, request.session)
        return row.customer if row is not None else self.planning
