"""What the chain has to say before an epoch closes: price, stakers' share, exits; or why the close has to wait.

First the chain is asked (`ask_chain`), then, inside the transaction of the close, the rows (`terms_from`): no question
goes to a node while a transaction is open. An epoch waits until the chain is final beyond its end, so that what it is
closed with stays as it is.
"""

from dataclasses import dataclass

from sqlmodel import Session, select

from ledger import accounts
from ledger.allocate import Exit
from ledger.book import Book
from ledger.chain.errors import Disagreement, PriceUnavailable
from ledger.chain.index import ChainStatus, Index
from ledger.chain.link import ChainLink
from ledger.chain.tables import WalletRow
from ledger.closing import EpochTerms
from ledger.emission import Schedule


@dataclass(frozen=True, slots=True)
class Waiting:
    """The epoch cannot be closed yet; ``why`` says what has to happen."""

    why: str


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What the contracts say of an epoch that is over: price by which its pay is bounded, stakers' share."""

    epoch: int
    price_usd_e18: int
    stake_bps: int


def standing(session: Session) -> ChainStatus | None:
    """How far the chain was read into this database; None when it never was."""
    return Index(session).status()


def ask_chain(link: ChainLink, status: ChainStatus | None, epoch: int, schedule: Schedule) -> ChainFacts | Waiting:
    """What the contracts say of ``epoch``, as its last final block knows it.

    Raises:
        Disagreement: the chain emits by another schedule than the ledger.
        ChainError: it does not answer.
    """
    client = link.client()
    end_s = client.epoch_end_s(epoch)
    late = _too_early(status, end_s)
    if status is None or late:
        return Waiting(f"epoch {epoch} waits: {late}")
    if client.emission_wei(epoch) != schedule.emission_wei(epoch):
        raise Disagreement(
            f"epoch {epoch} may mint {client.emission_wei(epoch)} wei on the chain and {schedule.emission_wei(epoch)} "
            "by the ledger's schedule; deploy with the ledger's"
        )
    try:
        price, average = client.price_and_average(end_s - 1, block=status.final)
    except PriceUnavailable as unknown:
        return Waiting(f"epoch {epoch} waits for its price: {unknown}")
    return ChainFacts(epoch, max(price, average), client.stake_bps(epoch))


def terms_from(session: Session, link: ChainLink, facts: ChainFacts, *, payer_salt: bytes) -> EpochTerms:
    """The terms of the close, in its transaction."""
    return EpochTerms(
        price_usd_e18=facts.price_usd_e18,
        price_source=f"oracle {link.book.price_oracle.lower()}",
        stake_bps=facts.stake_bps,
        exits=exits(session),
        payer_salt=payer_salt,
        settlement=link.settlement,
    )


def exits(session: Session) -> list[Exit]:
    """What every wallet may have taken out since the beginning: what is set aside for it, and what it has taken."""
    customers = {row.customer: row.address for row in session.exec(select(WalletRow))}
    kinds = (accounts.exiting, accounts.exited)
    balances = Book(session).balances([kind(customer) for kind in kinds for customer in customers])
    sums = {customer: sum(balances[kind(customer)] for kind in kinds) for customer in customers}
    return [Exit(customers[customer], dc) for customer, dc in sums.items() if dc]


def _too_early(status: ChainStatus | None, end_s: int) -> str:
    if status is None:
        return "the chain was not read yet"
    if status.halted:
        return f"the indexer halted, {status.halted}"
    left = end_s - status.final_ms // 1000
    return f"the chain is final up to {left} s before the epoch's end" if left > 0 else ""
