"""The fleets that one process keeps in memory, brought up to the rows before each use: a placement reads what changed.

Two sets, one for write and one for read transactions, so that what a transaction has not committed is seen by none that
only reads. What a write transaction booked or read is read again by the next one, because it may have been rolled back.
A fleet can be behind the rows (another process commits meanwhile); nothing is oversold by it: the database refuses.
"""

from collections.abc import Iterable
from threading import Lock

from sqlalchemy import delete, func, select
from sqlmodel import Session, col

from api.database import at_end
from api.fleet import Suppliers, load, reload, split_node, suppliers
from api.placement_tables import FleetChangeRow
from api.tables import NodeRow
from fabric.placement.fleet import Fleet, FleetError
from fabric.placement.inventory import Held
from fabric.wire.ids import new_id

KEPT_MS = 600_000
"""How long changes stay in their table; a fleet not used for half of it is built anew."""

_OVERLAP = 256
"""Numbers looked at again: on PostgreSQL a lower number may be committed after a higher one."""
_PATIENCE_S = 0.2


class Fleets:
    """`at` gives the fleet as this transaction sees it; it is the caller's until the transaction ends."""

    def __init__(self) -> None:
        self._kept = {(writes, known): _Kept(known=known) for writes in (True, False) for known in (True, False)}

    def at(self, session: Session, now_ms: int, *, writes: bool, known: bool = False) -> Fleet:
        """Everything that can be leased now; with `known` also what would be if every known agent were connected.

        While another transaction has the kept fleet, this one waits a moment and then gets one built from the rows: it
        might hold what the other waits for.
        """
        kept = self._kept[writes, known]
        if kept.holder is not session:
            if not kept.lock.acquire(timeout=_PATIENCE_S):
                return load(session, now_ms, known=known)
            kept.begin(session)
            at_end(session, kept.let_go)
        return kept.synced(session, now_ms)

    def take(self, fleet: Fleet, held: Held) -> None:
        """Book in the fleet what this transaction writes, for its further placements.

        Raises:
            FleetError: it is not free.
        """
        fleet.take(held)
        for kept in self._kept.values():
            if kept.fleet is fleet:
                kept.unsure.update(split_node(part.node) for part in held.assignments)


def note_change(session: Session, now_ms: int, cluster: str, nodes: Iterable[str] = ("",)) -> None:
    """Tell every kept fleet that these nodes of a cluster, or all, are other than before."""
    session.add_all(FleetChangeRow(token=new_id("chg"), cluster=cluster, node=node, at_ms=now_ms) for node in nodes)


def forget_old(session: Session, now_ms: int) -> None:
    """Drop the changes that every fleet in use has seen."""
    session.execute(delete(FleetChangeRow).where(col(FleetChangeRow.at_ms) < now_ms - KEPT_MS))


class _Kept:
    """One fleet and how far it has followed the rows."""

    def __init__(self, *, known: bool) -> None:
        self.lock = Lock()
        self.holder: Session | None = None
        self.fleet = Fleet()
        self.unsure: set[tuple[str, str]] = set()
        self._before: set[tuple[str, str]] = set()
        self._known = known
        self._supply = Suppliers({}, {})
        self._seen: set[str] = set()
        self._last = -1
        self._synced_ms: int | None = None

    def begin(self, session: Session) -> None:
        """A transaction has it now; what the one before may have left wrong is read again."""
        self.holder = session
        self._before |= self.unsure
        self.unsure = set()

    def let_go(self) -> None:
        self.holder = None
        self.lock.release()

    def synced(self, session: Session, now_ms: int) -> Fleet:
        """The fleet, as the rows say that this transaction sees."""
        session.flush()
        supply = suppliers(session, now_ms, known=self._known)
        late = self._synced_ms is None or now_ms - self._synced_ms > KEPT_MS // 2
        try:
            if late:
                self._rebuild(session, supply)
            else:
                self._follow(session, supply)
        except FleetError:
            self._rebuild(session, supply)
        self._supply, self._synced_ms = supply, now_ms
        return self.fleet

    def _rebuild(self, session: Session, supply: Suppliers) -> None:
        self._synced_ms = None
        self._last = session.scalar(select(func.max(col(FleetChangeRow.seq)))) or 0
        self.unsure |= self._touched(session, supply)
        self._before = set()
        fleet = Fleet()
        reload(session, fleet, supply, None)
        self.fleet = fleet

    def _follow(self, session: Session, supply: Suppliers) -> None:
        """Read again what changed, and what the transaction before may have left wrong."""
        self.unsure |= self._touched(session, supply)
        keys, self._before = self.unsure | self._before, set()
        if keys:
            reload(session, self.fleet, supply, keys)

    def _touched(self, session: Session, supply: Suppliers) -> set[tuple[str, str]]:
        changes = self._fresh(session)
        whole = supply.changed(self._supply) | {cluster for cluster, node in changes.values() if not node}
        nodes = {key for key in changes.values() if key[1]}
        return nodes | (_nodes_of(session, self.fleet, whole) if whole else set())

    def _fresh(self, session: Session) -> dict[str, tuple[str, str]]:
        """Changes not seen so far, by their tokens."""
        since = select(FleetChangeRow).where(col(FleetChangeRow.seq) > self._last - _OVERLAP)
        fresh: dict[str, tuple[str, str]] = {}
        seen: dict[str, int] = {}
        for row in session.scalars(since):
            seen[row.token] = row.seq or 0
            if row.token not in self._seen:
                fresh[row.token] = (row.cluster, row.node)
        self._seen = set(seen)
        self._last = max(seen.values(), default=self._last)
        return fresh


def _nodes_of(session: Session, fleet: Fleet, clusters: set[str]) -> set[tuple[str, str]]:
    """All nodes of some clusters, those in the rows and those in the fleet."""
    rows = session.execute(select(col(NodeRow.cluster), col(NodeRow.name)).where(col(NodeRow.cluster).in_(clusters)))
    kept = (split_node(name) for name, node in fleet.nodes.items() if node.cluster in clusters)
    return {(cluster, name) for cluster, name in rows} | set(kept)
