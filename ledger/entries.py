"""Entries: immutable, balanced per asset, unique by ``source_id``; correction is reversal.

Two checks that are not the same: `check_balanced` (nothing appears or vanishes) and `check_permitted` (this kind of
entry may move money between these accounts, of these owners). Neither looks at a balance: the store does.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ledger.accounts import Account, AccountKind, Asset
from ledger.errors import ForbiddenFlow, InvalidAmount, UnbalancedEntry

MAX_DC = 2**63 - 1
MAX_WEI = 2**255 - 1


class EntryKind(StrEnum):
    TEST_CREDIT = "test_credit"
    DEPOSIT = "deposit"
    HOLD = "hold"
    OPEN_HOLD = "open_hold"
    TOP_UP = "top_up"
    CHARGE = "charge"
    RELEASE = "release"
    TRANSFER = "transfer"
    UNDO = "undo"
    FINAL = "final"
    BURN = "burn"
    BCT_BURN = "bct_burn"
    PAY = "pay"
    CLOSE = "close"
    CLAIM = "claim"
    EXIT = "exit"
    EXIT_PAID = "exit_paid"


class Posting(NamedTuple):
    """A change of one account: above zero adds, below zero takes. DC, or wei for accounts of BCT."""

    account: Account
    amount: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One booking.

    Attributes:
        kind: what happened; decides which flows are permitted.
        source_id: names the fact that caused it; the same fact books once.
        at_ms: the control plane's time of booking.
        postings: no account twice, no zero amount; none for a charge that rounding made 0, and for a close.
        lease_id: the lease it belongs to, if any.
        customer: who sees it among their entries, if any customer.
        reverses: source_id of the entry that this one takes back.
    """

    kind: EntryKind
    source_id: str
    at_ms: int
    postings: tuple[Posting, ...]
    lease_id: str | None = None
    customer: str | None = None
    reverses: str | None = None


@dataclass(frozen=True, slots=True)
class _Flow:
    """Kinds that money may leave, kinds it may enter, and which sides must belong to one owner."""

    out_of: frozenset[AccountKind]
    into: frozenset[AccountKind]
    one_owner: bool = False


def _flow(out_of: set[AccountKind], into: set[AccountKind], *, one_owner: bool = False) -> _Flow:
    return _Flow(frozenset(out_of), frozenset(into), one_owner)


_K = AccountKind
FLOWS: Mapping[EntryKind, _Flow] = {
    EntryKind.TEST_CREDIT: _flow({_K.TEST_CREDIT}, {_K.AVAILABLE}),
    EntryKind.DEPOSIT: _flow({_K.DEPOSITS}, {_K.AVAILABLE}),
    EntryKind.HOLD: _flow({_K.AVAILABLE}, {_K.HELD}, one_owner=True),
    EntryKind.OPEN_HOLD: _flow(set(), set()),
    EntryKind.TOP_UP: _flow({_K.AVAILABLE}, {_K.HELD}, one_owner=True),
    EntryKind.CHARGE: _flow({_K.HELD}, {_K.USAGE_PENDING}),
    EntryKind.RELEASE: _flow({_K.HELD}, {_K.AVAILABLE}, one_owner=True),
    EntryKind.TRANSFER: _flow({_K.HELD}, {_K.HELD}),
    EntryKind.UNDO: _flow({_K.USAGE_PENDING}, {_K.HELD}),
    EntryKind.FINAL: _flow({_K.USAGE_PENDING}, {_K.USAGE_FINAL}, one_owner=True),
    EntryKind.BURN: _flow({_K.USAGE_FINAL}, {_K.BURNED}),
    EntryKind.BCT_BURN: _flow({_K.BCT_BURNED}, {_K.REMINTABLE}),
    EntryKind.PAY: _flow({_K.EMISSION, _K.REMINTABLE}, {_K.PAYABLE, _K.STAKING}),
    EntryKind.CLOSE: _flow(set(), set()),
    EntryKind.CLAIM: _flow({_K.PAYABLE}, {_K.CLAIMED}, one_owner=True),
    EntryKind.EXIT: _flow({_K.AVAILABLE}, {_K.EXITING}, one_owner=True),
    EntryKind.EXIT_PAID: _flow({_K.EXITING}, {_K.EXITED}, one_owner=True),
}


def move(source: Account, target: Account, amount: int) -> tuple[Posting, ...]:
    """Two postings that take ``amount`` from one account to another; none for 0."""
    if amount == 0:
        return ()
    return (Posting(source, -amount), Posting(target, amount))


def check(entry: Entry) -> None:
    """Both checks.

    Raises:
        InvalidAmount: not an integer, zero, or beyond what its asset can hold.
        UnbalancedEntry: the postings of an asset do not sum to 0.
        ForbiddenFlow: an account or owner that this kind of entry must not touch.
    """
    check_balanced(entry)
    check_permitted(entry)


def check_balanced(entry: Entry) -> None:
    sums: dict[Asset, int] = defaultdict(int)
    for account, amount in entry.postings:
        asset = account.asset
        _check_amount(entry, asset, amount)
        sums[asset] += amount
    for asset, total in sums.items():
        if total:
            raise UnbalancedEntry(f"entry {entry.source_id}: postings in {asset} sum to {total}, not to 0")


def check_permitted(entry: Entry) -> None:
    flow = FLOWS[entry.kind]
    seen: set[Account] = set()
    for account, amount in entry.postings:
        if account.kind not in (flow.into if amount > 0 else flow.out_of):
            side = "enter" if amount > 0 else "leave"
            raise ForbiddenFlow(f"entry {entry.source_id}: a {entry.kind} cannot {side} {account.name}")
        if account in seen:
            raise ForbiddenFlow(f"entry {entry.source_id}: {account.name} stands twice")
        seen.add(account)
    _check_owner(entry, flow)
    if (entry.kind is EntryKind.UNDO) != (entry.reverses is not None):
        raise ForbiddenFlow(f"entry {entry.source_id}: an undo, and only an undo, names what it reverses")


def reversal(entry: Entry, *, source_id: str, at_ms: int) -> Entry:
    """The entry that takes back a charge whole."""
    postings = tuple(Posting(account, -amount) for account, amount in entry.postings)
    return Entry(EntryKind.UNDO, source_id, at_ms, postings, entry.lease_id, entry.customer, entry.source_id)


def _check_amount(entry: Entry, asset: Asset, amount: int) -> None:
    limit = MAX_DC if asset is Asset.DC else MAX_WEI
    if type(amount) is not int or amount == 0 or abs(amount) > limit:
        raise InvalidAmount(
            f"entry {entry.source_id}: {amount!r} is not an amount of {asset}; it is an integer other than 0, "
            f"at most {limit} either way"
        )


def _check_owner(entry: Entry, flow: _Flow) -> None:
    if flow.one_owner and len({posting.account.owner for posting in entry.postings}) > 1:
        raise ForbiddenFlow(f"entry {entry.source_id}: a {entry.kind} stays with one owner")
