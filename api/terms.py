"""What nodes let a run do, as their agents say it, and whose work runs where nothing isolates it."""

from collections import defaultdict
from collections.abc import Collection

from sqlalchemy import func, select
from sqlmodel import Session, col

from api.enrolment_tables import OperatorWalletRow
from api.terms_tables import NodeTermsRow, OperatorAccountRow
from fabric.wire.link import NodeInfo
from ledger.chain.tables import WalletRow

NOBODY = "-"
"""Where only an operator's own account may run and none is known, nobody does; no account has this name."""


def write_terms(session: Session, cluster: str, nodes: list[NodeInfo]) -> None:
    """The nodes' terms are these; those of nodes that are gone say nothing."""
    for node in nodes:
        row = session.get(NodeTermsRow, (cluster, node.node))
        row = row or NodeTermsRow(cluster=cluster, node=node.node, isolation="", capabilities=[])
        row.isolation, row.capabilities = node.isolation, sorted(set(node.capabilities))
        session.add(row)
    session.flush()


def read_terms(session: Session, clusters: Collection[str] | None) -> dict[tuple[str, str], NodeTermsRow]:
    """By (cluster, node); of these clusters, or of all."""
    query = select(NodeTermsRow)
    if clusters is not None:
        query = query.where(col(NodeTermsRow.cluster).in_(clusters))
    return {(row.cluster, row.node): row for row in session.scalars(query)}


def own_account(session: Session, operator: str, customer: str) -> None:
    """Note that this account's runs are the operator's own work. Twice is once."""
    if session.get(OperatorAccountRow, (operator, customer)) is None:
        session.add(OperatorAccountRow(operator=operator, customer=customer))
        session.flush()


def accounts(session: Session) -> dict[str, frozenset[str]]:
    """By operator, the accounts whose runs are its own: those noted, and the one that its wallet is linked to."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for row in session.scalars(select(OperatorAccountRow)):
        found[row.operator].add(row.customer)
    linked = select(col(OperatorWalletRow.operator), col(WalletRow.customer)).join(
        WalletRow, col(WalletRow.address) == func.lower(col(OperatorWalletRow.wallet))
    )
    for operator, customer in session.execute(linked):
        found[operator].add(customer)
    return {operator: frozenset(customers) for operator, customers in found.items()}
