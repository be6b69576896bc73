"""Engines for the two databases that the ledger runs on. Opens connections; creates no tables."""

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection


def open_engine(url: str, *, timeout_s: float = 30.0) -> Engine:
    """An engine whose transactions are safe for money.

    SQLite: WAL, full sync (a commit survives power loss), foreign keys, and every transaction takes the write lock
    at its start, so that what it read still holds when it writes. PostgreSQL: the driver's defaults.
    """
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": timeout_s})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _on_connect(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # the driver must not begin transactions by itself
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
