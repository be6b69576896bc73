"""Whether a wallet signed a text (EIP-191, `personal_sign`). It links nothing: `crediting` does."""

from eth_account import Account
from eth_account.messages import encode_defunct
from eth_keys.exceptions import BadSignature as BadEcdsa

from ledger.chain.errors import BadSignature


def link_text(address: str, customer: str, fabric_id: str) -> str:
    """What a wallet signs to become a customer's; it names account and fabric, so it is of no use anywhere else."""
    return f"wallet {address} is account {customer} of fabric {fabric_id}"


def expect_signed(text: str, signature: str, address: str) -> None:
    """Raises BadSignature unless ``address`` signed ``text``; ``signature`` is 0x and 130 digits."""
    try:
        signer = Account.recover_message(encode_defunct(text=text), signature=signature)
    except (ValueError, BadEcdsa):
        signer = ""
    if signer.lower() != address.lower():
        raise BadSignature(f"this is not the signature of {address} under {text!r}; sign exactly that text")
