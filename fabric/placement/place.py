"""Where a request goes: `place(fleet, request)` is a `Placement` or a `Refusal`; `offers(fleet, request)` is what could
be bought now. Both use the same screens, so the price shown is the price paid.

Pure and deterministic: no clock, no randomness; nothing is booked (`Fleet.take` books what was decided). The fleet
keeps what was worked out for earlier requests (`memo`); that changes speed, never an answer.

```
place(fleet: Fleet, request: Request, policy: Policy | None = None, *, now_ms: int = 0) -> Placement | Refusal
offers(fleet: Fleet, request: Request) -> list[Offer]
keep_clear(fleet: Fleet, request: Request) -> frozenset[str]
as_held(placement: Placement, lease: str, *, safe_ms: int = 0, until_ms: int | None = None) -> Held
```
"""

from collections import Counter

from fabric.placement.answer import Offer, Placement, Reason, Refusal, Verdict
from fabric.placement.choice import Choice
from fabric.placement.fleet import Fleet
from fabric.placement.inventory import Held
from fabric.placement.nearest import nearest, similar_names
from fabric.placement.policy import Policy, policy_for
from fabric.placement.request import Request
from fabric.placement.screen import Screen

_HOPE = (Verdict.TAKEN, Verdict.PRICE, Verdict.NEVER_FITS)


def place(fleet: Fleet, request: Request, policy: Policy | None = None, *, now_ms: int = 0) -> Placement | Refusal:
    """Decide where the request goes.

    Free GPUs are preferred to GPUs that a spot lease would have to leave, whatever their price below the cap. Of a
    range of counts the objective `cost` takes the smallest and `latency` the largest that is free at the chosen place.

    Args:
        fleet: as it is now.
        request: what is asked.
        policy: what is preferred; None for the default of the request's objective.
        now_ms: ms since the Unix epoch, for what spot leases would lose and for "free in about …"; nothing else.

    Returns:
        A placement that fits as it stands, or a refusal that tells "never", "too dear" and "taken" apart.
    """
    chosen_policy = policy or policy_for(request.objective)
    choices = [Choice(fleet, request, index, chosen_policy) for index in range(len(request.gpu.specs))]
    placement = _free(choices, ordered=request.gpu.ordered) or _evicting(fleet, request, choices, now_ms)
    return placement or _refusal(fleet, request, choices, now_ms)


def offers(fleet: Fleet, request: Request) -> list[Offer]:
    """Everything that `place` could choose now, grouped by cluster and kind of GPU, cheapest first."""
    found: list[Offer] = []
    for index in range(len(request.gpu.specs)):
        found += Choice(fleet, request, index, policy_for(request.objective)).offers()
    distinct = list(dict.fromkeys(found))
    distinct.sort(key=lambda offer: (offer.price_dc_per_gpu_hour, offer.rtt_ms or 0.0, offer.model, offer.cluster))
    return distinct


def keep_clear(fleet: Fleet, request: Request) -> frozenset[str]:
    """Nodes where room for a request that waits too long should collect: others get them as `exclude_nodes`.

    As many nodes of one cluster and kind as the request wants, those where the least is held. Empty when nothing in the
    fleet would ever do.
    """
    for index in range(len(request.gpu.specs)):
        nodes = Choice(fleet, request, index, policy_for(request.objective)).emptiest()
        if nodes:
            return nodes
    return frozenset()


def as_held(placement: Placement, lease: str, *, safe_ms: int = 0, until_ms: int | None = None) -> Held:
    """What `Fleet.take` books for a placement."""
    return Held(lease, placement.tier, placement.assignments, safe_ms, until_ms)


def _free(choices: list[Choice], *, ordered: bool) -> Placement | None:
    """The first alternative that has room, or the cheapest of all when their order does not matter."""
    found: list[Placement] = []
    for choice in choices:
        best = choice.best()
        if best is not None:
            found.append(choice.placement(best))
            if ordered:
                break
    return min(found, key=lambda one: (one.price_dc_per_hour_up, one.alternative), default=None)


def _evicting(fleet: Fleet, request: Request, choices: list[Choice], now_ms: int) -> Placement | None:
    if request.tier == "spot" or not fleet.spot_leases:
        return None
    return next((found for choice in choices if (found := choice.evicting(now_ms)) is not None), None)


def _refusal(fleet: Fleet, request: Request, choices: list[Choice], now_ms: int) -> Refusal:
    screens = [choice.screen for choice in choices]
    verdict = min((one.verdict(fleet) for one in screens), key=_HOPE.index)
    near = nearest(fleet, request, [(choice.spec, choice.screen) for choice in choices], now_ms)
    names = similar_names(fleet, request) if verdict is Verdict.NEVER_FITS else ()
    return Refusal(verdict, sum(one.considered for one in screens), _counted(screens), near, names)


def _counted(screens: list[Screen]) -> tuple[tuple[Reason, int], ...]:
    """Rows by the reason against them, over all alternatives; what is open but has no room is taken."""
    if len(screens) == 1:
        taken = screens[0].open_count
        return (*screens[0].rejected, (Reason.TAKEN, taken)) if taken else screens[0].rejected
    reasons: Counter[Reason] = Counter()
    for one in screens:
        reasons.update(dict(one.rejected))
        reasons[Reason.TAKEN] += one.open_count
    return tuple((reason, reasons[reason]) for reason in Reason if reasons[reason])
