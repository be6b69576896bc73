"""Booking rules: what happened, and the balances that bear on it, become entries. Pure; the store applies them.

Every amount is DC. A function that can refuse says so by a typed error and decides nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ledger import accounts
from ledger.accounts import CUSTOMER_KINDS
from ledger.entries import Entry, EntryKind, Posting, move, reversal
from ledger.errors import BudgetExceeded, InsufficientFunds, InvalidAmount, UsageOutOfOrder
from ledger.pricing import PricedShare, charge_due_up
from ledger.usage import Usage


@dataclass(frozen=True, slots=True)
class MeterState:
    """What was booked of one meter: the last (seq, part), its cumulative time and the DC charged so far."""

    seq: int = -1
    part: int = 0
    cumulative_gpu_ms: int = 0
    charged_dc: int = 0


@dataclass(frozen=True, slots=True)
class Charge:
    """One receipt's effect on the bill.

    Attributes:
        usage: what was charged for.
        gpu_ms: time added by this receipt.
        dc: DC moved from the hold to usage.
        charged_dc: DC charged for this meter so far, this charge included.
        short_dc: DC that were due and that the hold could not bear; due again with the next receipt.
        entry: the booking.
    """

    usage: Usage
    gpu_ms: int
    dc: int
    charged_dc: int
    short_dc: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Undo:
    """Charges taken back, newest first, and the one that is charged again for the part of its time that stands."""

    reversals: tuple[Entry, ...]
    again: Charge | None


def test_credit(customer: str, dc: int, *, source_id: str, at_ms: int) -> Entry:
    return _entry(EntryKind.TEST_CREDIT, source_id, at_ms, accounts.test_credit(), accounts.available(customer), dc)


def deposit(customer: str, dc: int, *, source_id: str, at_ms: int) -> Entry:
    return _entry(EntryKind.DEPOSIT, source_id, at_ms, accounts.deposits(), accounts.available(customer), dc)


def request_exit(customer: str, dc: int, *, source_id: str, at_ms: int) -> Entry:
    return _entry(EntryKind.EXIT, source_id, at_ms, accounts.available(customer), accounts.exiting(customer), dc)


def exit_paid(customer: str, dc: int, *, source_id: str, at_ms: int) -> Entry:
    return _entry(EntryKind.EXIT_PAID, source_id, at_ms, accounts.exiting(customer), accounts.exited(customer), dc)


def bct_burned(wei: int, *, source_id: str, at_ms: int) -> Entry:
    """BCT burned for DC on chain: they may be minted again by epochs whose value exceeds their emission."""
    return _entry(EntryKind.BCT_BURN, source_id, at_ms, accounts.bct_burned(), accounts.remintable(), wei)


def claim(gpu_id: str, holder: str, wei: int, *, source_id: str, at_ms: int) -> Entry:
    return _entry(
        EntryKind.CLAIM, source_id, at_ms, accounts.payable(gpu_id, holder), accounts.claimed(gpu_id, holder), wei
    )


def hold(
    kind: EntryKind,
    *,
    lease_id: str,
    run_id: str,
    customer: str,
    dc: int,
    available_dc: int,
    budget_left_dc: int | None,
    source_id: str,
    at_ms: int,
) -> Entry:
    """A hold or a top-up of one.

    Raises:
        BudgetExceeded: more than the run's budget has left after everything charged and held for it.
        InsufficientFunds: more than the customer has available.
    """
    if budget_left_dc is not None and dc > budget_left_dc:
        raise BudgetExceeded(run_id, needed_dc=dc, left_dc=budget_left_dc)
    if dc > available_dc:
        raise InsufficientFunds(customer, needed_dc=dc, available_dc=available_dc)
    source, target = accounts.available(customer), accounts.held(customer, lease_id)
    return _entry(kind, source_id, at_ms, source, target, dc, lease_id)


def charge(usage: Usage, *, meter: MeterState, held_dc: int, at_ms: int, source_id: str | None = None) -> Charge:
    """What one receipt adds to the bill: all that is due for the cumulative time minus what was charged before.

    The hold bounds it: never more than ``held_dc`` is charged, so a customer cannot get into debt.

    Raises:
        UsageOutOfOrder: the meter or the receipt's number went back.
    """
    if (usage.seq, usage.part) <= (meter.seq, meter.part) or usage.cumulative_gpu_ms < meter.cumulative_gpu_ms:
        raise UsageOutOfOrder(
            f"{usage.source_id}: {usage.cumulative_gpu_ms} ms cannot follow receipt {meter.seq}.{meter.part} with "
            f"{meter.cumulative_gpu_ms} ms; a meter only grows and receipts come in order"
        )
    priced = PricedShare(usage.share_milli, usage.price_dc_per_gpu_hour)
    due = max(0, charge_due_up(usage.cumulative_gpu_ms, priced) - meter.charged_dc)
    dc = min(due, held_dc)
    entry = Entry(
        EntryKind.CHARGE,
        source_id or usage.source_id,
        at_ms,
        move(accounts.held(usage.customer, usage.lease_id), accounts.usage_pending(usage.gpu_id), dc),
        usage.lease_id,
        usage.customer,
    )
    added_ms = usage.cumulative_gpu_ms - meter.cumulative_gpu_ms
    return Charge(usage, added_ms, dc, meter.charged_dc + dc, due - dc, entry)


def state_after(charged: Charge) -> MeterState:
    usage = charged.usage
    return MeterState(usage.seq, usage.part, usage.cumulative_gpu_ms, charged.charged_dc)


def undo(
    charges: Sequence[Charge], *, back_to_ms: int, before: MeterState, held_dc: int, source_id: str, at_ms: int
) -> Undo:
    """Take a meter back to ``back_to_ms`` cumulative milliseconds.

    Args:
        charges: every standing charge of the meter that passed ``back_to_ms``, newest first.
        back_to_ms: time that stays billed.
        before: the meter's state before the oldest of ``charges``.
        held_dc: the lease's hold now, before anything is given back.
        source_id: of the undo; its parts are numbered.
        at_ms: time of booking.
    """
    if not charges:
        return Undo((), None)
    reversals = tuple(
        reversal(charged.entry, source_id=f"{source_id}/{number}", at_ms=at_ms)
        for number, charged in enumerate(charges)
    )
    oldest = charges[-1].usage
    if back_to_ms <= before.cumulative_gpu_ms:
        return Undo(reversals, None)
    kept = replace(oldest, cumulative_gpu_ms=back_to_ms, utilised_gpu_ms=0, energy_mj=0)
    given_back = sum(charged.dc for charged in charges)
    again = charge(kept, meter=before, held_dc=held_dc + given_back, at_ms=at_ms, source_id=f"{source_id}/again")
    return Undo(reversals, again)


def release(customer: str, lease_id: str, held_dc: int, *, source_id: str, at_ms: int) -> Entry:
    """The rest of a hold goes back; an entry without postings when there is no rest."""
    postings = move(accounts.held(customer, lease_id), accounts.available(customer), held_dc)
    return Entry(EntryKind.RELEASE, source_id, at_ms, postings, lease_id, customer)


def finality_step(epoch: int, through_ms: int, *, at_ms: int) -> Entry:
    """Moves nothing: puts a step of the finality watermark under the seal of the chain."""
    return Entry(EntryKind.FINAL, f"final/{epoch}/{through_ms}", at_ms, ())


def finality(gpu_id: str, epoch: int, dc: int, *, source_id: str, at_ms: int) -> Entry:
    """A GPU's usage that can no longer be undone goes into the epoch in which that happened."""
    postings = move(accounts.usage_pending(gpu_id), accounts.usage_final(gpu_id, epoch), dc)
    return Entry(EntryKind.FINAL, source_id, at_ms, postings)


