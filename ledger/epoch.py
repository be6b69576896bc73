"""Epochs: when each begins and ends, the states it goes through, and its file.

The epoch file is canonical JSON, addressed by its Keccak-256, and enough for anyone to run `allocate` again and
compare the roots. Knows no database; chain states are set by whoever watches the chain.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from fabric.wire.hashing import keccak256
from ledger.allocate import EpochAllocation, EpochInput, Exit, GpuUsage, Payout, Reward, allocate
from ledger.split import AvailableLine, PoolTerms, UsageLine

FILE_VERSION = 2


@dataclass(frozen=True, slots=True)
class EpochClock:
    """Epochs of one length, counted from ``genesis_ms``."""

    genesis_ms: int
    epoch_ms: int

    def at(self, ms: int) -> int:
        """The epoch that contains a moment.

        Raises:
            ValueError: before epoch 0.
        """
        if ms < self.genesis_ms:
            raise ValueError(f"{ms} is before epoch 0, which starts at {self.genesis_ms}")
        return (ms - self.genesis_ms) // self.epoch_ms

    def start(self, epoch: int) -> int:
        return self.genesis_ms + epoch * self.epoch_ms

    def end(self, epoch: int) -> int:
        """The first millisecond after it."""
        return self.start(epoch + 1)


class EpochState(StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    POSTED = "posted"
    FINALISED = "finalised"


TRANSITIONS: Mapping[EpochState, frozenset[EpochState]] = {
    EpochState.OPEN: frozenset({EpochState.CLOSED}),
    EpochState.CLOSED: frozenset({EpochState.POSTED}),
    EpochState.POSTED: frozenset({EpochState.FINALISED, EpochState.CLOSED}),  # back: refused or reorganised away
    EpochState.FINALISED: frozenset(),
}


def next_state(state: EpochState, target: EpochState) -> EpochState:
    """``target``, if the edge exists.

    Raises:
        ValueError: it does not.
    """
    if target not in TRANSITIONS[state]:
        raise ValueError(f"an epoch that is {state} cannot become {target}")
    return target


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a recomputation of an epoch file found; empty ``faults`` means that every number agrees."""

    epoch: int
    payout_root: bytes
    usage_root: bytes
    exit_root: bytes
    file_hash: bytes
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseFacts:
    """What an epoch's file says beside the allocation.

    Attributes:
        closed_ms: when it was closed.
        head: head of the sealed chain of entries at the close.
        payers: DC per salted hash of a payer.
        settlement: how the epoch is settled, in words.
    """

    closed_ms: int
    head: bytes
    payers: Mapping[str, int]
    settlement: str


def epoch_file(given: EpochInput, result: EpochAllocation, facts: CloseFacts) -> bytes:
    """The canonical bytes of an epoch's file; their Keccak-256 is its address.

    Args:
        given: what `allocate` got.
        result: what it answered.
        facts: the rest.
    """
    header = {
        "available": [list(line) for line in sorted(given.available)],
        "closed_ms": facts.closed_ms,
        "end_ms": given.end_ms,
        "epoch": given.epoch,
        "exit_root": _hex(result.exit_root),
        "exits": [[account, str(dc)] for account, dc in result.exits],
        "head": _hex(facts.head),
        "payers": [[payer, str(dc)] for payer, dc in sorted(facts.payers.items())],
        "payout_root": _hex(result.payout_root),
        "pools": {pool: _terms_json(terms) for pool, terms in sorted(given.pools.items())},
        "price_source": given.price_source,
        "price_usd_e18": str(given.price_usd_e18),
        "settlement": facts.settlement,
        "stake_bps": given.stake_bps,
        "start_ms": given.start_ms,
        "totals": {name: str(value) for name, value in asdict(result.totals).items()},
        "usage_root": _hex(result.usage_root),
        "version": FILE_VERSION,
    }
    sections = (
        ("payouts", (f'["{gpu}","{who}","{wei}","{total}"]' for gpu, who, wei, total in result.payouts)),
        ("rewards", _reward_lines(result.rewards)),
        ("usages", _usage_lines(result.usages)),
    )
    return b"".join((_canonical(header)[:-1].encode(), *_sections(sections), b"}\n"))


def file_hash(body: bytes) -> bytes:
    """The address of an epoch file."""
    return keccak256(body)


