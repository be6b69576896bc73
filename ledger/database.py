"""Engines for the two databases that the ledger runs on, and transactions on them. Creates no tables."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlmodel import Session


def open_engine(url: str, *, timeout_s: float = 30.0) -> Engine:
    """An engine whose transactions are safe for money.

    SQLite: WAL, full sync (a commit survives power loss), foreign keys, and every transaction takes the write lock
    at its start, so that what it read still holds when it writes. PostgreSQL: the driver's defaults, but no compiling
    of statements, which costs more than it saves where many keys are looked up.
    """
    if not url.startswith("sqlite"):
        engine = create_engine(url, pool_pre_ping=True)
        event.listen(engine, "connect", _stop_compiling)
        return engine
    engine = create_engine(url, connect_args={"timeout": timeout_s})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


class Transactions:
    """One transaction after another on one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Committed at the end of the block, rolled back when it raises."""
        with Session(self._engine, expire_on_commit=False) as session:
            session.connection()
            yield session
            session.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """What is written in it is lost."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session


def _stop_compiling(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("SET jit = off")
    cursor.close()
    connection.commit()


def _on_connect(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # the driver must not begin transactions by itself
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
