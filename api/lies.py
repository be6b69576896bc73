"""Proofs that an operator signed two receipts under one number, from the rows that metering kept of them."""

from collections.abc import Iterator, Sequence

from sqlmodel import Session, col, select

from api.tables import EquivocationRow, ReceiptRow, SessionKeyRow
from fabric.wire.equivocation import Equivocation, Statement
from fabric.wire.receipts import ReceiptError, SignedReceipt


def equivocations(session: Session, leases: Sequence[str]) -> Iterator[Equivocation]:
    """One proof per second body: the receipt that was accepted, and the one that contradicts it."""
    rows = session.exec(
        select(EquivocationRow, ReceiptRow, SessionKeyRow)
        .join(
            ReceiptRow,
            (col(ReceiptRow.lease) == col(EquivocationRow.lease))
            & (col(ReceiptRow.generation) == col(EquivocationRow.generation))
            & (col(ReceiptRow.seq) == col(EquivocationRow.seq)),
        )
        .join(SessionKeyRow, col(SessionKeyRow.public_key) == col(ReceiptRow.session_key))
        .where(col(EquivocationRow.lease).in_(leases))
        .order_by(col(EquivocationRow.id))
    )
    for lie, accepted, key in rows.all():
        first = Statement.of(SignedReceipt.from_bytes(accepted.signed), bytes.fromhex(accepted.session_key))
        yield Equivocation(first, _statement(session, SignedReceipt.from_bytes(lie.signed), key.operator))


def _statement(session: Session, signed: SignedReceipt, operator: str) -> Statement:
    """The body beside the operator's key that signed it; revoked keys count, what they signed stays signed."""
    keys = session.exec(select(SessionKeyRow).where(col(SessionKeyRow.operator) == operator)).all()
    for key in (bytes.fromhex(row.public_key) for row in keys):
        try:
            signed.verify_body(key)
        except ReceiptError:
            continue
        return Statement.of(signed, key)
    raise AssertionError(f"a kept receipt of operator {operator} is signed by none of its keys")
