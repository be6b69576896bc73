"""The shapes of the ledger's answers: DC and wei as strings of integers beside a display value, ids as 0x-hex."""

from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlmodel import Session

from api.schemas import Dc
from fabric.wire.amounts import format_dc
from ledger import closing, queries
from ledger.accounts import Asset
from ledger.allocate import GpuUsage, Payout

_WEI_PER_BCT = 10**18


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class GpuIds(_Out):
    gpus: list[str]


class CashFlow(_Out):
    epoch: int
    start_ms: int
    end_ms: int
    gpu: str
    holder: str
    pool: str
    operator: str
    gpu_ms: int
    dc: Dc
    usd: str
    wei: Dc
    bct: str


class GpuLedger(_Out):
    id: str
    model: str
    operator: str
    simulated: bool
    price_dc_per_gpu_hour: Dc
    used_gpu_ms: int
    share_milli_ms: int
    used_dc: Dc
    used_usd: str
    utilised_gpu_ms: int
    energy_mj: int
    first_ms: int
    last_ms: int
    rewarded_dc: Dc
    earned_wei: Dc
    earned_bct: str
    cash_flow: list[CashFlow]
    next: int | None


class PartyLedger(_Out):
    gpus: int
    epochs: int
    gpu_ms: int
    dc: Dc
    usd: str
    wei: Dc
    bct: str
    cash_flow: list[CashFlow]
    next: int | None


class Epoch(_Out):
    n: int
    start_ms: int
    end_ms: int
    closed_ms: int
    gpu_ms: int
    burned_dc: Dc
    burned_usd: str
    price_usd_e18: Dc
    price_source: str
    value_wei: Dc
    emission_wei: Dc
    remintable_wei: Dc
    paid_wei: Dc
    paid_bct: str
    staking_wei: Dc
    stake_bps: int
    payout_root: str
    usage_root: str
    file_hash: str
    head: str
    settlement: str


class CurrentEpoch(_Out):
    n: int
    started_ms: int
    ends_ms: int
    pending_dc: Dc


class Epochs(_Out):
    epochs: list[Epoch]
    next: int | None
    current: CurrentEpoch


class Settlement(_Out):
    """What this control plane settles on; `close_waits` and `settler` are of the process that was asked.

    Attributes:
        settlement: chain and contract, as the files of epochs name them; "not settled: …" without a chain.
        final_block: everything up to it is booked; None while nothing was read.
        posted, finalised: the next epoch to post and to finalise, as far as the chain was read.
        close_waits: why the next epoch cannot be closed now; empty when it can.
        settler: what the settler did last or waits for; empty where another process settles.
    """

    settlement: str
    final_block: int | None
    posted: int
    finalised: int
    close_waits: str
    settler: str


class GpuEpoch(_Out):
    gpu: str
    gpu_ms: int
    dc: Dc
    usd: str
    leases_root: str
    payers: int
    largest_payer_bps: int


class EpochPayout(_Out):
    gpu: str
    holder: str
    wei: Dc
    bct: str
    cumulative_wei: Dc


class EpochDetail(Epoch):
    usage: list[GpuEpoch]
    payouts: list[EpochPayout]


class Proof(_Out):
    epoch: int
    leaf: str
    index: int
    path: list[str]
    root: str
    values: list[str]


class Posting(_Out):
    account: str
    asset: str
    amount: Dc


class Entry(_Out):
    id: int
    source_id: str
    kind: str
    at_ms: int
    lease: str | None
    customer: str | None
    reverses: int | None
    postings: list[Posting]


class Entries(_Out):
    entries: list[Entry]
    next: int | None


class EntryLine(_Out):
    """A posting with its entry; an entry without postings has one line without an account."""

    entry: int
    source_id: str
    kind: str
    at_ms: int
    lease: str | None
    customer: str | None
    reverses: int | None
    account: str | None
    asset: str | None
    amount: Dc


class Closed(_Out):
    """`closed`: epochs closed by this request; `open_epochs`: with usage from before it, and still open."""

    closed: list[int]
    open_epochs: int
    current: CurrentEpoch


