"""The shapes of what investors ask: uptime, utilisation, prices and yields. Amounts as in `api.ledger_schemas`."""

from pydantic import BaseModel, ConfigDict

from api.schemas import Dc
from ledger.utilisation import Line, Price, Use
from ledger.yields import Earned, Yield


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class Stretch(_Out):
    gpu: str
    from_ms: int
    until_ms: int
    operator: str
    model: str
    price_dc_per_gpu_hour: Dc


class Uptime(_Out):
    """`known_ms` is GPU time that was the subject's, as far as anybody looked; `uptime_bps` = up of known."""

    gpus: int
    known_ms: int
    up_ms: int
    uptime_bps: int | None
    stretches: list[Stretch]
    next: str | None


class GpuUse(_Out):
    gpu: str
    known_ms: int
    up_ms: int
    uptime_bps: int | None
    gpu_ms: int
    share_milli_ms: int
    utilisation_bps: int | None
    utilised_gpu_ms: int
    energy_mj: int
    dc: Dc
    paid_dc_per_gpu_hour: Dc | None
    receipts: int


class Utilisation(_Out):
    """`total` is over all GPUs, whatever the page; its `gpu` is empty. `utilisation_bps` = leased, by share, of up."""

    gpus: int
    total: GpuUse
    lines: list[GpuUse]
    next: str | None


class UsageRow(_Out):
    entry: int
    meter: int
    seq: int
    part: int
    at_ms: int
    accepted_ms: int
    operator: str
    pool: str
    holder: str
    model: str
    share_milli: int
    price_dc_per_gpu_hour: Dc
    cumulative_gpu_ms: int
    gpu_ms: int
    dc: Dc
    charged_dc: Dc
    short_dc: Dc
    utilised_gpu_ms: int
    energy_mj: int
    receipt_hash: str


class UsageRows(_Out):
    """Rows of usage, newest first; with their `price` and `cumulative_gpu_ms` anybody computes `charged_dc` again."""

    usage: list[UsageRow]
    next: int | None


class AskedPrice(_Out):
    operator: str
    model: str
    price_dc_per_gpu_hour: Dc
    from_ms: int
    until_ms: int
    gpus: int
    up_ms: int


class Prices(_Out):
    """What was asked on demand while GPUs were there, and what was paid on average, slots and spot included."""

    paid_dc_per_gpu_hour: Dc | None
    prices: list[AskedPrice]


class EpochYield(_Out):
    epoch: int
    start_ms: int
    end_ms: int
    gpus: int
    up_ms: int
    gpu_ms: int
    dc: Dc
    wei: Dc
    price_usd_e18: Dc
    value_dc: Dc


class Yields(_Out):
    """`value_dc`: wei at each epoch's own price, in USD 0.00001. `yearly_bps`: of the `cost_usd` that was given."""

    epochs: int
    span_ms: int
    up_ms: int
    gpu_ms: int
    dc: Dc
    wei: Dc
    value_dc: Dc
    value_dc_per_gpu_hour: Dc | None
    yearly_bps: int | None
    lines: list[EpochYield]
    next: int | None


def gpu_use(line: Line) -> GpuUse:
    return GpuUse(
        gpu=line.gpu_id,
        known_ms=line.known_ms,
        up_ms=line.up_ms,
        uptime_bps=line.uptime_bps,
        gpu_ms=line.gpu_ms,
        share_milli_ms=line.share_milli_ms,
        utilisation_bps=line.utilisation_bps,
        utilised_gpu_ms=line.utilised_gpu_ms,
        energy_mj=line.energy_mj,
        dc=line.dc,
        paid_dc_per_gpu_hour=line.paid_dc_per_gpu_hour,
        receipts=line.receipts,
    )


def usage_row(use: Use) -> UsageRow:
    values = {name: getattr(use, name) for name in UsageRow.model_fields if name != "receipt_hash"}
    return UsageRow(**values, receipt_hash="0x" + use.receipt_hash.hex())


def asked_price(price: Price) -> AskedPrice:
    return AskedPrice(**{name: getattr(price, name) for name in AskedPrice.model_fields})


def epoch_yield(line: Earned) -> EpochYield:
    return EpochYield(**{name: getattr(line, name) for name in EpochYield.model_fields})


def yields(whole: Yield, yearly_bps: int | None, lines: list[EpochYield], following: int | None) -> Yields:
    return Yields(
        epochs=whole.epochs,
        span_ms=whole.span_ms,
        up_ms=whole.up_ms,
        gpu_ms=whole.gpu_ms,
        dc=whole.dc,
        wei=whole.wei,
        value_dc=whole.value_dc,
        value_dc_per_gpu_hour=whole.value_dc_per_gpu_hour,
        yearly_bps=yearly_bps,
        lines=lines,
        next=following,
    )
