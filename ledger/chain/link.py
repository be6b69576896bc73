"""One process's way to the configured chain: opened on first use, opened again after a fault. It decides nothing."""

from dataclasses import dataclass, field

from ledger.chain.book import AddressBook
from ledger.chain.client import ChainClient
from ledger.chain.errors import BadAddressBook, Disagreement
from ledger.chain.settings import ChainSettings
from ledger.chain.signer import Signer
from ledger.chain.statement import settlement_of


@dataclass
class ChainLink:
    """The chain that a process was told to use.

    Attributes:
        url: its JSON-RPC address.
        book: where the contracts lie.
        signer: the settler's key; None where another process settles.
        confirmations: a block is final when so many blocks stand on it.
        close_waits: why the next epoch cannot be closed now; empty when it can.
        settler_says: what the settler did last, waits for, or failed with.
    """

    url: str
    book: AddressBook
    signer: Signer | None
    confirmations: int
    close_waits: str = ""
    settler_says: str = ""
    _client: ChainClient | None = field(default=None, repr=False)

    @classmethod
    def from_settings(cls, settings: ChainSettings) -> "ChainLink | None":
        """None when no chain is configured. Asks the chain nothing yet.

        Raises:
            BadAddressBook: only one of URL and address book is set, or the book cannot be read.
            BadKey: what is set as a key is none.
        """
        if not settings.has_chain:
            return None
        if settings.url is None or settings.addresses is None:
            raise BadAddressBook(
                "a chain needs both FABRIC_CHAIN_URL and FABRIC_CHAIN_ADDRESSES, the file that `fabric chain deploy` "
                "wrote; set both or none"
            )
        signer = Signer.from_settings(settings) if settings.has_key else None
        return cls(settings.url, AddressBook.read(settings.addresses), signer, settings.confirmations)

    @property
    def settlement(self) -> str:
        """How epochs are settled here, as their files say it."""
        return settlement_of(self.book.chain_id, self.book.settlement)

    def client(self) -> ChainClient:
        """The client, connected and checked on first use; errors as `ChainClient.open`."""
        if self._client is None:
            self._client = ChainClient.open(self.url, self.book)
        return self._client

    def span_s(self) -> tuple[int, int]:
        """Second at which epoch 0 begins, and seconds of an epoch."""
        first, second = self.client().epoch_end_s(0), self.client().epoch_end_s(1)
        return 2 * first - second, second - first

    def expect_epochs(self, genesis_ms: int, epoch_ms: int) -> None:
        """The ledger counts the same epochs as the contract.

        Raises:
            Disagreement: it does not.
            ChainError: the chain does not answer.
        """
        start_s, epoch_s = self.span_s()
        if (start_s * 1000, epoch_s * 1000) != (genesis_ms, epoch_ms):
            raise Disagreement(
                f"epochs on the chain last {epoch_s} s from second {start_s} on, this ledger's {epoch_ms / 1000:g} s "
                f"from {genesis_ms / 1000:g}; set FABRIC_EPOCH_S to the chain's, and use a new state directory if this "
                "one's epochs began without a chain"
            )
