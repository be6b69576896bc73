"""Usage: what the ledger books, as a plain value. It comes from accepted receipts; nothing here reads one."""

from dataclasses import dataclass

from ledger.errors import InvalidAmount
from ledger.leaves import address_bytes, id_bytes

ZERO_HASH = bytes(32)
_HASH_BYTES = 32
_FULL_SHARE_MILLI = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The meter of one GPU of one lease as one accepted receipt shows it.

    Attributes:
        lease_id, generation, seq: the receipt's place in its chain; each is accepted once.
        part: 0, or the position of this piece when one receipt is split because the GPU changed hands meanwhile.
        run_id, customer: who pays.
        gpu_id: the device's public id, 0x-hex (`ledger.leaves.gpu_id_hex`); the ledger never sees a UUID.
        operator, pool, model: as they were at the time of use.
        holder: 0x-address that earns: the NFT's holder at the time of use, else the operator's payout address.
        share_milli: 1 to 1000 thousandths of the GPU.
        price_dc_per_gpu_hour: fixed for the life of the lease.
        cumulative_gpu_ms: billable ms of this (lease, generation, GPU) since OPEN, not the ms since the last receipt.
        at_ms: time of use by the control plane's clock.
        receipt_hash: 32 bytes; leads from the epoch's usage leaf to the tasks.
        utilised_gpu_ms, energy_mj: since the receipt before; shown, never billed.
        simulated: the GPU is not a real one.
    """

    lease_id: str
    generation: int
    seq: int
    run_id: str
    customer: str
    gpu_id: str
    operator: str
    pool: str
    holder: str
    model: str
    share_milli: int
    price_dc_per_gpu_hour: int
    cumulative_gpu_ms: int
    at_ms: int
    receipt_hash: bytes = ZERO_HASH
    part: int = 0
    utilised_gpu_ms: int = 0
    energy_mj: int = 0
    simulated: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.share_milli <= _FULL_SHARE_MILLI:
            raise InvalidAmount(f"a share is 1 to 1000 milli-GPU, not {self.share_milli}")
        for name in ("generation", "seq", "part", "price_dc_per_gpu_hour", "cumulative_gpu_ms", "at_ms"):
            _check_count(name, getattr(self, name))
        for name in ("utilised_gpu_ms", "energy_mj"):
            _check_count(name, getattr(self, name))
        if len(self.receipt_hash) != _HASH_BYTES:
            raise InvalidAmount(f"a receipt's hash is 32 bytes, not {len(self.receipt_hash)}")
        address_bytes(self.holder)
        id_bytes(self.gpu_id)

    @property
    def meter(self) -> tuple[str, int, str]:
        """Which cumulative sum this is: (lease, generation, GPU)."""
        return (self.lease_id, self.generation, self.gpu_id)

    @property
    def source_id(self) -> str:
        return f"charge/{self.lease_id}/{self.generation}/{self.gpu_id}/{self.seq}/{self.part}"


def _check_count(name: str, value: object) -> None:
    if type(value) is not int or not 0 <= value < 2**63:
        raise InvalidAmount(f"{name} is an integer from 0 to 2^63 - 1, not {value!r}")
