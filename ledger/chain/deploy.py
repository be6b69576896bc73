"""Deploys the five contracts in their order by one key, and says where they lie."""

from dataclasses import dataclass
from typing import Any, cast

from eth_typing import HexStr
from eth_utils.address import to_checksum_address
from web3 import Web3

from fabric.wire.hashing import keccak256
from ledger.chain.book import CONTRACT_FIELDS, AddressBook
from ledger.chain.errors import Reverted
from ledger.chain.rpc import ask, connect
from ledger.chain.signer import Signer
from ledger.chain.transactions import Receipt, broadcast, next_nonce, sign, wait
from ledger.contracts import artifact

# BCT and DataCredits name Settlement, which is created after them and checks that they do.
_ORDER = ("PriceOracle", "BCT", "DataCredits", "Settlement", "GpuNFT")


@dataclass(frozen=True, slots=True)
class Deployment:
    """All constructor arguments. Addresses are 0x-text; bounds are in the contracts.

    Attributes:
        owner: of oracle, titles and settlement; the timelock of a real deployment.
        reporters: who reports prices; ``quorum`` fresh reports make a price, fresh for ``freshness_s``.
        step_bps: a larger move within an hour halts the oracle.
        registrar: who registers GPUs.
        genesis_holder: receives ``genesis_wei`` BCT.
        start_s: second at which epoch 0 begins; epochs last ``epoch_s``, dispute windows ``window_s``.
        supply_wei: P, emitted over ``epochs`` epochs, N.
        poster: the settler's address.
        stakers: where ``stake_bps`` of each epoch's pay goes.
        bond_wei: BCT that a dispute puts at stake.
        base_uri: of the GPU titles' metadata.
    """

    owner: str
    reporters: tuple[str, ...]
    registrar: str
    genesis_holder: str
    genesis_wei: int
    poster: str
    stakers: str
    start_s: int
    epoch_s: int
    window_s: int
    supply_wei: int
    epochs: int
    quorum: int = 1
    freshness_s: int = 3600
    step_bps: int = 2000
    stake_bps: int = 500
    bond_wei: int = 1000 * 10**18
    base_uri: str = ""


def deploy(url: str, signer: Signer, deployment: Deployment, timeout_s: float = 60.0) -> AddressBook:
    """Creates the contracts one by one; five transactions of consecutive nonces.

    Raises:
        ChainError: the RPC fails, the key lacks funds, or a constructor refuses an argument. What was created until
            then stays and is of no use: deploy again.
    """
    web3 = connect(url)
    chain_id = ask("chain id", lambda: web3.eth.chain_id)
    first = next_nonce(web3, signer.address)
    at = {name: _creation_address(signer.address, first + i) for i, name in enumerate(_ORDER)}
    arguments = _constructor_arguments(deployment, at)
    mined = [
        _create(web3, signer, chain_id, first + i, name, arguments[name], timeout_s) for i, name in enumerate(_ORDER)
    ]
    return AddressBook(
        chain_id=chain_id,
        start_block=mined[0].block_number,
        **{field: at[name] for name, field in CONTRACT_FIELDS.items()},
    )


def _constructor_arguments(d: Deployment, at: dict[str, str]) -> dict[str, tuple[Any, ...]]:
    schedule = (d.start_s, d.epoch_s, d.window_s, d.supply_wei, d.epochs)
    parameters = (schedule, d.poster, d.stakers, d.stake_bps, d.bond_wei)
    return {
        "PriceOracle": (d.owner, list(d.reporters), d.quorum, d.freshness_s, d.step_bps),
        "BCT": (d.genesis_holder, d.genesis_wei, at["Settlement"]),
        "DataCredits": (at["BCT"], at["PriceOracle"], at["Settlement"]),
        "Settlement": (d.owner, at["BCT"], at["DataCredits"], *parameters),
        "GpuNFT": (d.owner, d.registrar, d.base_uri),
    }


def _create(
    web3: Web3, signer: Signer, chain_id: int, nonce: int, name: str, arguments: tuple[Any, ...], timeout_s: float
) -> Receipt:
    abi, bytecode = artifact(name)
    data = web3.eth.contract(abi=abi, bytecode=bytecode).constructor(*arguments).data_in_transaction
    transaction = sign(web3, signer, {"data": cast("HexStr", data)}, nonce, chain_id)
    broadcast(web3, transaction)
    mined = wait(web3, transaction.hash, timeout_s)
    if not mined.succeeded:
        raise Reverted(f"the creation of {name} was mined in block {mined.block_number} and failed")
    return mined


def _creation_address(sender: str, nonce: int) -> str:
    """Where a contract created by ``sender`` under ``nonce`` will lie: keccak of their RLP, last 20 bytes."""
    digits = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    item = digits if len(digits) == 1 and digits[0] < 0x80 else bytes([0x80 + len(digits)]) + digits
    body = bytes([0x94]) + bytes.fromhex(sender[2:]) + item
    return to_checksum_address(keccak256(bytes([0xC0 + len(body)]), body)[-20:])
