"""The agent's durable memory: receipts not yet acknowledged, and how far each node's journal is told.

SQLite with full sync. A receipt is here before it is sent and until the control plane has it. The calls block; they may
come from several threads, one at a time gets through, and closing waits for the one that is in.
"""

import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fabric.agent.sealer import Key, Sealed

_SCHEMA = """
CREATE TABLE IF NOT EXISTS nodes (node TEXT PRIMARY KEY, journal TEXT NOT NULL, offset INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS leases (
    lease TEXT, generation INTEGER, node TEXT NOT NULL, seq INTEGER NOT NULL, previous BLOB NOT NULL,
    covered INTEGER NOT NULL, state BLOB NOT NULL, closed TEXT, acked INTEGER NOT NULL DEFAULT -1,
    PRIMARY KEY (lease, generation)
) STRICT;
CREATE TABLE IF NOT EXISTS receipts (
    lease TEXT, generation INTEGER, seq INTEGER, data BLOB NOT NULL, PRIMARY KEY (lease, generation, seq)
) STRICT;
"""


class CorruptState(RuntimeError):
    """The agent's state cannot be read; says where it lies and what to do."""


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A row of `leases`."""

    key: Key
    node: str
    seq: int
    previous: bytes
    covered: int
    state: bytes
    closed: str | None
    acked: int


class Outbox:
    """One file. Not for two agents at once: the second one is refused."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            CorruptState: it is not such a file, or another agent has it open.
        """
        self._turn = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2)
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise CorruptState(
                f"the agent's receipts in {path} cannot be opened ({error}); if no other agent runs here, move the file"
                " away: leases that it had open are then lost"
            ) from None

    def close(self) -> None:
        with self._turn:
            self._db.close()

    def leases(self) -> list[StoredLease]:
        query = "SELECT lease, generation, node, seq, previous, covered, state, closed, acked FROM leases"
        with self._turn:
            rows = self._db.execute(query).fetchall()
        return [StoredLease((row[0], row[1]), *row[2:]) for row in rows]

    def nodes(self) -> dict[str, tuple[str, int]]:
        """{node: (id of its journal, offset up to which everything is sealed)}."""
        with self._turn:
            rows = self._db.execute("SELECT * FROM nodes").fetchall()
        return {node: (journal, offset) for node, journal, offset in rows}

    def store(self, sealed: Iterable[Sealed], offsets: Iterable[tuple[str, str, int]]) -> None:
        """Keep receipts and what they cover, durably, in one transaction. Offsets are (node, journal, offset)."""
        with self._turn, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for each in sealed:
                self._db.executemany(
                    "INSERT INTO receipts VALUES (?, ?, ?, ?)", ((*each.key, seq, data) for seq, data in each.receipts)
                )
                self._db.execute(
                    "INSERT INTO leases (lease, generation, node, seq, previous, covered, state, closed)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET seq = excluded.seq,"
                    " previous = excluded.previous, covered = excluded.covered, state = excluded.state,"
                    " closed = excluded.closed",
                    (*each.key, each.node, each.seq, each.previous, each.covered, each.state, each.closed),
                )
            for node, journal, offset in offsets:
                self._db.execute("INSERT OR REPLACE INTO nodes VALUES (?, ?, ?)", (node, journal, offset))
                self._db.execute(
                    "DELETE FROM leases WHERE node = ? AND closed IS NOT NULL AND acked >= seq AND covered <= ?",
                    (node, offset),
                )

    def ack(self, key: Key, seq: int) -> None:
        """The control plane has the lease's receipts up to `seq`."""
        with self._turn, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM receipts WHERE lease = ? AND generation = ? AND seq <= ?", (*key, seq))
            self._db.execute("UPDATE leases SET acked = ? WHERE lease = ? AND generation = ?", (seq, *key))

    def give_up(self, key: Key, reason: str) -> None:
        """The control plane is done with this lease: its receipts go, its row stays while the journal tells of it."""
        with self._turn, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM receipts WHERE lease = ? AND generation = ?", key)
            self._db.execute(
                "UPDATE leases SET acked = seq, closed = ? WHERE lease = ? AND generation = ?", (reason, *key)
            )

    def unacknowledged(self, key: Key) -> list[tuple[int, bytes]]:
        """(seq, receipt) in order."""
        query = "SELECT seq, data FROM receipts WHERE lease = ? AND generation = ? ORDER BY seq"
        with self._turn:
            return self._db.execute(query, key).fetchall()
