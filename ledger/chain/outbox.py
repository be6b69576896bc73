"""Sends each transaction once, whatever dies meanwhile: nonce and bytes are stored before anything leaves.

A row is one purpose under one nonce. It is sent as often as it takes, if need be with a higher fee under the same
nonce, so that of all its versions at most one can be mined. Two outboxes with one key cannot give a nonce twice: the
database refuses it. What to send, and whether it is still wanted, is decided by who asks; the contracts have the last
word. No database transaction is open while a node is asked.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from fabric.wire.clock import Clock
from ledger.chain.calls import Call
from ledger.chain.client import ChainClient
from ledger.chain.errors import Reverted
from ledger.chain.signer import Signer
from ledger.chain.tables import OutboxRow
from ledger.chain.transactions import Receipt, SignedTransaction

RESEND_MS = 15_000
BUMP_MS = 60_000


class SentState(StrEnum):
    """What became of a transaction."""

    SIGNED = "signed"
    MINED = "mined"
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"


TRANSITIONS: Mapping[SentState, frozenset[SentState]] = {
    SentState.SIGNED: frozenset({SentState.SIGNED, SentState.MINED, SentState.LOST}),  # itself: with a higher fee
    SentState.MINED: frozenset({SentState.SIGNED, SentState.MINED, SentState.DONE, SentState.FAILED}),  # reorganised
    SentState.DONE: frozenset(),  # in a final block
    SentState.FAILED: frozenset(),  # reverted in a final block
    SentState.LOST: frozenset(),  # in a final block its nonce was another transaction's
}
UNSETTLED = tuple(state for state, targets in TRANSITIONS.items() if targets)


class Store(Protocol):
    """Where rows are kept; `write` commits at the end of its block, or refuses when another owner has the work."""

    def write(self) -> AbstractContextManager[Session]: ...

    def read(self) -> AbstractContextManager[Session]: ...


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction under way, or what became of it."""

    purpose: str
    nonce: int
    hash: bytes
    state: SentState
    block_number: int | None = None
    gas_used: int | None = None


