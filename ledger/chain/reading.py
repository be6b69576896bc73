"""Reads blocks and their logs of one deployment, the way a chain that may reorganise has to be read. Keeps nothing.

A block is asked for by its height and is None where the chain has none; its logs are asked for by its hash, so that
they cannot be another block's.
"""

from typing import Any, Protocol, cast

from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import BlockNotFound

from ledger.chain.book import AddressBook
from ledger.chain.errors import ChainUnreachable
from ledger.chain.events import CONTRACTS, RawLog
from ledger.chain.following import Block
from ledger.chain.rpc import ask, translated


class Blocks(Protocol):
    """What the indexer needs of a chain."""

    def block(self, number: int) -> Block | None:
        """The chain's block at a height now; None where it has none."""
        ...

    def logs(self, block: Block) -> list[RawLog]:
        """All logs of our contracts in exactly this block, in order.

        Raises:
            ChainUnreachable: the chain no longer has the block, or does not answer.
        """
        ...


class BlockReader:
    """`Blocks` of a deployment over JSON-RPC."""

    def __init__(self, web3: Web3, book: AddressBook) -> None:
        self._web3 = web3
        self._contracts = {book.address(name).lower(): name for name in CONTRACTS}

    def block(self, number: int) -> Block | None:
        with translated(f"block {number}"):
            found: Any = _none_if_missing(self._web3, number)
        if found is None:
            return None
        return Block(found["number"], bytes(found["hash"]), bytes(found["parentHash"]), found["timestamp"])

    def logs(self, block: Block) -> list[RawLog]:
        where: Any = {
            "blockHash": HexBytes(block.hash),
            "address": [Web3.to_checksum_address(a) for a in self._contracts],
        }
        found: Any = ask(f"logs of block {block.number}", lambda: self._web3.eth.get_logs(where))
        logs = [self._raw(log, block) for log in found]
        if self.block(block.number) != block:
            raise ChainUnreachable(f"block {block.number} left the chain while its logs were read; read it again")
        return sorted(logs, key=lambda log: log.log_index)

    def _raw(self, log: Any, block: Block) -> RawLog:
        if log["blockHash"] is None or bytes(log["blockHash"]) != block.hash or log.get("removed"):
            raise ChainUnreachable(f"the chain's RPC gave a log of another block than {block.number}; read it again")
        return RawLog(
            contract=self._contracts[log["address"].lower()],
            topics=tuple(bytes(topic) for topic in log["topics"]),
            data=bytes(log["data"]),
            log_index=log["logIndex"],
            tx_hash=bytes(log["transactionHash"]),
        )


def _none_if_missing(web3: Web3, number: int) -> Any:
    try:
        return web3.eth.get_block(cast("Any", number))
    except BlockNotFound:
        return None