def read_file(body: bytes) -> tuple[EpochInput, dict[str, Any]]:
    """The allocation's input as an epoch file states it, and the file itself.

    Raises:
        ValueError: not a file of this version.
    """
    content = json.loads(body)
    if content.get("version") != FILE_VERSION:
        raise ValueError(f"this reads epoch files of version {FILE_VERSION}, not {content.get('version')!r}")
    rewards = [
        Reward(gpu, who, pool, op, int(ms), int(dc), int(wei)) for gpu, who, pool, op, ms, dc, wei in content["rewards"]
    ]
    payouts = [Payout(row[0], row[1], int(row[2]), int(row[3])) for row in content["payouts"]]
    given = EpochInput(
        epoch=content["epoch"],
        start_ms=content["start_ms"],
        end_ms=content["end_ms"],
        lines=[UsageLine(*reward[:6]) for reward in rewards if reward.gpu_ms or reward.dc],
        gpus=[GpuUsage(row[0], int(row[1]), int(row[2]), _unhex(row[3]), *row[4:]) for row in content["usages"]],
        available=[AvailableLine(*row) for row in content["available"]],
        pools={pool: PoolTerms(**terms) for pool, terms in content["pools"].items()},
        previous={(p.gpu_id, p.holder): p.cumulative_wei - p.wei for p in payouts if p.cumulative_wei > p.wei},
        price_usd_e18=int(content["price_usd_e18"]),
        price_source=content["price_source"],
        emission_wei=int(content["totals"]["emission_wei"]),
        remintable_wei=int(content["totals"]["remintable_wei"]),
        stake_bps=content["stake_bps"],
        exits=[Exit(account, int(dc)) for account, dc in content["exits"]],
    )
    return given, content


def facts_of(content: Mapping[str, Any]) -> CloseFacts:
    """The rest of what a file says, from its content."""
    return CloseFacts(
        closed_ms=content["closed_ms"],
        head=_unhex(content["head"]),
        payers={payer: int(dc) for payer, dc in content["payers"]},
        settlement=content["settlement"],
    )


def verify_file(body: bytes) -> Verdict:
    """Allocate the file's epoch again and compare every number in it.

    Raises:
        ValueError: not a file of this version. An input that contradicts itself is a fault, with empty roots.
    """
    given, content = read_file(body)
    try:
        result = allocate(given)
    except ValueError as error:
        return Verdict(given.epoch, b"", b"", b"", file_hash(body), (str(error),))
    facts = facts_of(content)
    again = epoch_file(given, result, facts)
    faults = tuple(_faults(content, json.loads(again)))
    if not faults and again != body:
        faults = ("the file is not in canonical form",)
    if sum(facts.payers.values()) != result.totals.burned_dc:
        faults = (*faults, "the payers' DC do not sum to the DC burned")
    return Verdict(given.epoch, result.payout_root, result.usage_root, result.exit_root, file_hash(body), faults)


def not_carried(body: bytes, before: bytes | None) -> Iterator[str]:
    """Where an epoch's file does not go on from the sums of the one before: what no closed epoch granted.

    Args:
        body: the file.
        before: the file of the epoch before; None for the first that was closed.

    Raises:
        ValueError: one of them is not a file of this version.
    """
    given, _ = read_file(body)
    content = {"payouts": [], "exits": []} if before is None else read_file(before)[1]
    owed = {(gpu, who): int(total) for gpu, who, _, total in content["payouts"]}
    for pair in sorted(owed.keys() | given.previous.keys()):
        was, said = owed.get(pair, 0), given.previous.get(pair, 0)
        if was != said:
            yield f"payouts: the file goes on from {said} wei of {pair[1]} for {pair[0]}, the epoch before has {was}"
    given_back = {exit_.account: exit_.cumulative_dc for exit_ in given.exits}
    for account, dc in content["exits"]:
        if given_back.get(account, 0) < int(dc):
            yield f"exits: the file has {given_back.get(account, 0)} DC of {account}, the epoch before had {dc}"


def _faults(stated: Mapping[str, Any], again: Mapping[str, Any]) -> Iterable[str]:
    for name in sorted(stated.keys() | again.keys()):
        if stated.get(name) != again.get(name):
            yield f"{name}: the file says {_short(stated.get(name))}, recomputed {_short(again.get(name))}"


def _short(value: Any, limit: int = 80) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[:limit] + "…"


def _sections(sections: Iterable[tuple[str, Iterable[str]]]) -> Iterable[bytes]:
    for name, lines in sections:
        yield f',"{name}":['.encode()
        yield ",".join(lines).encode()
        yield b"]"


def _reward_lines(rewards: Iterable[Reward]) -> Iterable[str]:
    quoted: dict[str, str] = {}
    for gpu, holder, pool, operator, gpu_ms, dc, wei in rewards:
        for name in (pool, operator):
            if name not in quoted:
                quoted[name] = json.dumps(name, ensure_ascii=False)
        yield f'["{gpu}","{holder}",{quoted[pool]},{quoted[operator]},"{gpu_ms}","{dc}","{wei}"]'


def _usage_lines(usages: Iterable[GpuUsage]) -> Iterable[str]:
    for gpu, gpu_ms, dc, leases, payers, largest in usages:
        yield f'["{gpu}","{gpu_ms}","{dc}","{_hex(leases)}",{payers},{largest}]'


def _terms_json(terms: PoolTerms) -> dict[str, Any]:
    return {**asdict(terms), "model_weights": dict(sorted(terms.model_weights.items()))}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _unhex(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))
