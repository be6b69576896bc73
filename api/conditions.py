"""How GPUs are beside their health: temperature, power, processes and links, and who may see it.

What a machine's processes are is its operator's affair: an answer holds it for the operator's own account and for the
account of whoever owns the GPU, and for nobody else.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from api.order_tables import NodeConditionRow
from api.tables import GpuRow, NodeRow
from api.terms import accounts
from api.wallets import owner_of
from fabric.wire.link import NodeCondition
from ledger.chain.tables import WalletRow


def write(session: Session, cluster: str, nodes: Sequence[NodeCondition], now_ms: int) -> None:
    """Keep what an agent says about its own nodes; what it says about others is dropped."""
    for said in nodes:
        if session.get(NodeRow, (cluster, said.node)) is None:
            continue
        row = session.get(NodeConditionRow, (cluster, said.node))
        row = row or NodeConditionRow(cluster=cluster, node=said.node, gpus={}, at_ms=0)
        row.gpus, row.at_ms = {one.uuid: one.model_dump(exclude={"uuid"}) for one in said.gpus}, now_ms
        session.add(row)
    session.flush()


class Viewer:
    """Somebody who asks about GPUs: a customer, or "" without an account."""

    def __init__(self, session: Session, customer: str) -> None:
        self._session = session
        owned = accounts(session) if customer else {}
        self._operators = {operator for operator, customers in owned.items() if customer in customers}
        wallets = select(col(WalletRow.address)).where(col(WalletRow.customer) == customer)
        self._wallets = {address.lower() for address in session.scalars(wallets)} if customer else set()

    def condition(self, gpu: GpuRow) -> dict[str, Any] | None:
        """The GPU's newest condition with its time; None where there is none, or none for this viewer."""
        if gpu.operator not in self._operators and not (
            self._wallets and owner_of(self._session, gpu) in self._wallets
        ):
            return None
        row = self._session.get(NodeConditionRow, (gpu.cluster, gpu.node))
        said = row.gpus.get(gpu.uuid) if row is not None else None
        return {**said, "at_ms": row.at_ms} if said is not None and row is not None else None
