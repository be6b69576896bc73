"""What can go wrong between the ledger and a chain. Each message says what was given and what to do next.

LedgerError
└── ChainError
    ├── ChainUnreachable     the RPC is down, too slow, or answers nothing or nonsense; try again later
    ├── WrongChain           the RPC serves another chain than the address book names
    ├── NoContract           there is no code at an address of the book
    ├── BadAddressBook       the address book cannot be read
    ├── BadKey               no key, a broken one, or a wrong password
    ├── NoFunds              the key cannot pay for the transaction's gas
    ├── PriceUnavailable     the oracle is stale or halted
    ├── NotEnoughBct         too little BCT, or too small an allowance
    ├── Reverted             a contract refused for another reason of its own
    ├── NotMined             no receipt within the time given; the transaction may still be mined
    ├── Disagreement         the chain has another closing of an epoch than the ledger; a person must look
    ├── WentBack             the chain lost a transaction of ours that was final; a person must look
    ├── BadSignature         a text that was not signed by the wallet it names
    ├── WalletTaken          a wallet that is another customer's, or a second wallet of one customer
    └── StillHalted          the indexer cannot go on: the chain still contradicts what was final
"""

from ledger.errors import LedgerError


class ChainError(LedgerError):
    """Root of what a chain can do to us."""


class ChainUnreachable(ChainError):
    pass


class WrongChain(ChainError):
    pass


class NoContract(ChainError):
    pass


class BadAddressBook(ChainError):
    pass


class BadKey(ChainError):
    pass


class NoFunds(ChainError):
    pass


class PriceUnavailable(ChainError):
    pass


class NotEnoughBct(ChainError):
    pass


class Reverted(ChainError):
    """A contract refused with its custom error ``name`` and ``arguments``."""

    def __init__(self, name: str, arguments: tuple[object, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        shown = ", ".join(_shown(argument) for argument in arguments)
        super().__init__(
            f"the contract refused: {name}({shown}); its meaning stands in ledger/contracts/src/interfaces"
        )


class Disagreement(ChainError):
    pass


class WentBack(ChainError):
    pass


class NotMined(ChainError):
    pass


class BadSignature(ChainError):
    pass


class WalletTaken(ChainError):
    pass


class StillHalted(ChainError):
    pass


def _shown(argument: object) -> str:
    """Bytes that are padded text, as the name of a parameter, are shown as text."""
    if not isinstance(argument, bytes):
        return str(argument)
    text = argument.rstrip(b"\0")
    return text.decode() if text.isalpha() else "0x" + argument.hex()
