"""Reads of the five contracts, and transactions with pinned nonces. It keeps no record: an outbox does, the chain does.

A transaction is first signed (`sign`: its hash and raw bytes are then known and can be stored), then broadcast as often
as one likes (`broadcast`: twice is once), then waited for (`receipt`, `wait`). `send` does all three for people.
"""

from typing import Any, cast

from eth_typing import ChecksumAddress, HexStr
from web3 import Web3
from web3.types import TxParams

from ledger.chain.book import CONTRACT_FIELDS, AddressBook
from ledger.chain.calls import Call
from ledger.chain.errors import NoContract, Reverted, WrongChain
from ledger.chain.following import Block
from ledger.chain.reading import BlockReader
from ledger.chain.rpc import ask, connect
from ledger.chain.signer import Signer
from ledger.chain.transactions import Receipt, SignedTransaction, broadcast, next_nonce, receipt, replace, sign, wait
from ledger.contracts import artifact


class ChainClient:
    """The contracts of one address book on the chain it names."""

    def __init__(self, web3: Web3, book: AddressBook) -> None:
        self._web3 = web3
        self.book = book
        self._contracts: dict[str, Any] = {
            name: web3.eth.contract(address=cast("ChecksumAddress", book.address(name)), abi=artifact(name)[0])
            for name in CONTRACT_FIELDS
        }

    @classmethod
    def open(cls, url: str, book: AddressBook, timeout_s: float = 10.0) -> "ChainClient":
        """Connects, and checks that this is the book's chain and that its contracts are there.

        Raises:
            ChainUnreachable: the RPC is down or slow.
            WrongChain: it serves another chain.
            NoContract: an address of the book has no code.
        """
        web3 = connect(url, timeout_s)
        chain_id = ask("chain id", lambda: web3.eth.chain_id)
        if chain_id != book.chain_id:
            raise WrongChain(
                f"{url} serves chain {chain_id}, the address book names chain {book.chain_id}; "
                "use that chain's RPC, or deploy here"
            )
        for name in CONTRACT_FIELDS:
            address = cast("ChecksumAddress", book.address(name))
            if not ask(f"code of {name}", lambda a=address: web3.eth.get_code(a)):
                raise NoContract(f"there is no code of {name} at {address} on chain {chain_id}; was the chain reset?")
        return cls(web3, book)

    # Blocks

    def blocks(self) -> BlockReader:
        """What the indexer reads."""
        return BlockReader(self._web3, self.book)

    def head(self, block: int | str = "latest") -> Block:
        """The block of a number, or the ``latest``, ``safe`` or ``finalized`` one."""
        found: Any = ask(f"block {block}", lambda: self._web3.eth.get_block(cast("Any", block)))
        return Block(found["number"], bytes(found["hash"]), bytes(found["parentHash"]), found["timestamp"])

    def balance_wei(self, address: str) -> int:
        """The chain's own coin, which pays for gas."""
        return ask("balance", lambda: self._web3.eth.get_balance(cast("ChecksumAddress", address)))

    # Contracts

    def price_and_average(self, second: int, block: int | str = "latest") -> tuple[int, int]:
        """USD × 10^-18 per BCT at that second, and averaged over the 24 hours before, as a block knows it.

        Raises:
            PriceUnavailable: the oracle is halted, or stale at that second.
        """
        price, average = self._read("PriceOracle", "read", second, block=block)
        return price, average

    def oracle_halted(self) -> bool:
        return self._read("PriceOracle", "halted")

    def bct_balance_wei(self, address: str) -> int:
        return self._read("BCT", "balanceOf", address)

    def bct_supply_wei(self) -> int:
        return self._read("BCT", "totalSupply")

    def dc_balance(self, address: str) -> int:
        """DC in an account's own hand: neither deposited nor burned."""
        return self._read("DataCredits", "balanceOf", address)

    def dc_deposited_total(self) -> int:
        return self._read("DataCredits", "depositedTotal")

    def dc_burned_total(self) -> int:
        return self._read("DataCredits", "burnedTotal")

    def bct_burned_wei(self) -> int:
        """All BCT ever burned for DC."""
        return self._read("DataCredits", "bctBurned")

    def exit_paid_dc(self, address: str) -> int:
        return self._read("DataCredits", "exits", address)[1]

    def settled_at_s(self) -> int:
        """When the last epoch was finalised; the deployment while none was."""
        return self._read("DataCredits", "settledAt")

    def gpu_holder(self, gpu: bytes) -> str | None:
        """Who holds the GPU's NFT; None when it has none."""
        try:
            return self._read("GpuNFT", "ownerOf", int.from_bytes(gpu, "big"))
        except Reverted as reverted:
            if reverted.name == "ERC721NonexistentToken":
                return None
            raise

    def posted(self) -> int:
        """The next epoch to post; epochs from `finalised` up to it wait in the queue."""
        return self._read("Settlement", "posted")

    def finalised(self) -> int:
        """The next epoch to finalise."""
        return self._read("Settlement", "finalised")

    def last_post_id(self) -> int:
        """How many epochs were ever posted, those counted that a rewind dropped; only a reorg takes it back."""
        return self._read("Settlement", "lastPostId")

    def queued(self, epoch: int) -> tuple[bytes, int]:
        """Hash of the closing that was last posted for an epoch, and the number of that post."""
        closing, post_id, _ = self._read("Settlement", "entries", epoch)
        return bytes(closing), post_id

    def ready_at_s(self, epoch: int) -> int:
        """When the dispute window of a queued epoch closes."""
        return self._read("Settlement", "entries", epoch)[2]

    def epoch_end_s(self, epoch: int) -> int:
        """The first second after the epoch."""
        return self._read("Settlement", "endOf", epoch)

    def emission_wei(self, epoch: int) -> int:
        return self._read("Settlement", "emission", epoch)

    def remintable_wei(self) -> int:
        return self._read("Settlement", "remintable")

    def value_wei(self, epoch: int, burned_dc: int) -> int:
        """The most BCT that DC burned in that epoch may be paid with.

        Raises:
            PriceUnavailable: the oracle is halted, or has no price for the epoch's last second yet.
        """
        return self._read("Settlement", "valueOf", epoch, burned_dc)

    def stake_bps(self, epoch: int) -> int:
        return self._read("Settlement", "stakeBpsOf", epoch)

    def bond_wei(self) -> int:
        return self._read("Settlement", "bond")

    def payout_root(self) -> bytes:
        return self._read("Settlement", "payoutRoot")

    def claimed_wei(self, gpu: bytes, holder: str) -> int:
        return self._read("Settlement", "claimed", gpu, holder)

    def totals_wei(self) -> tuple[int, int, int]:
        """All that was ever paid (with the stakers' share), promised to GPUs, and claimed."""
        return tuple(self._read("Settlement", name) for name in ("paidTotal", "promisedTotal", "claimedTotal"))  # type: ignore[return-value]

    # Transactions

    def next_nonce(self, address: str) -> int:
        """The nonce after all of the address's transactions that the node knows, mined or not."""
        return next_nonce(self._web3, address)

    def nonce_at(self, address: str, block: int) -> int:
        """How many of the address's transactions were mined up to a block."""
        asked = cast("ChecksumAddress", address)
        return ask("nonce", lambda: self._web3.eth.get_transaction_count(asked, block))

    def sign(self, signer: Signer, call: Call, nonce: int) -> SignedTransaction:
        """Signs ``call`` under a nonce of the caller's choice, after trying it on the latest state.

        Raises:
            ChainError: the contract would refuse it (PriceUnavailable, NotEnoughBct, Reverted), or the key lacks funds.
        """
        function = self._contracts[call.contract].get_function_by_name(call.function)(*call.arguments)
        data = cast("HexStr", function._encode_transaction_data())  # noqa: SLF001 - web3 has no public name for it
        to = self.book.address(call.contract)
        bare: TxParams = {"to": cast("ChecksumAddress", to), "data": data}
        return sign(self._web3, signer, bare, nonce, self.book.chain_id)

    def replace(self, signer: Signer, raw: bytes) -> SignedTransaction:
        """Signs the same call and nonce again, with fees high enough to take the place of ``raw``; errors as `sign`."""
        return replace(self._web3, signer, raw, self.book.chain_id)

    def broadcast(self, transaction: SignedTransaction) -> None:
        """Hands it to the node; one that the node has, or that was mined, is not sent twice."""
        broadcast(self._web3, transaction)

    def receipt(self, transaction_hash: bytes) -> Receipt | None:
        """The receipt, or None while it is not mined (a node may answer null right after sending)."""
        return receipt(self._web3, transaction_hash)

    def wait(self, transaction_hash: bytes, timeout_s: float = 60.0) -> Receipt:
        """The receipt, once there is one.

        Raises:
            NotMined: none within the time.
        """
        return wait(self._web3, transaction_hash, timeout_s)

    def send(self, signer: Signer, call: Call, timeout_s: float = 60.0) -> Receipt:
        """Signs with the next nonce, broadcasts and waits.

        Raises:
            ChainError: as `sign` and `wait`; Reverted when it was mined and failed after all.
        """
        transaction = self.sign(signer, call, self.next_nonce(signer.address))
        self.broadcast(transaction)
        mined = self.wait(transaction.hash, timeout_s)
        if not mined.succeeded:
            raise Reverted(f"{call.contract}.{call.function} was mined in block {mined.block_number} and failed")
        return mined

    def _read(self, contract: str, function: str, *arguments: Any, block: int | str = "latest") -> Any:
        bound = self._contracts[contract].get_function_by_name(function)(*arguments)
        return ask(f"{contract}.{function}", lambda: bound.call(block_identifier=block))
