"""Checkers of what came from the chain: settlements in order and as closed, claims within promises, holders.

They read rows only: that the rows are the chain's, a reading from the first block on shows.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from sqlalchemy import select
from sqlmodel import Session

from ledger import accounts
from ledger.accounts import Account
from ledger.audit import Check, Finding
from ledger.book import ENTRY, Book
from ledger.chain.crediting import customer_of, source_id
from ledger.chain.holders import holders_of
from ledger.chain.index import BLOCK, Index
from ledger.chain.tables import (
    EVENT_ROWS,
    ClaimRow,
    DepositRow,
    EventRow,
    ExitPaymentRow,
    ExitRequestRow,
    FinalisationRow,
    MintRow,
    PostRow,
    RewindRow,
)
from ledger.closing import EPOCH, PAYOUT
from ledger.entries import EntryKind
from ledger.holding import holder_at
from ledger.meters import METER, USAGE, standing
from ledger.tables import table_of

_BOOKED_AS: dict[type[EventRow], EntryKind] = {
    MintRow: EntryKind.BCT_BURN,
    ClaimRow: EntryKind.CLAIM,
    DepositRow: EntryKind.DEPOSIT,
    ExitRequestRow: EntryKind.EXIT,
    ExitPaymentRow: EntryKind.EXIT_PAID,
}


def settlements_are_in_order(session: Session) -> Iterator[Finding]:
    """The contract finalised each epoch once, from 0 on without a gap, by the post that stood in its queue."""
    expected, queue, floor = 0, dict[int, int](), 0
    for event in _events(session, PostRow, RewindRow, FinalisationRow):
        if isinstance(event, PostRow):
            if event.epoch != floor + len(queue):
                yield _finding(event, f"epoch {event.epoch} was posted, {floor + len(queue)} was next")
            queue[event.epoch] = event.post_id
        elif isinstance(event, RewindRow):
            queue = {epoch: post for epoch, post in queue.items() if epoch < event.to_epoch}
        elif isinstance(event, FinalisationRow):
            if (event.epoch, queue.pop(event.epoch, None)) != (expected, event.post_id):
                yield _finding(event, f"epoch {event.epoch} was finalised by post {event.post_id}, {expected} was next")
            expected = floor = event.epoch + 1


def the_chain_is_followed(session: Session) -> Iterator[Finding]:
    """The indexer runs; its blocks are a chain that begins with the final one; no event is of a block it lacks."""
    cursor = Index(session).cursor()
    if cursor is None:
        return
    if cursor.halted:
        yield Finding("chain_cursor", str(cursor.id), f"the indexer halted: {cursor.halted}")
    blocks = session.execute(select(BLOCK).order_by(BLOCK.c.number)).all()
    for before, block in pairwise(blocks):
        if block.parent != before.hash or block.number != before.number + 1:
            yield Finding("chain_block", str(block.number), "it is not a child of the block before it")
    final = {block.number: block.hash for block in blocks}.get(cursor.final_number, b"")
    if final != cursor.final_hash:
        yield Finding("chain_block", str(cursor.final_number), "it is not the block that was final")
    kept = {block.number for block in blocks}
    for event in _events(session, *EVENT_ROWS):
        if event.block_number > cursor.final_number and event.block_number not in kept:
            yield _finding(event, "its block is not known")


def what_is_final_is_booked(session: Session) -> Iterator[Finding]:
    """Every final event has the entry that it causes, with its amount, and every such entry its event."""
    cursor = Index(session).cursor()
    final = -1 if cursor is None else cursor.final_number
    due = dict(_due(session, final))
    rows = session.execute(
        select(ENTRY.c.id, ENTRY.c.source_id, ENTRY.c.kind)
        .where(ENTRY.c.kind.in_([kind.value for kind in _BOOKED_AS.values()]), ENTRY.c.source_id.like("chain/%"))
        .order_by(ENTRY.c.id)
    )
    for entry_id, source, kind in rows:
        event, customer = due.pop(source, (None, None))
        if event is None or _BOOKED_AS[type(event)] != kind:
            yield Finding("ledger_entry", str(entry_id), f"{source} says nothing final on the chain that is a {kind}")
        elif problem := _differs(session, entry_id, event, customer):
            yield Finding("ledger_entry", str(entry_id), problem)
    for event, _ in due.values():
        if not isinstance(event, ExitRequestRow) and not (isinstance(event, MintRow) and not event.bct_wei):
            yield _finding(event, "it is final and was not booked")


def settled_is_what_was_closed(session: Session) -> Iterator[Finding]:
    """An epoch finalised on the chain has the root, burned DC and pay with which this ledger closed it."""
    posts = {event.post_id: event for event in _events(session, PostRow) if isinstance(event, PostRow)}
    epochs = {row.n: row for row in session.execute(select(EPOCH))}
    for event in _events(session, FinalisationRow):
        assert isinstance(event, FinalisationRow)
        post, closed = posts.get(event.post_id), epochs.get(event.epoch)
        if closed is None or post is None:
            yield _finding(event, f"epoch {event.epoch} is settled and this ledger did not close it")
            continue
        stated = (event.payout_root, post.usage_root, post.file, post.burned_dc, event.paid_wei)
        if stated != (closed.payout_root, closed.usage_root, closed.file_hash, closed.burned_dc, closed.paid_wei):
            yield _finding(event, f"epoch {event.epoch} is settled with other roots or sums than it was closed with")


def claims_are_within_promises(session: Session) -> Iterator[Finding]:
    """Claimed of each (GPU, holder) ≤ its payouts in finalised epochs; minted ≤ emission of them + BCT burned."""
    finalised = {
        event.epoch: event for event in _events(session, FinalisationRow) if isinstance(event, FinalisationRow)
    }
    promised: defaultdict[tuple[str, str], int] = defaultdict(int)
    for row in session.execute(select(PAYOUT).where(PAYOUT.c.epoch.in_(list(finalised)))):
        promised[row.gpu_id, row.holder] += row.wei
    claimed: defaultdict[tuple[str, str], int] = defaultdict(int)
    burned = paid = emitted = 0
    emission = {row.n: row.emission_wei for row in session.execute(select(EPOCH))}
    for event in _events(session, ClaimRow, MintRow, FinalisationRow):
        if isinstance(event, MintRow):
            burned += event.bct_wei
        elif isinstance(event, FinalisationRow):
            paid, emitted = paid + event.paid_wei, emitted + emission.get(event.epoch, 0)
            if paid > emitted + burned:
                yield _finding(event, f"{paid} wei paid by then; emission and burned BCT allow {emitted + burned}")
        elif isinstance(event, ClaimRow):
            pair = (event.gpu_id, event.holder)
            claimed[pair] += event.wei
            if event.cumulative_wei != claimed[pair] or claimed[pair] > promised[pair]:
                yield _finding(event, f"{claimed[pair]} wei claimed by then, {promised[pair]} promised")


def usage_is_its_holders(session: Session) -> Iterator[Finding]:
    """Usage of a GPU with an NFT is booked for who held it at the time of use, as final blocks say."""
    gpus = session.execute(select(METER.c.gpu_id).distinct()).scalars().all()
    for gpu_id, holders in sorted(holders_of(session, gpus).items()):
        rows = session.execute(
            select(USAGE.c.entry_id, USAGE.c.holder, USAGE.c.at_ms)
            .join(METER, METER.c.id == USAGE.c.meter_id)
            .where(METER.c.gpu_id == gpu_id, standing())
            .order_by(USAGE.c.entry_id)
        )
        for entry_id, holder, at_ms in rows:
            held_by = holder_at(holders, at_ms)
            if held_by and held_by != holder:
                yield Finding("ledger_usage", str(entry_id), f"booked for {holder}; {held_by} held {gpu_id} at {at_ms}")


CHAIN_CHECKS = (
    Check("settlements are in order", 13, settlements_are_in_order),
    Check("the chain is followed", 14, the_chain_is_followed),
    Check("what is final on the chain is booked", 14, what_is_final_is_booked),
    Check("settled is what was closed", 14, settled_is_what_was_closed),
    Check("claims are within promises", 15, claims_are_within_promises),
    Check("usage is booked for who held the NFT", 16, usage_is_its_holders),
)


def _events(session: Session, *kinds: type[EventRow]) -> list[EventRow]:
    """In the chain's order."""
    found = [event for kind in kinds for event in session.scalars(select(kind))]
    return sorted(found, key=lambda event: (event.block_number, event.log_index))


