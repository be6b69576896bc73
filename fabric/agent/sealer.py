"""Folds what nodes report into receipts: numbered, chained, signed. Sans IO; storing and sending come after.

A node's journal is read by offset. An account remembers up to which offset its receipts tell everything, so a journal
that is read again from an earlier offset adds nothing twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nacl.signing import SigningKey

from fabric.agent import events
from fabric.agent.events import Began, Closed, Finished, Held, Opened
from fabric.agent.journal import framed_bytes
from fabric.agent.meter import LeaseMeter
from fabric.wire.receipts import (
    GENESIS_HASH,
    MAX_TASKS,
    GpuLine,
    Receipt,
    ReceiptKind,
    RunLine,
    SignedReceipt,
    TaskLine,
    sign,
    task_root,
)

SEAL_MS = 50
"""Tasks that finished wait at least this long for others to share a receipt with."""
TICK_MS = 900
"""An open lease has a receipt for each tick of its node, which come every second."""
RUNS_PER_MS = 10
"""An account remembers every run of its lease and is stored with each receipt: the longer the list, the rarer."""

Key = tuple[str, int]
"""(lease, generation)."""


@dataclass(slots=True)
class Account:
    """A lease's receipts so far. `seq` is that of the last one, -1 before OPEN; `covered` an offset in its journal."""

    node: str
    meter: LeaseMeter
    covered: int
    seq: int = -1
    previous: bytes = GENESIS_HASH
    pending: list[TaskLine] = field(default_factory=list)
    applied: int = 0
    changed: bool = True
    finished: bool = False
    sealed_ms: int = 0

    @property
    def key(self) -> Key:
        return self.meter.lease, self.meter.generation


@dataclass(frozen=True, slots=True)
class Sealed:
    """New receipts of one lease, and what to remember beside them."""

    key: Key
    node: str
    receipts: tuple[tuple[int, bytes], ...]
    seq: int
    previous: bytes
    covered: int
    state: bytes
    closed: str | None


class Sealer:
    """The accounts of all leases of this operator's nodes."""

    def __init__(self, operator: str, key: SigningKey) -> None:
        self.accounts: dict[Key, Account] = {}
        self._operator = operator
        self._key = key

    def restore(self, account: Account) -> None:
        """Take up an account that an earlier process of the agent stored."""
        account.applied = account.covered
        account.changed = False
        self.accounts[account.key] = account

    def apply(self, node: str, offset: int, records: Sequence[bytes]) -> int:
        """Take records of a node's journal from `offset` on; returns the offset behind them."""
        for record in records:
            event = events.decode(record)
            if not isinstance(event, (Began, Held)):
                self._apply(node, offset, framed_bytes(record), event)
            offset += framed_bytes(record)
        return offset

    def due(self, now_ms: int) -> list[Account]:
        """The accounts whose next receipt should be sealed now."""
        return [account for account in self.accounts.values() if _is_due(account, now_ms)]

    def seal(self, account: Account, fabric_id: str, nonce: tuple[int, bytes], now_ms: int) -> Sealed:
        """All receipts that tell what the account knows and has not told."""
        receipts: list[tuple[int, bytes]] = []
        while account.seq < 0 or account.pending or account.changed:
            signed = self._next(account, fabric_id, nonce)
            receipts.append((account.seq, signed.to_bytes()))
        account.covered = account.applied
        account.sealed_ms = now_ms
        account.finished = account.meter.closed
        return Sealed(
            key=account.key,
            node=account.node,
            receipts=tuple(receipts),
            seq=account.seq,
            previous=account.previous,
            covered=account.covered,
            state=account.meter.to_state(),
            closed=account.meter.reason,
        )

    def low_water(self, node: str, applied: int) -> int:
        """The offset of the node's journal below which all receipts are sealed; `applied`: read so far."""
        covered = [
            account.covered for account in self.accounts.values() if account.node == node and not account.finished
        ]
        return min([applied, *covered])

    def abandon(self, node: str, reason: str) -> None:
        """The node and its journal are gone: close its leases at the last moment that is known of each."""
        for account in self.accounts.values():
            meter = account.meter
            if account.node != node or account.finished or meter.closed:
                continue
            for run, tasks in meter.flying:
                ended = tuple((task, attempt, reason, b"", 0) for task, attempt in tasks)
                account.pending += meter.apply(Finished(meter.lease, meter.generation, meter.last_ns, run, ended))
            meter.apply(Closed(meter.lease, meter.generation, meter.last_ns, reason))
            account.changed = True

    def _apply(self, node: str, offset: int, size: int, event: events.LeaseEvent) -> None:
        key = (event.lease, event.generation)
        account = self.accounts.get(key)
        if isinstance(event, Opened):
            if account is None:
                self.accounts[key] = Account(node, LeaseMeter(event), covered=offset, applied=offset + size)
            return
        if account is None or account.meter.closed or offset < account.applied:
            return
        account.pending += account.meter.apply(event)
        account.applied = offset + size
        account.changed = True

    def _next(self, account: Account, fabric_id: str, nonce: tuple[int, bytes]) -> SignedReceipt:
        meter, seq = account.meter, account.seq + 1
        tasks: list[TaskLine] = []
        gpus: tuple[GpuLine, ...] = tuple(GpuLine(uuid, share, 0) for uuid, share in meter.gpus)
        runs: tuple[RunLine, ...] = ()
        others_ms = 0
        kind, reason = ReceiptKind.OPEN, ""
        if seq > 0:
            tasks, account.pending = account.pending[:MAX_TASKS], account.pending[MAX_TASKS:]
            gpus, runs = meter.gpu_lines(), meter.take_run_lines()
            others_ms = sum(line.gpu_ms for line in gpus) - sum(line.gpu_ms for line in runs)
            last = meter.closed and not account.pending
            kind, reason = (ReceiptKind.CLOSE, meter.reason or "") if last else (ReceiptKind.TICK, "")
            account.changed = False
        receipt = Receipt(
            fabric_id=fabric_id,
            operator=self._operator,
            lease=meter.lease,
            generation=meter.generation,
            seq=seq,
            kind=kind,
            nonce_seq=nonce[0],
            nonce=nonce[1],
            previous=account.previous,
            gpus=gpus,
            runs=runs,
            task_count=len(tasks),
            task_root=task_root(tasks),
            reason=reason,
            simulated=meter.simulated,
            others_ms=others_ms,
        )
        account.seq, account.previous = seq, receipt.hash
        if seq == 0 and meter.last_ns == meter.opened_ns:
            account.changed = False
        return sign(receipt, tasks, self._key)


def _is_due(account: Account, now_ms: int) -> bool:
    if account.finished:
        return False
    if account.seq < 0 or account.meter.closed or len(account.pending) >= MAX_TASKS:
        return True
    age = now_ms - account.sealed_ms
    wait = max(SEAL_MS, account.meter.runs // RUNS_PER_MS)
    return (bool(account.pending) and age >= wait) or (account.changed and age >= max(TICK_MS, wait))
