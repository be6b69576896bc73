"""The database behind one interface: write transactions, read transactions, and what is said after a commit.

The only module of the control plane that knows which database it is. Every write transaction takes the write lock at
its start (SQLite: BEGIN IMMEDIATE, and inside this process a fair lock instead of SQLite's polling), so what it read
still holds when it writes. Readers see a snapshot and wait for nobody.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session

from ledger.database import open_engine

_TOPICS = "fabric.topics"
_AT_END = "fabric.at_end"


class DatabaseUnusable(Exception):
    """The database cannot be opened: corrupt, or of a newer version of this program. Says which and what to do."""


class Database:
    """One database; `notify` is told after each commit which topics changed."""

    def __init__(self, url: str, notify: Callable[..., None] = lambda *_: None) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self.writer: Engine = open_engine(url)
        self.reader: Engine = _read_engine(url) if self.is_sqlite else self.writer
        self._notify = notify
        self._lock = threading.Lock() if self.is_sqlite else None

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One write transaction: committed at the end of the block, rolled back when it raises."""
        with self._lock or nullcontext(), Session(self.writer, expire_on_commit=False) as session:
            session.connection()
            with _ending(session):
                yield session
                session.commit()
            topics = session.info.pop(_TOPICS, ())
        if topics:
            self._notify(*dict.fromkeys(topics))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One read transaction; what is written in it is lost."""
        with Session(self.reader, expire_on_commit=False) as session, _ending(session):
            yield session

    def check(self) -> None:
        """Open it once.

        Raises:
            DatabaseUnusable: not a database, or damaged.
        """
        try:
            with self.reader.connect() as connection:
                if self.is_sqlite:
                    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                    if found != "ok":
                        raise DatabaseUnusable(f"the database {self.url} is damaged: {found}; restore it from a copy")
                else:
                    connection.execute(text("SELECT 1"))
        except DatabaseError as error:
            raise DatabaseUnusable(
                f"{self.url} cannot be opened as a database: {error.orig}; move the file away or restore it from a copy"
            ) from None

    def close(self) -> None:
        self.writer.dispose()
        self.reader.dispose()


def say(session: Session, *topics: str) -> None:
    """Notify these topics once this transaction has committed."""
    session.info.setdefault(_TOPICS, []).extend(topics)


def at_end(session: Session, act: Callable[[], object]) -> None:
    """Do this when the transaction is over, however it ends."""
    session.info.setdefault(_AT_END, []).append(act)


@contextmanager
def _ending(session: Session) -> Iterator[None]:
    try:
        yield
    finally:
        for act in session.info.pop(_AT_END, ()):
            act()


def _read_engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": 30.0})
    event.listen(engine, "connect", _prepare_reader)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _prepare_reader(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # the driver must not begin transactions by itself
    cursor = connection.cursor()
    cursor.execute("PRAGMA query_only = ON")
    cursor.close()
