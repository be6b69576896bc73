"""Who signed, and who speaks for an operator or owns a GPU: wallets, by 0x-address in lower case."""

from typing import Any

from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data
from sqlmodel import Session, col, select

from api.enrolment_tables import OperatorWalletRow
from api.errors import NotFound
from api.tables import GpuRow, OperatorRow
from api.terms import accounts
from fabric.wire.errors import AuthError
from ledger.chain.holders import holders_of
from ledger.chain.tables import WalletRow


def signer_of(typed_data: dict[str, Any], signature: bytes) -> tuple[str, str]:
    """(address, digest of what was signed), both 0x-hex in lower case.

    Raises:
        AuthError: not a signature.
    """
    message = encode_typed_data(full_message=typed_data)
    try:
        signer = Account.recover_message(message, signature=signature)
    except Exception:  # noqa: BLE001 - classes of three packages for bytes that are no signature
        raise AuthError("that is not a signature") from None
    return signer.lower(), "0x" + bytes(_hash_eip191_message(message)).hex()


def wallet_of(session: Session, operator: OperatorRow) -> str:
    """The wallet that speaks for an operator; one that was declared without a wallet speaks by its payout address."""
    row = session.get(OperatorWalletRow, operator.id)
    return (row.wallet if row is not None else operator.payout).lower()


def operator_by_wallet(session: Session, address: str) -> OperatorRow | None:
    """The first operator for which this wallet speaks."""
    rows = session.exec(select(OperatorRow).order_by(col(OperatorRow.created_ms), col(OperatorRow.id)))
    return next((row for row in rows if wallet_of(session, row) == address), None)


def gpu_by_id(session: Session, gpu_id: str) -> GpuRow:
    """The GPU with this public id.

    Raises:
        NotFound: there is none.
    """
    row = session.exec(select(GpuRow).where(GpuRow.id == gpu_id.lower())).first()
    if row is None:
        raise NotFound(f"there is no GPU {gpu_id}; `GET /v1/gpus` lists them by public id")
    return row


def owner_of(session: Session, gpu: GpuRow) -> str:
    """Who speaks for a GPU: the holder of its NFT, or of that in whose place it stands, else its operator's wallet."""
    held = holders_of(session, {gpu.id}).get(gpu.id, ())
    if held and held[-1][1]:
        return held[-1][1].lower()
    return wallet_of(session, session.get_one(OperatorRow, gpu.operator))


def addresses_of(session: Session, customer: str) -> set[str]:
    """The addresses that an account speaks for: its linked wallet's, and those of operators whose own account it is."""
    own = (operator for operator, customers in accounts(session).items() if customer in customers)
    linked = session.exec(select(WalletRow.address).where(col(WalletRow.customer) == customer))
    return {*linked, *(wallet_of(session, session.get_one(OperatorRow, operator)) for operator in own)}