class Outbox:
    """The transactions of one key on one chain.

    Args:
        client: the chain.
        signer: the key.
        store: of the rows.
        clock: tells when to send again.
        confirmations: a block is final when so many blocks stand on it, 1 or more.
    """

    def __init__(self, client: ChainClient, signer: Signer, store: Store, clock: Clock, confirmations: int) -> None:
        self._client = client
        self._signer = signer
        self._store = store
        self._clock = clock
        self._confirmations = confirmations
        self._sent_ms: dict[bytes, int] = {}

    def send(self, purpose: str, call: Call) -> Sent:
        """Send what the purpose needs, unless it was sent; a failed or lost one is tried anew under a new nonce.

        Raises:
            ChainError: the contract would refuse it, the key lacks funds, or the node does not answer; nothing is
                stored or sent then.
        """
        before = self.find(purpose)
        if before is not None and before.state not in (SentState.FAILED, SentState.LOST):
            return before
        name = purpose if before is None else _next_try(purpose, before.purpose)
        signed = self._client.sign(self._signer, call, self._free_nonce())
        if not self._keep(name, call, signed):
            return self.find(purpose) or self._foreign(signed.nonce)
        self._broadcast(signed)
        return Sent(name, signed.nonce, signed.hash, SentState.SIGNED)

    def find(self, purpose: str) -> Sent | None:
        """The last try for a purpose."""
        with self._store.read() as session:
            tries = select(OutboxRow).where(
                OutboxRow.chain_id == self._client.book.chain_id,
                (col(OutboxRow.purpose) == purpose) | col(OutboxRow.purpose).startswith(f"{purpose}/try"),
            )
            row = session.exec(tries.order_by(col(OutboxRow.nonce).desc())).first()
            return None if row is None else _sent(row)

    def watch(self) -> list[Sent]:
        """Look after everything that is not settled; returns what is not even mined, in order of nonces."""
        final = self._client.head().number - self._confirmations
        return [sent for row in self._unsettled() if not _mined(sent := self._look(row, final))]

    def _look(self, row: OutboxRow, final: int) -> Sent:
        found = self._receipt(row)
        if found is not None:
            return self._note_receipt(row, found, final)
        if row.state == SentState.MINED:
            self._sent_ms.clear()
            row = self._moved(row, SentState.SIGNED, block_number=None, gas_used=None)
        if final >= 0 and self._client.nonce_at(row.sender, final) > row.nonce and self._receipt(row) is None:
            return self._move(row, SentState.LOST, note="another transaction of this key took its nonce")
        if self._clock.now_ms() - row.changed_ms >= BUMP_MS and row.sender == self._signer.address:
            return self._bump(row)
        self._broadcast(_signed(row))
        return _sent(row)

    def _note_receipt(self, row: OutboxRow, found: Receipt, final: int) -> Sent:
        state = SentState.MINED
        if found.block_number <= final:
            state = SentState.DONE if found.succeeded else SentState.FAILED
        if row.state == SentState.SIGNED:
            row = self._moved(row, SentState.MINED, block_number=found.block_number, gas_used=found.gas_used)
        if state == SentState.MINED and row.block_number == found.block_number:
            return _sent(row)
        return self._move(row, state, block_number=found.block_number, gas_used=found.gas_used)

    def _bump(self, row: OutboxRow) -> Sent:
        try:
            signed = self._client.replace(self._signer, row.raw)
        except Reverted:  # it would fail now: most likely because it was just mined
            return _sent(row)
        replaced = [*row.replaced, row.hash.hex()]
        sent = self._move(row, SentState.SIGNED, hash=signed.hash, raw=signed.raw, replaced=replaced)
        if sent.hash == signed.hash:
            self._broadcast(signed)
        return sent

    def _receipt(self, row: OutboxRow) -> Receipt | None:
        """Of whichever version was mined."""
        hashes = (row.hash, *map(bytes.fromhex, row.replaced))
        return next((found for one in hashes if (found := self._client.receipt(one)) is not None), None)

    def _broadcast(self, signed: SignedTransaction) -> None:
        now = self._clock.now_ms()
        if now - self._sent_ms.get(signed.hash, now - RESEND_MS) >= RESEND_MS:
            self._client.broadcast(signed)
            self._sent_ms[signed.hash] = now

    def _free_nonce(self) -> int:
        with self._store.read() as session:
            ours = session.exec(
                select(OutboxRow.nonce)
                .where(OutboxRow.chain_id == self._client.book.chain_id, OutboxRow.sender == self._signer.address)
                .order_by(col(OutboxRow.nonce).desc())
            ).first()
        return max(self._client.next_nonce(self._signer.address), -1 if ours is None else ours + 1)

    def _keep(self, purpose: str, call: Call, signed: SignedTransaction) -> bool:
        """Store it; False when another outbox was faster with this purpose or nonce."""
        now = self._clock.now_ms()
        row = OutboxRow(
            purpose=purpose,
            chain_id=self._client.book.chain_id,
            sender=signed.sender,
            nonce=signed.nonce,
            contract=call.contract,
            function=call.function,
            hash=signed.hash,
            raw=signed.raw,
            state=SentState.SIGNED,
            created_ms=now,
            changed_ms=now,
        )
        try:
            with self._store.write() as session:
                session.add(row)
        except IntegrityError:
            return False
        return True

    def _foreign(self, nonce: int) -> Sent:
        """Another purpose took the nonce: nothing was sent for ours; what took it is what is under way."""
        return Sent(f"nonce {nonce}, taken by another", nonce, b"", SentState.SIGNED)

    def _move(self, row: OutboxRow, target: SentState, **changes: object) -> Sent:
        return _sent(self._moved(row, target, **changes))

    def _moved(self, row: OutboxRow, target: SentState, **changes: object) -> OutboxRow:
        """The row as it is now: moved, or as another outbox moved it since ``row`` was read."""
        with self._store.write() as session:
            now = session.get_one(OutboxRow, row.id, with_for_update=True)
            if (now.state, now.hash) == (row.state, row.hash):
                assert target in TRANSITIONS[SentState(now.state)], f"{now.purpose}: {now.state} to {target}"
                for name, value in changes.items():
                    setattr(now, name, value)
                now.state, now.changed_ms = target, self._clock.now_ms()
                session.add(now)
                session.flush()
            session.expunge(now)
            return now

    def _unsettled(self) -> Iterable[OutboxRow]:
        with self._store.read() as session:
            rows = session.exec(
                select(OutboxRow)
                .where(col(OutboxRow.state).in_(UNSETTLED), OutboxRow.chain_id == self._client.book.chain_id)
                .order_by(col(OutboxRow.nonce))
            ).all()
            session.expunge_all()
            return rows


def _next_try(purpose: str, last: str) -> str:
    _, _, number = last.removeprefix(purpose).partition("/try")
    return f"{purpose}/try{int(number or 1) + 1}"


def _mined(sent: Sent) -> bool:
    return sent.state != SentState.SIGNED


def _signed(row: OutboxRow) -> SignedTransaction:
    return SignedTransaction(row.hash, row.raw, row.sender, row.nonce)


def _sent(row: OutboxRow) -> Sent:
    return Sent(row.purpose, row.nonce, row.hash, SentState(row.state), row.block_number, row.gas_used)
