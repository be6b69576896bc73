"""The address book: where the five contracts of one deployment lie, as a small JSON file."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from eth_utils.address import is_checksum_address

from ledger.chain.errors import BadAddressBook

CONTRACT_FIELDS = {
    "BCT": "bct",
    "PriceOracle": "price_oracle",
    "DataCredits": "data_credits",
    "GpuNFT": "gpu_nft",
    "Settlement": "settlement",
}


@dataclass(frozen=True, slots=True)
class AddressBook:
    """Checksummed addresses, and the block before which nothing of them happened."""

    chain_id: int
    start_block: int
    bct: str
    price_oracle: str
    data_credits: str
    gpu_nft: str
    settlement: str

    def address(self, contract: str) -> str:
        return getattr(self, CONTRACT_FIELDS[contract])

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> "AddressBook":
        """Reads a book that `write` wrote.

        Raises:
            BadAddressBook: no such file, not such a book, or an address that is none.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as cause:
            raise BadAddressBook(f"the address book {path} cannot be read: {cause}") from None
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != names:
            raise BadAddressBook(f"the address book {path} must have exactly the members {', '.join(sorted(names))}")
        for name in CONTRACT_FIELDS.values():
            if not is_checksum_address(content[name]):
                raise BadAddressBook(f"{name} in the address book {path} is no checksummed address: {content[name]!r}")
        for name in ("chain_id", "start_block"):
            if type(content[name]) is not int or content[name] < 0:
                raise BadAddressBook(f"{name} in the address book {path} is no whole number: {content[name]!r}")
        return cls(**content)
