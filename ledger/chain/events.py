"""What the contracts' logs say, as rows: decoding of one raw log. Pure; nothing is read or written.

Only events that the ledger has a use for are known; all others decode to nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eth_abi.abi import decode
from eth_utils.abi import collapse_if_tuple, event_abi_to_log_topic

from ledger.chain.calls import Closing
from ledger.chain.following import Block
from ledger.chain.tables import (
    ClaimRow,
    DepositRow,
    EventRow,
    ExitPaymentRow,
    ExitRequestRow,
    FinalisationRow,
    MintRow,
    OwnerRow,
    PostRow,
    RewindRow,
)
from ledger.contracts import artifact


@dataclass(frozen=True, slots=True)
class RawLog:
    """A log of one of our contracts as the chain gives it."""

    contract: str
    topics: tuple[bytes, ...]
    data: bytes
    log_index: int
    tx_hash: bytes


def row_of(log: RawLog, block: Block) -> EventRow | None:
    """The row that a log becomes, or None when the ledger has no use for it."""
    known = _KNOWN.get((log.contract, log.topics[0] if log.topics else b""))
    if known is None:
        return None
    abi, make = known
    kind, fields = make(_arguments(abi, log), block)
    return kind(block_number=block.number, log_index=log.log_index, tx_hash=log.tx_hash, **fields)


_Made = tuple[type[EventRow], dict[str, Any]]


def _minted(a: Mapping[str, Any], _: Block) -> _Made:
    return MintRow, {"account": a["account"], "bct_wei": a["bct"], "dc": a["dc"], "price_usd_e18": a["price"]}


def _deposited(a: Mapping[str, Any], _: Block) -> _Made:
    return DepositRow, {"account": a["account"], "dc": a["dc"], "total_dc": a["depositedTotal"]}


def _exit_requested(a: Mapping[str, Any], _: Block) -> _Made:
    return ExitRequestRow, {"account": a["account"], "dc": a["dc"], "requested_dc": a["requested"]}


def _exit_paid(a: Mapping[str, Any], _: Block) -> _Made:
    return ExitPaymentRow, {"account": a["account"], "dc": a["dc"], "paid_dc": a["paid"]}


def _transferred(a: Mapping[str, Any], block: Block) -> _Made:
    gpu_id = f"0x{a['tokenId']:064x}"
    return OwnerRow, {"gpu_id": gpu_id, "holder": a["to"], "from_ms": block.time_s * 1000}


def _posted(a: Mapping[str, Any], _: Block) -> _Made:
    closing = Closing(*a["closing"])
    return PostRow, {
        "epoch": closing.epoch,
        "post_id": a["postId"],
        "value_wei": a["value"],
        "ready_at_s": a["readyAt"],
        "burned_dc": closing.burned_dc,
        "rewards_wei": closing.rewards_wei,
        "stake_wei": closing.stake_wei,
        "exited_total_dc": closing.exited_total_dc,
        "payout_root": closing.payout_root,
        "exit_root": closing.exit_root,
        "usage_root": closing.usage_root,
        "file": closing.file,
    }


def _rewound(a: Mapping[str, Any], _: Block) -> _Made:
    return RewindRow, {"to_epoch": a["toEpoch"], "refusal": a["refusal"]}


def _finalised(a: Mapping[str, Any], _: Block) -> _Made:
    fields = {"epoch": a["epoch"], "post_id": a["postId"], "paid_wei": a["paid"], "payout_root": a["payoutRoot"]}
    return FinalisationRow, fields


def _claimed(a: Mapping[str, Any], _: Block) -> _Made:
    gpu_id = "0x" + a["gpu"].hex()
    return ClaimRow, {"gpu_id": gpu_id, "holder": a["holder"], "wei": a["amount"], "cumulative_wei": a["cumulative"]}


_MAKERS: Final[dict[tuple[str, str], Callable[[Mapping[str, Any], Block], _Made]]] = {
    ("DataCredits", "Minted"): _minted,
    ("DataCredits", "Deposited"): _deposited,
    ("DataCredits", "ExitRequested"): _exit_requested,
    ("DataCredits", "ExitPaid"): _exit_paid,
    ("GpuNFT", "Transfer"): _transferred,
    ("Settlement", "Posted"): _posted,
    ("Settlement", "Rewound"): _rewound,
    ("Settlement", "Finalised"): _finalised,
    ("Settlement", "Claimed"): _claimed,
}

CONTRACTS: Final = tuple(dict.fromkeys(contract for contract, _ in _MAKERS))
"""The contracts whose logs are read."""


def _arguments(abi: Mapping[str, Any], log: RawLog) -> dict[str, Any]:
    indexed = [item for item in abi["inputs"] if item["indexed"]]
    plain = [item for item in abi["inputs"] if not item["indexed"]]
    found = dict(zip([item["name"] for item in indexed], _topics(indexed, log.topics[1:]), strict=True))
    values = decode([collapse_if_tuple(item) for item in plain], log.data)
    return found | dict(zip([item["name"] for item in plain], values, strict=True))


def _topics(items: Sequence[Mapping[str, Any]], topics: Sequence[bytes]) -> list[Any]:
    return [decode([item["type"]], topic)[0] for item, topic in zip(items, topics, strict=True)]


def _known() -> dict[tuple[str, bytes], tuple[Mapping[str, Any], Callable[[Mapping[str, Any], Block], _Made]]]:
    events = (
        (contract, entry) for contract in CONTRACTS for entry in artifact(contract)[0] if entry["type"] == "event"
    )
    return {
        (contract, event_abi_to_log_topic(entry)): (entry, _MAKERS[contract, entry["name"]])  # type: ignore[arg-type]
        for contract, entry in events
        if (contract, entry["name"]) in _MAKERS
    }


_KNOWN = _known()
