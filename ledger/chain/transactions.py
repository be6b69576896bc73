"""Signing, broadcasting and waiting for one transaction, under a nonce that the caller pins. It keeps no record."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_typing import ChecksumAddress, HexStr
from eth_utils.address import to_checksum_address
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import Web3RPCError
from web3.types import TxParams

from ledger.chain.errors import NoFunds, NotMined
from ledger.chain.rpc import ask, missing_is_none, sent_before, translated
from ledger.chain.signer import Signer

GAS_MARGIN_PCT = 20
BUMP_PCT = 13
"""Nodes take a replacement only from 10 or 12.5 % more, of both fees."""

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """Ready to broadcast; ``nonce`` is pinned, so that it and a replacement cannot both be mined."""

    hash: bytes
    raw: bytes
    sender: str
    nonce: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction."""

    hash: bytes
    succeeded: bool
    block_number: int
    block_hash: bytes
    gas_used: int
    contract_address: str | None


def next_nonce(web3: Web3, address: str) -> int:
    return ask("nonce", lambda: web3.eth.get_transaction_count(cast("ChecksumAddress", address), "pending"))


def sign(web3: Web3, signer: Signer, bare: TxParams, nonce: int, chain_id: int) -> SignedTransaction:
    """Fills in gas and fees, checks the funds and signs."""
    return _sign(web3, signer, bare, nonce, chain_id, least_fee=0, least_tip=0)


def replace(web3: Web3, signer: Signer, raw: bytes, chain_id: int) -> SignedTransaction:
    """The same call under the same nonce, with fees that a node takes instead of those of ``raw``."""
    old: Any = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    bare: TxParams = {"to": to_checksum_address(old["to"]), "data": old["data"]}
    fee, tip = _bumped(old["maxFeePerGas"]), _bumped(old["maxPriorityFeePerGas"])
    return _sign(web3, signer, bare, old["nonce"], chain_id, least_fee=fee, least_tip=tip)


def broadcast(web3: Web3, transaction: SignedTransaction) -> None:
    def hand_over() -> None:
        try:
            web3.eth.send_raw_transaction(cast("HexStr", "0x" + transaction.raw.hex()))
        except Web3RPCError as error:
            if not sent_before(error):
                raise

    with translated("broadcast"):
        hand_over()


def receipt(web3: Web3, transaction_hash: bytes) -> Receipt | None:
    question: Callable[[], Any] = lambda: web3.eth.get_transaction_receipt(cast("Any", transaction_hash))  # noqa: E731
    with translated("receipt"):
        found = missing_is_none(question)
    if found is None:
        return None
    return Receipt(
        hash=bytes(found["transactionHash"]),
        succeeded=found["status"] == 1,
        block_number=found["blockNumber"],
        block_hash=bytes(found["blockHash"]),
        gas_used=found["gasUsed"],
        contract_address=found["contractAddress"],
    )


def wait(web3: Web3, transaction_hash: bytes, timeout_s: float) -> Receipt:
    deadline = time.monotonic() + timeout_s
    while True:
        found = receipt(web3, transaction_hash)
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise NotMined(
                f"transaction 0x{transaction_hash.hex()} was not mined within {timeout_s:g} s; "
                "it may still be: look for its receipt before you send another with its nonce"
            )
        time.sleep(_POLL_S)


def _sign(
    web3: Web3, signer: Signer, bare: TxParams, nonce: int, chain_id: int, *, least_fee: int, least_tip: int
) -> SignedTransaction:
    sender = cast("ChecksumAddress", signer.address)
    needed = ask("gas estimate", lambda: web3.eth.estimate_gas(bare | {"from": sender}))  # type: ignore[operator]
    gas = needed * (100 + GAS_MARGIN_PCT) // 100
    tip = max(ask("fee", lambda: web3.eth.max_priority_fee), least_tip)
    fee = max(2 * ask("fee", lambda: web3.eth.get_block("latest")).get("baseFeePerGas", 0) + tip, least_fee)
    _check_funds(web3, signer.address, gas * fee)
    fees = {"gas": gas, "maxFeePerGas": fee, "maxPriorityFeePerGas": tip}
    raw, transaction_hash = signer.sign(dict(bare) | fees | {"nonce": nonce, "chainId": chain_id, "value": 0})
    return SignedTransaction(transaction_hash, raw, signer.address, nonce)


def _bumped(fee: int) -> int:
    return fee * (100 + BUMP_PCT) // 100 + 1


def _check_funds(web3: Web3, address: str, needed: int) -> None:
    balance = ask("balance", lambda: web3.eth.get_balance(cast("ChecksumAddress", address)))
    if balance < needed:
        raise NoFunds(
            f"{address} has {balance} wei of the chain's own coin and may need {needed} for gas; "
            "send it some and try again"
        )