def _due(session: Session, final: int) -> Iterator[tuple[str, tuple[EventRow, str | None]]]:
    """By source: events that must have, or may have, an entry; with the customer of the wallet."""
    for event in _events(session, *_BOOKED_AS):
        if event.block_number > final:
            continue
        if isinstance(event, MintRow | ClaimRow):
            yield source_id(event), (event, None)
        elif isinstance(event, DepositRow | ExitRequestRow | ExitPaymentRow):
            customer = customer_of(session, event.account)
            if customer is not None:
                yield source_id(event), (event, customer)


def _differs(session: Session, entry_id: int, event: EventRow, customer: str | None) -> str:
    """What is wrong with the entry of an event; empty when nothing is. Of an exit only what is there moves."""
    account, moved = Book(session).postings(entry_id)[1]
    target, said = _told(event, customer or "")
    right = moved <= said if isinstance(event, ExitRequestRow) else moved == said
    return "" if right and account == target else f"it moves {moved} to {account.name}; the chain says {said}"


def _told(event: EventRow, customer: str) -> tuple[Account, int]:
    """The account that an event's entry adds to, and the amount that the chain states."""
    match event:
        case MintRow():
            return accounts.remintable(), event.bct_wei
        case ClaimRow():
            return accounts.claimed(event.gpu_id, event.holder), event.wei
        case DepositRow():
            return accounts.available(customer), event.dc
        case ExitRequestRow():
            return accounts.exiting(customer), event.dc
        case ExitPaymentRow():
            return accounts.exited(customer), event.dc
        case _:
            raise TypeError(f"nothing is booked for a {type(event).__name__}")


def _finding(event: EventRow, message: str) -> Finding:
    return Finding(table_of(type(event)).name, f"{event.block_number}/{event.log_index}", message)
