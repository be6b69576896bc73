"""The database behind one interface: write transactions, read transactions, and what is said after a commit.

The only module of the control plane that knows which database it is. Every write transaction takes the write lock at
its start (SQLite: BEGIN IMMEDIATE, and inside this process a fair lock instead of SQLite's polling; PostgreSQL: an
advisory lock that all control planes share), so what it read still holds when it writes. Readers wait for nobody.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, DBAPIError
from sqlmodel import Session

from api.database_faults import fault
from ledger.database import open_engine

CHANNEL = "fabric_topics"
"""Where the control planes on one PostgreSQL tell each other what changed."""

_TOPICS = "fabric.topics"
_WRITE_LOCK = 0x666162726963
_CONFLICTS = frozenset({"40001", "40P01"})
_ATTEMPTS = 5

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_NOTIFY = text("SELECT pg_notify(:channel, :topic)")

Result = TypeVar("Result")
_AT_END = "fabric.at_end"


class DatabaseUnusable(Exception):
    """The database cannot be opened: corrupt, or of a newer version of this program. Says which and what to do."""


class Database:
    """One database; `notify` is told after each commit which topics changed."""

    def __init__(self, url: str, notify: Callable[..., None] = lambda *_: None) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self.shared = not self.is_sqlite
        """Whether other control planes may work on it at the same time."""
        self.writer: Engine = open_engine(url)
        self.reader: Engine = _read_engine(url) if self.is_sqlite else self.writer
        self._notify = notify
        self._lock = threading.Lock() if self.is_sqlite else None

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One write transaction: committed at the end of the block, rolled back when it raises."""
        with self._lock or nullcontext(), Session(self.writer, expire_on_commit=False) as session:
            session.connection()
            if not self.is_sqlite:
                session.execute(_LOCK, {"key": _WRITE_LOCK})
            with _ending(session):
                yield session
                topics = list(dict.fromkeys(session.info.pop(_TOPICS, ())))
                if topics and not self.is_sqlite:
                    session.execute(_NOTIFY, [{"channel": CHANNEL, "topic": topic} for topic in topics])
                session.commit()
        if topics:
            self._notify(*topics)

    def transact(self, work: Callable[[Session], Result]) -> Result:
        """One write transaction, done again as a whole when the database ends it for a conflict with another.

        Args:
            work: changes nothing but rows of the session it is given, a new one each time.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._once(work)
            except DBAPIError as error:
                if not is_conflict(error):
                    raise
        return self._once(work)

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
                        raise DatabaseUnusable(f"the database {self.name} is damaged: {found}; restore it from a copy")
                else:
                    connection.execute(text("SELECT 1"))
        except DatabaseError as error:
            raise self.unusable(error) from None

    def unusable(self, error: DBAPIError) -> DatabaseUnusable:
        """The refusal to start with such a database."""
        says = fault(error) or f"cannot be used: {error.orig}"
        return DatabaseUnusable(f"the database {self.name} {says}")

    @property
    def name(self) -> str:
        """The URL without its password."""
        return make_url(self.url).render_as_string(hide_password=True)

    def close(self) -> None:
        self.writer.dispose()
        self.reader.dispose()

    def _once(self, work: Callable[[Session], Result]) -> Result:
        with self.write() as session:
            return work(session)


def is_conflict(error: DBAPIError) -> bool:
    """Whether the transaction may succeed when it is done again: a serialisation failure or a deadlock."""
    return getattr(error.orig, "sqlstate", None) in _CONFLICTS


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
