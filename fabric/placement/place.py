"""Where a request goes: `place(fleet, request)` is a `Placement` or a `Refusal`; `offers(fleet, request)` is what could
be bought now. Both use the same screens, so the price shown is the price paid.

Pure and deterministic: no clock, no randomness; nothing is booked (`Fleet.take` books what was decided). The fleet's
`memo` keeps what was worked out for earlier requests; it changes speed, never an answer.

```
place(fleet: Fleet, request: Request, policy: Policy | None = None, *, now_ms: int = 0) -> Placement | Refusal
offers(fleet: Fleet, request: Request) -> list[Offer]
as_held(placement: Placement, lease: str, *, safe_ms: int = 0, until_ms: int | None = None) -> Held
```
"""

from collections import Counter

import numpy as np

from fabric.placement.answer import Offer, Placement, Reason, Refusal, Verdict
from fabric.placement.choice import Choice
from fabric.placement.fleet import Fleet
from fabric.placement.inventory import Held
from fabric.placement.nearest import nearest, similar_names
from fabric.placement.policy import Policy, policy_for
from fabric.placement.request import Request
from fabric.placement.screen import BIT


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
    order = (Verdict.TAKEN, Verdict.PRICE, Verdict.NEVER_FITS)
    verdict = min((_verdict(choice) for choice in choices), key=order.index)
    reasons: Counter[Reason] = Counter()
    for choice in choices:
        reasons.update(dict(choice.screen.rejected))
        reasons[Reason.TAKEN] += choice.screen.open_count
    counted = tuple((reason, reasons[reason]) for reason in Reason if reasons[reason])
    considered = sum(choice.screen.considered for choice in choices)
    near = nearest(fleet, request, [(choice.spec, choice.screen) for choice in choices], now_ms)
    return Refusal(verdict, considered, counted, near, similar_names(fleet, request))


def _verdict(choice: Choice) -> Verdict:
    """What an empty fleet could do, and what it could do at any price."""
    if _enough(choice, 0):
        return Verdict.TAKEN
    return Verdict.PRICE if _enough(choice, BIT[Reason.PRICE]) else Verdict.NEVER_FITS


def _enough(choice: Choice, forgiven: int) -> bool:
    """Whether so many nodes of one cluster and kind would do, all empty and the forgiven reasons aside."""
    nodes = choice.request.nodes
    rows = np.flatnonzero((choice.screen.bits & ~forgiven) == 0)
    if nodes == 1 or rows.size < nodes:
        return rows.size >= nodes
    return int(np.bincount(choice.fleet.group[rows]).max()) >= nodes
