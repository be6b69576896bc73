"""Books what a final block said: deposits, exits, burned BCT, claims, holders; in the caller's transaction, in order.

What a wallet did with DC is a customer's once the wallet is linked to one; until then it waits. Each event is booked
under a source of its own, so nothing is booked twice.
"""

from collections.abc import Iterable

from sqlalchemy import select
from sqlmodel import Session

from ledger.chain.errors import WalletTaken
from ledger.chain.holders import STAND_IN, holders_of
from ledger.chain.index import Index
from ledger.chain.tables import (
    ClaimRow,
    CursorRow,
    DepositRow,
    EventRow,
    ExitPaymentRow,
    ExitRequestRow,
    MintRow,
    OwnerRow,
    WalletRow,
)
from ledger.leaves import address_bytes
from ledger.store import Ledger
from ledger.tables import table_of

WALLET = table_of(WalletRow)
_OF_WALLETS = (DepositRow, ExitRequestRow, ExitPaymentRow)


def source_id(event: EventRow) -> str:
    """Names a final event: its block and its place there."""
    return f"chain/{event.block_number}/{event.log_index}"


def book(session: Session, ledger: Ledger, events: Iterable[EventRow]) -> None:
    """Book final events, in their order.

    Raises:
        LedgerError: the chain says what the ledger's books rule out, as a claim of more than was promised.
    """
    for event in events:
        if isinstance(event, MintRow):
            if event.bct_wei:
                ledger.record_bct_burned(event.bct_wei, source_id(event))
        elif isinstance(event, ClaimRow):
            ledger.record_claim(event.gpu_id, event.holder, event.wei, source_id(event))
        elif isinstance(event, OwnerRow):
            _reassign(session, ledger, event)
        elif isinstance(event, _OF_WALLETS):
            customer = customer_of(session, event.account)
            if customer is not None:
                _book_of(ledger, customer, event)


def _reassign(session: Session, ledger: Ledger, event: OwnerRow) -> None:
    """Usage of the NFT's GPU, and of those that stood in its place, goes to who held it then."""
    stood = session.scalars(select(STAND_IN.c.gpu_id).where(STAND_IN.c.nft_gpu_id == event.gpu_id).distinct()).all()
    for gpu_id, holders in holders_of(session, [event.gpu_id, *stood], event.block_number).items():
        source = source_id(event) if gpu_id == event.gpu_id else f"{source_id(event)}/{gpu_id}"
        ledger.reassign(gpu_id, holders, source)


def customer_of(session: Session, wallet: str) -> str | None:
    """The customer to whom a wallet is linked."""
    row = session.get(WalletRow, wallet.lower())
    return None if row is None else row.customer


def link_wallet(session: Session, ledger: Ledger, wallet: str, customer: str, *, at_ms: int) -> None:
    """Link a wallet to a customer for good, and book what it did until now. The same link again changes nothing.

    Whoever calls has made sure that the customer holds the wallet's key, or is an administrator.

    Raises:
        WalletTaken: the wallet is another customer's, or the customer has another wallet.
        ValueError: not an address.
    """
    address_bytes(wallet)
    address = wallet.lower()
    Index(session).cursor(lock=True)  # no block becomes final meanwhile, or its deposits would be seen by neither
    taken = session.scalars(
        select(WalletRow).where((WALLET.c.address == address) | (WALLET.c.customer == customer))
    ).all()
    if any((row.address, row.customer) != (address, customer) for row in taken):
        raise WalletTaken(
            f"wallet {address} cannot be customer {customer}'s: "
            f"{taken[0].address} is linked to {taken[0].customer}, and a link is for good"
        )
    if not taken:
        session.add(WalletRow(address=address, customer=customer, linked_ms=at_ms))
        session.flush()
        book(session, ledger, _final_of(session, address))


def _book_of(ledger: Ledger, customer: str, event: DepositRow | ExitRequestRow | ExitPaymentRow) -> None:
    if isinstance(event, DepositRow):
        ledger.deposit(customer, event.dc, source_id(event))
    elif isinstance(event, ExitRequestRow):
        ledger.request_exit(customer, event.dc, source_id(event))
    else:
        ledger.exit_paid(customer, event.dc, source_id(event))


def _final_of(session: Session, wallet: str) -> list[EventRow]:
    cursor = session.scalars(select(CursorRow)).one_or_none()
    if cursor is None:
        return []
    found: list[EventRow] = []
    for row in _OF_WALLETS:
        table = table_of(row)
        mine = (table.c.account == wallet) & (table.c.block_number <= cursor.final_number)
        found += session.scalars(select(row).where(mine))
    return sorted(found, key=lambda event: (event.block_number, event.log_index))
