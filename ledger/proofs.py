"""Paths of what a lease used, and of what an account was given back, to the roots of an epoch. Reads only."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import Session

from fabric.wire.leaves import lease_leaf
from fabric.wire.merkle import levels, proof_in
from ledger.allocate import exit_leaves
from ledger.closing import EPOCH, file_of, leases_in, span_of
from ledger.epoch import read_file
from ledger.finality import FINALITY
from ledger.meters import METER, USAGE
from ledger.queries import Proof, usage_proof


@dataclass(frozen=True, slots=True)
class LeaseProof:
    """One lease on one GPU in one closed epoch: its leaf among the GPU's leases, the GPU's leaf in the epoch."""

    lease_id: str
    lease: Proof
    usage: Proof
    file_hash: bytes
    settlement: str


def lease_proof(session: Session, n: int, gpu_id: str, lease_id: str) -> Proof | None:
    """The path of a lease leaf (lease, GPU-ms, DC, hash of its last receipt) to the GPU's root of leases."""
    rows = [row[1:] for row in leases_in(session, span_of(session, n), gpu_id) if row[2] or row[3]]
    index = next((at for at, row in enumerate(rows) if row[0] == lease_id), None)
    if index is None or session.execute(select(EPOCH.c.n).where(EPOCH.c.n == n)).first() is None:
        return None
    tree = levels([lease_leaf(*row) for row in rows])
    return Proof(n, tree[0][index], index, tuple(proof_in(tree, index)), tree[-1][0], rows[index])


def exit_proof(session: Session, n: int, account: str) -> Proof | None:
    """The path of an exit leaf (account, cumulative DC), for which the chain gives DC back."""
    body = file_of(session, n)
    if body is None:
        return None
    exits = sorted(read_file(body)[0].exits)
    index = next((at for at, given_back in enumerate(exits) if given_back.account == account), None)
    if index is None:
        return None
    tree = levels(exit_leaves(exits))
    return Proof(n, tree[0][index], index, tuple(proof_in(tree, index)), tree[-1][0], tuple(exits[index]))


def lease_proofs(session: Session, lease_id: str) -> Iterator[LeaseProof]:
    """Every closed epoch in which a lease counts, by GPU."""
    gpus = session.execute(select(METER.c.gpu_id).where(METER.c.lease_id == lease_id).distinct()).scalars().all()
    first, last = _epochs_of(session, lease_id)
    columns = (EPOCH.c.n, EPOCH.c.file_hash, EPOCH.c.settlement)
    closed = session.execute(select(*columns).where(EPOCH.c.n.between(first, last)).order_by(EPOCH.c.n)).all()
    for n, file_hash, settlement in closed:
        for gpu_id in sorted(gpus):
            lease = lease_proof(session, n, gpu_id, lease_id)
            usage = None if lease is None else usage_proof(session, n, gpu_id)
            if lease is not None and usage is not None:
                yield LeaseProof(lease_id, lease, usage, file_hash, settlement)


def _epochs_of(session: Session, lease_id: str) -> tuple[int, int]:
    """First and last epoch in which a lease's usage became final; an empty stretch when none is final."""
    mine = select(USAGE.c.accepted_ms).join(METER, METER.c.id == USAGE.c.meter_id).where(METER.c.lease_id == lease_id)
    ends = [session.execute(mine.order_by(order).limit(1)).scalar() for order in (_FIRST, _LAST)]
    if None in ends:
        return 1, 0
    epochs = [
        session.execute(
            select(FINALITY.c.epoch).where(FINALITY.c.through_ms > end).order_by(FINALITY.c.through_ms).limit(1)
        ).scalar()
        for end in ends
    ]
    newest = session.execute(select(func.coalesce(func.max(FINALITY.c.epoch), -1))).scalar_one()
    return (newest + 1 if epochs[0] is None else epochs[0]), (newest if epochs[1] is None else epochs[1])


_FIRST, _LAST = USAGE.c.accepted_ms, USAGE.c.accepted_ms.desc()