def burn(epoch: int, final_dc: Sequence[tuple[str, int]], *, source_id: str, at_ms: int) -> Entry:
    """All usage final in an epoch is burned at its close; ``final_dc`` has one (GPU, DC) for each GPU."""
    taken = tuple(Posting(accounts.usage_final(gpu_id, epoch), -dc) for gpu_id, dc in final_dc if dc)
    total = sum(dc for _, dc in final_dc)
    postings = (*taken, Posting(accounts.burned(epoch), total)) if total else ()
    return Entry(EntryKind.BURN, source_id, at_ms, postings)


def pay(
    epoch: int,
    payouts: Sequence[tuple[str, str, int]],
    *,
    staking_wei: int,
    emission_wei: int,
    source_id: str,
    at_ms: int,
) -> Entry:
    """The epoch's BCT: from emission first, the rest from what was burned and not minted again.

    Args:
        epoch: whose pay it is.
        payouts: (GPU, holder, wei), each pair once.
        staking_wei: the stakers' share.
        emission_wei: what the schedule allows the epoch.
        source_id: unique, as in every entry.
        at_ms: time of booking.
    """
    earned = [Posting(accounts.payable(gpu_id, holder), wei) for gpu_id, holder, wei in payouts if wei]
    if staking_wei:
        earned.append(Posting(accounts.staking(epoch), staking_wei))
    paid = sum(posting.amount for posting in earned)
    emitted = min(paid, emission_wei)
    sources = [(accounts.emission(epoch), emitted), (accounts.remintable(), paid - emitted)]
    taken = [Posting(account, -wei) for account, wei in sources if wei]
    return Entry(EntryKind.PAY, source_id, at_ms, (*taken, *earned))


def close(epoch: int, file_hash: bytes, *, at_ms: int) -> Entry:
    """Moves nothing: puts the address of an epoch's file under the seal of the chain."""
    return Entry(EntryKind.CLOSE, close_source_id(epoch, file_hash), at_ms, ())


def close_source_id(epoch: int, file_hash: bytes) -> str:
    return f"close/{epoch}/0x{file_hash.hex()}"


def _entry(
    kind: EntryKind,
    source_id: str,
    at_ms: int,
    source: accounts.Account,
    target: accounts.Account,
    amount: int,
    lease_id: str | None = None,
) -> Entry:
    if type(amount) is not int or amount <= 0:
        raise InvalidAmount(f"{source_id}: an amount is an integer above 0, not {amount!r}")
    customer = next((account.owner for account in (source, target) if account.kind in CUSTOMER_KINDS), None)
    return Entry(kind, source_id, at_ms, move(source, target, amount), lease_id, customer)
