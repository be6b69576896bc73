"""Accepted receipts become usage in the ledger: the shell around `api.acceptance`.

One call takes the pending receipts of all agents in one transaction: signatures before it, then order, generation,
chain, nonce and window; then one booking for all; then the answers. Nothing is acknowledged before the commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, col

from api.acceptance import unfit
from api.database_faults import fault
from api.plane import Plane
from api.receipt_batch import Batch, Verified, refusal
from api.tables import SessionKeyRow
from fabric.wire.link import Ack, RejectReceipt
from fabric.wire.receipts import ReceiptError, SignedReceipt, named_in

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Arrived:
    """One receipt as an agent sent it: `keys` are its operator's session keys, the connection's first."""

    operator: str
    keys: tuple[bytes, ...]
    data: bytes


Answer = Ack | RejectReceipt


class Metering:
    """Takes receipts; safe to call from one thread at a time."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def keys_of(self, session: Session, operator: str, first: bytes) -> tuple[bytes, ...]:
        """The session keys whose receipts are taken from an operator: all that are not revoked."""
        rows = session.scalars(
            select(SessionKeyRow).where(
                col(SessionKeyRow.operator) == operator, col(SessionKeyRow.revoked_ms).is_(None)
            )
        )
        return tuple(dict.fromkeys((first, *(bytes.fromhex(row.public_key) for row in rows))))

    def take(self, batch: Sequence[Arrived]) -> list[tuple[int, Answer]]:
        """Take receipts in the order given; answers are (index into `batch`, message), durable when returned.

        One acknowledgement per lease names the last receipt that is durable; each receipt that can never be accepted
        gets its refusal.
        """
        verified: list[tuple[int, Verified]] = []
        answers: list[tuple[int, Answer]] = []
        for index, arrived in enumerate(batch):
            found = self._verify(arrived)
            if isinstance(found, Verified):
                verified.append((index, found))
            elif found is not None:
                answers.append((index, found))
        self._plane.metrics.batch_size.observe(len(batch))
        return answers + self._take_verified(verified)

    def _verify(self, arrived: Arrived) -> Verified | RejectReceipt | None:
        try:
            signed = SignedReceipt.from_bytes(arrived.data)
            receipt = signed.receipt
        except ReceiptError as error:
            _log.warning("malformed receipt", operator=arrived.operator, error=str(error))
            self._count("malformed")
            return _refused_as_named(arrived.data, str(error))
        problem = "no session key of this operator is valid"
        for key in arrived.keys:
            try:
                signed.verify(key)
            except ReceiptError as error:
                problem = str(error)
            else:
                return Verified(arrived.operator, arrived.data, signed, receipt, key, unfit(receipt, signed.tasks))
        self._count("forged")
        return refusal(receipt, problem)

    def _take_verified(self, verified: list[tuple[int, Verified]]) -> list[tuple[int, Answer]]:
        """All in one transaction; if that fails, lease by lease, so that one bad lease stops nobody else."""
        if not verified:
            return []
        try:
            return self._transact(verified)
        except Exception as error:
            if isinstance(error, DBAPIError) and fault(error) is not None:
                raise  # no lease is at fault: nothing is acknowledged, agents send again
            leases = {one.receipt.lease for _, one in verified}
            _log.exception("a batch of receipts failed", leases=len(leases))
            if len(leases) == 1:
                return []
        answers: list[tuple[int, Answer]] = []
        for lease in sorted(leases):
            answers += self._take_verified([pair for pair in verified if pair[1].receipt.lease == lease])
        return answers

    def _transact(self, verified: list[tuple[int, Verified]]) -> list[tuple[int, Answer]]:
        batch, answers = self._plane.database.transact(lambda session: self._book(session, verified))
        for verdict, count in batch.counts.items():
            self._count(verdict, count)
        return answers

    def _book(self, session: Session, verified: list[tuple[int, Verified]]) -> tuple[Batch, list[tuple[int, Answer]]]:
        batch = Batch(self._plane, session, [one for _, one in verified])
        with session.no_autoflush:
            refusals = [(index, said) for index, one in verified if (said := batch.take(one)) is not None]
        batch.book()
        last = {one.receipt.lease: index for index, one in verified}
        return batch, [*refusals, *((last[lease], ack) for lease, ack in batch.acks())]

    def _count(self, verdict: str, by: int = 1) -> None:
        self._plane.metrics.receipts.labels(verdict=verdict).inc(by)


def _refused_as_named(data: bytes, reason: str) -> RejectReceipt | None:
    """The refusal of what is no receipt, if it says at least which one it would be."""
    named = named_in(data)
    if named is None:
        return None
    lease, generation, seq = named
    return RejectReceipt(lease=lease, generation=generation, seq=seq, reason=reason)
