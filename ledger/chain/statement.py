"""What an epoch's file says to the chain: the closing that is posted and finalised. Pure; knows no node and no rows."""

from ledger.chain.calls import Closing
from ledger.chain.errors import Disagreement
from ledger.epoch import facts_of, read_file, verify_file


def settlement_of(chain_id: int, settlement: str) -> str:
    """How an epoch is settled, in the words of its file."""
    return f"chain {chain_id}, Settlement {settlement.lower()}"


def closing_of(body: bytes, settlement: str) -> Closing:
    """The closing of an epoch's file, after everything in it was computed again.

    Args:
        body: the file.
        settlement: where it is to be settled (`settlement_of`).

    Raises:
        Disagreement: a number in it is not what its input gives, or it was closed for another place.
        ValueError: not a file of this version.
    """
    verdict = verify_file(body)
    given, content = read_file(body)
    said = facts_of(content).settlement
    if verdict.faults:
        raise Disagreement(f"the file of epoch {verdict.epoch} disagrees with itself: {verdict.faults[0]}")
    if said != settlement:
        raise Disagreement(
            f"epoch {verdict.epoch} was closed as {said!r}, not for {settlement!r}; it is not sent there"
        )
    totals = {name: int(value) for name, value in content["totals"].items()}
    return Closing(
        epoch=verdict.epoch,
        burned_dc=totals["burned_dc"],
        rewards_wei=totals["paid_wei"] - totals["staking_wei"],
        stake_wei=totals["staking_wei"],
        exited_total_dc=sum(given_back.cumulative_dc for given_back in given.exits),
        payout_root=verdict.payout_root,
        exit_root=verdict.exit_root,
        usage_root=verdict.usage_root,
        file=verdict.file_hash,
    )