def format_bct(wei: int) -> str:
    """For people: BCT with up to 18 decimals, none superfluous."""
    text = f"{Decimal(wei) / _WEI_PER_BCT:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def gpu_view(found: queries.GpuView, flow: queries.Page[queries.CashFlow]) -> GpuLedger:
    values = asdict(found)
    wei = values.pop("wei")
    return GpuLedger(
        id=values.pop("gpu_id"),
        **values,
        used_usd=format_dc(found.used_dc),
        earned_wei=wei,
        earned_bct=format_bct(wei),
        cash_flow=[_flow(line) for line in flow.items],
        next=flow.next_cursor,
    )


def party_view(earned: queries.Earnings, flow: queries.Page[queries.CashFlow]) -> PartyLedger:
    return PartyLedger(
        **asdict(earned),
        usd=format_dc(earned.dc),
        bct=format_bct(earned.wei),
        cash_flow=[_flow(line) for line in flow.items],
        next=flow.next_cursor,
    )


def epoch_view(found: queries.EpochView) -> Epoch:
    return Epoch(**_epoch_values(found))


def epoch_detail(found: queries.EpochView, usages: Sequence[GpuUsage], payouts: Sequence[Payout]) -> EpochDetail:
    return EpochDetail(
        **_epoch_values(found),
        usage=[
            GpuEpoch(
                gpu=one.gpu_id,
                gpu_ms=one.gpu_ms,
                dc=one.dc,
                usd=format_dc(one.dc),
                leases_root="0x" + one.leases_root.hex(),
                payers=one.payers,
                largest_payer_bps=one.largest_payer_bps,
            )
            for one in usages
        ],
        payouts=[
            EpochPayout(
                gpu=one.gpu_id,
                holder=one.holder,
                wei=one.wei,
                bct=format_bct(one.wei),
                cumulative_wei=one.cumulative_wei,
            )
            for one in payouts
        ],
    )


def proof_view(found: queries.Proof) -> Proof:
    return Proof(
        epoch=found.epoch,
        leaf=_hex(found.leaf),
        index=found.index,
        path=[_hex(node) for node in found.path],
        root=_hex(found.root),
        values=[_hex(value) if isinstance(value, bytes) else str(value) for value in found.values],
    )


def entry_view(found: queries.EntryView) -> Entry:
    postings = [
        Posting(account=p.account.name, asset=Asset(p.account.asset).value, amount=p.amount) for p in found.postings
    ]
    return Entry(
        id=found.id,
        source_id=found.source_id,
        kind=found.kind,
        at_ms=found.at_ms,
        lease=found.lease_id,
        customer=found.customer,
        reverses=found.reverses_id,
        postings=postings,
    )


def entry_lines(entries: Sequence[Entry]) -> list[EntryLine]:
    """The same as a table."""
    return [
        EntryLine(
            entry=one.id,
            source_id=one.source_id,
            kind=one.kind,
            at_ms=one.at_ms,
            lease=one.lease,
            customer=one.customer,
            reverses=one.reverses,
            account=None if posting is None else posting.account,
            asset=None if posting is None else posting.asset,
            amount=0 if posting is None else posting.amount,
        )
        for one in entries
        for posting in one.postings or [None]
    ]


def file_of(session: Session, number: int) -> bytes | None:
    """The bytes of a closed epoch's file."""
    return closing.file_of(session, number)


def _epoch_values(found: queries.EpochView) -> dict[str, Any]:
    values = {name: _hex(value) if isinstance(value, bytes) else value for name, value in asdict(found).items()}
    return values | {"burned_usd": format_dc(found.burned_dc), "paid_bct": format_bct(found.paid_wei)}


def _flow(line: queries.CashFlow) -> CashFlow:
    values = asdict(line)
    return CashFlow(gpu=values.pop("gpu_id"), **values, usd=format_dc(line.dc), bct=format_bct(line.wei))


def _hex(value: bytes) -> str:
    return "0x" + value.hex()
