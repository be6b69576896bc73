"""Whether the chain has an epoch as its file says it: the closing, and what it was closed with."""

from collections.abc import Iterator
from dataclasses import dataclass

from ledger.chain.client import ChainClient
from ledger.chain.errors import Disagreement, PriceUnavailable
from ledger.chain.statement import closing_of, settlement_of
from ledger.epoch import EpochState, read_file


@dataclass(frozen=True, slots=True)
class OnChain:
    """Where the epoch stands, and where chain and file differ; no ``faults`` means that all agrees."""

    state: EpochState
    faults: tuple[str, ...]


def compare(client: ChainClient, body: bytes) -> OnChain:
    """Compare an epoch's file with the contracts.

    Raises:
        ChainError: the chain does not answer.
    """
    given, content = read_file(body)
    book = client.book
    try:
        closing = closing_of(body, settlement_of(book.chain_id, book.settlement))
    except Disagreement as error:
        return OnChain(EpochState.CLOSED, (str(error),))
    posted, finalised = client.posted(), client.finalised()
    faults = list(_inputs(client, given.epoch, given.price_usd_e18, given.emission_wei, given.stake_bps))
    if given.epoch >= posted:
        return OnChain(EpochState.CLOSED, tuple(faults))
    found, _ = client.queued(given.epoch)
    if found != closing.hash:
        faults.append(
            f"closing: the chain has 0x{found.hex()}, the file gives 0x{closing.hash.hex()} "
            f"(payout root {content['payout_root']}, usage root {content['usage_root']})"
        )
    return OnChain(EpochState.FINALISED if given.epoch < finalised else EpochState.POSTED, tuple(faults))


def _inputs(client: ChainClient, epoch: int, price: int, emission_wei: int, stake_bps: int) -> Iterator[str]:
    told = {
        "emission_wei": (emission_wei, client.emission_wei(epoch)),
        "stake_bps": (stake_bps, client.stake_bps(epoch)),
    }
    try:
        told["price_usd_e18"] = (price, max(client.price_and_average(client.epoch_end_s(epoch) - 1)))
    except PriceUnavailable as why:
        yield f"price_usd_e18: the file says {price}, and the chain has none to compare: {why}"
    for name, (said, found) in told.items():
        if said != found:
            yield f"{name}: the file says {said}, the chain {found}"
