"""Pools: who may change terms or members, from which epoch a change holds, and what held in an epoch. Pure.

Nothing here takes effect in the epoch in which it is decided: a change of terms leaves members the exit delay to go
before it, and who joins, leaves or is kicked earns under the old membership until then. What was earned is never
touched. Self, single-source and distributed pools differ only in terms and in who may join.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ledger.errors import PoolTermsRefused
from ledger.money import BPS
from ledger.split import POOL_OF_ONE, PoolTerms

MAX_OPERATOR_BPS = 5000
_AS_OF = "@"


def as_of(pool: str, epoch: int) -> str:
    """A pool as it stood in an epoch, with the members and terms of then: what usage of that epoch is booked under.

    So usage that becomes final in a later epoch is still paid by what held when it was used.
    """
    return f"{pool}{_AS_OF}{epoch}"


def pool_and_epoch(name: str) -> tuple[str, int] | None:
    """The pool and the epoch in `as_of`'s answer; none for a GPU that stood alone, whose operator is named instead."""
    pool, sign, epoch = name.rpartition(_AS_OF)
    return (pool, int(epoch)) if sign and epoch.isdigit() else None


class Entrance(StrEnum):
    """Who may join: only the operator's own GPUs, those invited, or anybody."""

    OWN = "own"
    INVITED = "invited"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class TermsRow:
    """Terms of a pool and the first epoch in which they hold."""

    pool: str
    from_epoch: int
    terms: PoolTerms
    entrance: Entrance


@dataclass(frozen=True, slots=True)
class Membership:
    """A GPU's stay in a pool: epochs ``from_epoch`` to before ``until_epoch``; none = it has not ended."""

    gpu_id: str
    pool: str
    from_epoch: int
    until_epoch: int | None = None

    def covers(self, epoch: int) -> bool:
        return self.from_epoch <= epoch and (self.until_epoch is None or epoch < self.until_epoch)


@dataclass(frozen=True, slots=True)
class PoolRules:
    """The two numbers that governance may set.

    Attributes:
        exit_delay_epochs: how long a stay goes on after leave or kick, and how long terms wait.
        kick_below_bps: reputation under which an operator may kick a member.
    """

    exit_delay_epochs: int = 7
    kick_below_bps: int = 5000


def self_pool() -> tuple[PoolTerms, Entrance]:
    """An operator's own GPUs, each paid for its own usage."""
    return POOL_OF_ONE, Entrance.OWN


def single_source(
    operator_bps: int, operator_payout: str, shared_bps: int, model_weights: Mapping[str, int], price_ceiling_dc: int
) -> tuple[PoolTerms, Entrance]:
    """One operator, GPUs of many owners, a part shared by availability."""
    used_bps = BPS - operator_bps - shared_bps
    terms = PoolTerms(operator_bps, shared_bps, used_bps, operator_payout, model_weights, price_ceiling_dc)
    return terms, Entrance.INVITED


def distributed() -> tuple[PoolTerms, Entrance]:
    """Anybody's GPUs, each paid for its own usage: nothing to share, so nothing to win by joining."""
    return POOL_OF_ONE, Entrance.OPEN


def found(pool: str, terms: PoolTerms, entrance: Entrance, *, now_epoch: int) -> TermsRow:
    """A new pool; its terms hold from the next epoch on."""
    _expect_fair(terms, entrance)
    return TermsRow(pool, now_epoch + 1, terms, entrance)


def change_terms(
    history: Sequence[TermsRow], terms: PoolTerms, entrance: Entrance, *, now_epoch: int, rules: PoolRules
) -> TermsRow:
    """Other terms for a pool: they hold one epoch after every member who leaves now is out.

    Raises:
        PoolTermsRefused: unfair terms, or a change that waits already.
    """
    _expect_fair(terms, entrance)
    last = history[-1]
    if last.from_epoch > now_epoch:
        raise PoolTermsRefused(
            f"pool {last.pool} has terms that wait for epoch {last.from_epoch}; change them after it"
        )
    return TermsRow(last.pool, now_epoch + rules.exit_delay_epochs + 2, terms, entrance)


