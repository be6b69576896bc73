"""Every transaction this product sends, as a value: contract, function, arguments. Pure; nothing is sent here.

Amounts are whole: BCT in wei, DC in DC, prices in USD × 10^-18 per BCT. Addresses are 0x-text, hashes 32 bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fabric.wire.hashing import keccak256
from fabric.wire.merkle import word

MAX_UINT256 = 2**256 - 1


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a contract of the address book."""

    contract: str
    function: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Closing:
    """What closes an epoch; the members of ``ISettlement.Closing``, in its order."""

    epoch: int
    burned_dc: int
    rewards_wei: int
    stake_wei: int
    exited_total_dc: int
    payout_root: bytes
    exit_root: bytes
    usage_root: bytes
    file: bytes

    @property
    def paid_wei(self) -> int:
        return self.rewards_wei + self.stake_wei

    @property
    def hash(self) -> bytes:
        """What the contract keeps of a closing: the hash of its nine words."""
        return keccak256(*(word(member) for member in self.words()))

    def words(self) -> tuple[int | bytes, ...]:
        return (
            self.epoch,
            self.burned_dc,
            self.rewards_wei,
            self.stake_wei,
            self.exited_total_dc,
            self.payout_root,
            self.exit_root,
            self.usage_root,
            self.file,
        )


@dataclass(frozen=True, slots=True)
class Payout:
    """A leaf of the payout root with its proof; ``cumulative_wei`` as in the leaf."""

    gpu: bytes
    cumulative_wei: int
    proof: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Hosting:
    """A GPU's hosting record: hashes of agreement and title, who runs it, in service since (Unix seconds)."""

    agreement: bytes
    title: bytes
    operator: str
    in_service_s: int


def report_price(price_usd_e18: int) -> Call:
    return Call("PriceOracle", "report", (price_usd_e18,))


def resume_oracle() -> Call:
    return Call("PriceOracle", "resume", ())


def transfer_bct(to: str, wei: int) -> Call:
    return Call("BCT", "transfer", (to, wei))


def approve_bct(spender: str, wei: int = MAX_UINT256) -> Call:
    """Lets DataCredits burn, or Settlement take a bond, out of the sender's BCT."""
    return Call("BCT", "approve", (spender, wei))


def mint_dc(bct_wei: int, min_dc: int) -> Call:
    return Call("DataCredits", "mint", (bct_wei, min_dc))


def deposit_dc(dc: int) -> Call:
    return Call("DataCredits", "deposit", (dc,))


def request_exit(dc: int) -> Call:
    return Call("DataCredits", "requestExit", (dc,))


def claim_exit(account: str, cumulative_dc: int, proof: Sequence[bytes]) -> Call:
    return Call("DataCredits", "claimExit", (account, cumulative_dc, list(proof)))


def register_gpu(holder: str, gpu: bytes, serial_hash: bytes, hosting: Hosting) -> Call:
    record = (hosting.agreement, hosting.title, hosting.operator, hosting.in_service_s)
    return Call("GpuNFT", "register", (holder, int.from_bytes(gpu, "big"), serial_hash, record))


def transfer_gpu(sender: str, to: str, gpu: bytes) -> Call:
    return Call("GpuNFT", "transferFrom", (sender, to, int.from_bytes(gpu, "big")))


def post(closing: Closing) -> Call:
    return Call("Settlement", "post", (closing.words(),))


def finalise(closing: Closing) -> Call:
    return Call("Settlement", "finalise", (closing.words(),))


def dispute(epoch: int) -> Call:
    return Call("Settlement", "dispute", (epoch,))


def resolve(epoch: int, *, upheld: bool) -> Call:
    return Call("Settlement", "resolve", (epoch, upheld))


def claim(holder: str, payouts: Sequence[Payout]) -> Call:
    listed = [(payout.gpu, payout.cumulative_wei, list(payout.proof)) for payout in payouts]
    return Call("Settlement", "claim", (holder, listed))
