"""The ledger's jobs that time starts: sealing, finality, closing epochs; run where the database lock is held.

What they compute is the ledger's; this decides only when, and which epochs are due.
"""

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import func, select
from sqlmodel import Session

from api import locks, slots, uptimes
from api.plane import Plane
from api.pooled import pooled
from ledger import queries
from ledger.closing import EpochTerms
from ledger.epoch import EpochClock
from ledger.sealer import Sealer
from ledger.tables import UsageRow

_LOCK = "ledger"
_CLOSES_PER_TICK = 20


def tick(plane: Plane) -> None:
    """Seal what was booked, make final what is due, close epochs that are over; each in its own transaction."""
    with plane.database.write() as session:
        if locks.hold(plane, session, _LOCK) is None:
            return
        plane.ledger(session).finalise_usage()
        uptimes.look(plane, session)
        slots.sweep(plane, session)
        Sealer(session).seal(plane.now_ms())
    if plane.chain is None:
        close_over(plane)


def close_over(plane: Plane) -> list[int]:
    """Close every epoch that is over, in order, at most a few at a time; returns their numbers.

    With a chain an epoch may have to wait for it; why stands in the chain's link then.

    Raises:
        ChainError: the chain does not answer, or contradicts the ledger.
    """
    closed: list[int] = []
    while len(closed) < _CLOSES_PER_TICK:
        terms_of = _terms(plane)
        if terms_of is None:
            return closed
        with plane.database.write() as session:
            number = due(plane, session)
            if number is None or locks.hold(plane, session, _LOCK) is None:
                return closed
            terms = terms_of(session, number)
            if terms is None:
                return closed
            uptimes.look(plane, session)
            terms = replace(terms, pooled=lambda names: pooled(plane, session, names))
            plane.ledger(session).close_epoch(number, terms)
            closed.append(number)
    return closed


def _terms(plane: Plane) -> Callable[[Session, int], EpochTerms | None] | None:
    """Gives the terms of the epoch that is due, in its transaction; None where it must wait."""
    if plane.chain is None:
        return lambda _session, _number: EpochTerms(payer_salt=plane.payer_salt)
    from ledger.chain.terms import Waiting, ask_chain, standing, terms_from

    with plane.database.read() as session:
        number, status = due(plane, session), standing(session)
    if number is None:
        return None
    facts = ask_chain(plane.chain, status, number, plane.ledger_settings.schedule)
    plane.chain.close_waits = facts.why if isinstance(facts, Waiting) else ""
    if isinstance(facts, Waiting):
        return None
    link = plane.chain
    return lambda inside, due_now: (
        terms_from(inside, link, facts, payer_salt=plane.payer_salt) if due_now == facts.epoch else None
    )


def due(plane: Plane, session: Session) -> int | None:
    """The next epoch to close, if it is over; the first is that of the first usage, with a chain the chain's first."""
    number = next_epoch(plane, session)
    if number is None or plane.now_ms() < clock_of(plane).end(number):
        return None
    return number


def next_epoch(plane: Plane, session: Session) -> int | None:
    """The oldest epoch that is not closed; without a chain None before the first usage."""
    last = queries.epochs(session, limit=1).items
    if last:
        return last[0].n + 1
    if plane.chain is not None:
        return 0
    first = session.scalar(select(func.min(UsageRow.accepted_ms)))  # type: ignore[arg-type]
    return None if first is None else clock_of(plane).at(first + plane.ledger_settings.final_after_ms)


def clock_of(plane: Plane) -> EpochClock:
    settings = plane.ledger_settings
    return EpochClock(settings.genesis_ms, settings.epoch_ms)


def epoch_of_last_usage(plane: Plane, session: Session, before_ms: int) -> int | None:
    """The epoch in which the last usage accepted before a moment becomes final; None when there is none."""
    last = session.scalar(select(func.max(UsageRow.accepted_ms)).where(UsageRow.accepted_ms <= before_ms))  # type: ignore[arg-type]
    return None if last is None else clock_of(plane).at(last + plane.ledger_settings.final_after_ms)