def terms_at(history: Sequence[TermsRow], epoch: int) -> TermsRow | None:
    """What held in an epoch; none before the pool's first."""
    held = [row for row in history if row.from_epoch <= epoch]
    return max(held, key=lambda row: row.from_epoch) if held else None


def join(
    stays: Sequence[Membership],
    in_force: TermsRow,
    gpu_id: str,
    *,
    now_epoch: int,
    own: bool = False,
    invited: bool = False,
) -> Membership:
    """A GPU joins from the next epoch on, so that nobody joins for a share of what was already earned.

    Args:
        stays: all of the GPU's memberships so far.
        in_force: the pool's terms now.
        gpu_id: the GPU.
        now_epoch: the running epoch.
        own: the GPU is the operator's own.
        invited: the operator's signed invitation was shown.

    Raises:
        PoolTermsRefused: no way in, or the GPU is in a pool beyond the next epoch's start.
    """
    allowed = {Entrance.OWN: own, Entrance.INVITED: own or invited, Entrance.OPEN: True}
    if not allowed[in_force.entrance]:
        raise PoolTermsRefused(
            f"pool {in_force.pool} takes {in_force.entrance} GPUs only; ask its operator to invite it"
        )
    start = now_epoch + 1
    for stay in stays:
        if stay.until_epoch is None or stay.until_epoch > start:
            raise PoolTermsRefused(
                f"GPU {gpu_id} is in pool {stay.pool} until epoch {stay.until_epoch}; leave it first"
            )
    return Membership(gpu_id, in_force.pool, start)


def leave(stay: Membership, *, now_epoch: int, rules: PoolRules) -> Membership:
    """The owner takes the GPU out; the stay goes on for the exit delay. Leaving twice changes nothing."""
    if stay.until_epoch is not None:
        return stay
    return Membership(stay.gpu_id, stay.pool, stay.from_epoch, now_epoch + 1 + rules.exit_delay_epochs)


def kick(stay: Membership, reputation_bps: int, *, now_epoch: int, rules: PoolRules) -> Membership:
    """The operator takes a member out for its poor reputation; the same delay, and what it earned stays its own.

    Raises:
        PoolTermsRefused: the reputation is not poor.
    """
    if reputation_bps >= rules.kick_below_bps:
        raise PoolTermsRefused(
            f"GPU {stay.gpu_id} has a reputation of {reputation_bps} bps; it can be kicked below {rules.kick_below_bps}"
        )
    return leave(stay, now_epoch=now_epoch, rules=rules)


def pool_at(stays: Sequence[Membership], epoch: int) -> str | None:
    """The pool a GPU was in; none when it stood alone."""
    return next((stay.pool for stay in stays if stay.covers(epoch)), None)


def _expect_fair(terms: PoolTerms, entrance: Entrance) -> None:
    if entrance is Entrance.OPEN and terms.used_bps != BPS:
        raise PoolTermsRefused(
            f"an open pool pays all by usage: used bps {BPS}, not {terms.used_bps}; else idle GPUs join for the rest"
        )
    if terms.operator_bps > MAX_OPERATOR_BPS:
        raise PoolTermsRefused(f"operator bps are {terms.operator_bps}; at most {MAX_OPERATOR_BPS}")
    if terms.shared_bps and terms.price_ceiling_dc is None:
        raise PoolTermsRefused(
            "terms with a shared part name a price ceiling; else GPUs that nobody would pay for earn by standing idle"
        )
    if terms.shared_bps and not any(terms.model_weights.values()):
        raise PoolTermsRefused("terms with a shared part name the models that share it and their weights, above 0")
    if any(weight < 0 for weight in terms.model_weights.values()):
        raise PoolTermsRefused(f"weights of models are 0 or more, not {dict(terms.model_weights)}")
