"""A database to index into, which can die at any transaction; what the tests of the indexer share."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from sqlalchemy import Engine, select
from sqlmodel import Session

from fabric.wire.clock import ManualClock
from ledger.chain.book import AddressBook
from ledger.chain.crediting import link_wallet
from ledger.chain.index import Index
from ledger.chain.indexer import Indexer
from ledger.chain.reading import Blocks
from ledger.chain.tables import EVENT_ROWS, create_chain_schema
from ledger.database import open_engine
from ledger.store import Balance, Ledger
from ledger.tables import create_schema, table_of

START = 3
BOOK = AddressBook(1337, START, *("0x" + digit * 40 for digit in "12345"))
WALLETS = {"alice": "0x" + "a1" * 20, "bob": "0x" + "b0" * 20}


@cache
def empty_database() -> bytes:
    """Made once: creating some forty tables and their triggers takes longer than most of these tests."""
    engine = open_engine("sqlite://")
    with engine.begin() as connection:
        create_schema(connection)
        create_chain_schema(connection)
    with engine.connect() as connection:
        connection.connection.driver_connection.rollback()
        return connection.connection.driver_connection.serialize()


class Killed(BaseException):
    """The process is gone, in the middle of what it did."""


class Place:
    """A database that can be made to die at the n-th transaction from now, before or after its commit."""

    def __init__(self) -> None:
        self.engine: Engine = open_engine("sqlite://")
        with self.engine.connect() as connection:
            connection.connection.driver_connection.rollback()
            connection.connection.driver_connection.deserialize(empty_database())
        self.dies_in: int | None = None
        self.after_commit = False
        self.clock = ManualClock()

    @contextmanager
    def write(self) -> Iterator[Session]:
        with Session(self.engine) as session:
            yield session
            dying = self.dies_in == 0
            if self.dies_in is not None:
                self.dies_in -= 1
            if dying and not self.after_commit:
                raise Killed
            session.commit()
            if dying:
                raise Killed

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self.engine) as session:
            yield session

    def ledger(self, session: Session) -> Ledger:
        return Ledger(session, self.clock)

    def link(self, wallets: Mapping[str, str] = WALLETS) -> None:
        with self.write() as session:
            for customer, wallet in wallets.items():
                link_wallet(session, self.ledger(session), wallet, customer, at_ms=0)

    def indexer(self, chain: Blocks, confirmations: int, book: AddressBook = BOOK) -> Indexer:
        return Indexer(chain, self, self.ledger, book, self.clock, confirmations=confirmations)

    def events(self) -> dict[str, list[tuple]]:
        """All that the chain said, as rows."""
        with self.read() as session:
            tables = [table_of(row) for row in EVENT_ROWS]
            return {table.name: sorted(map(tuple, session.execute(select(table)))) for table in tables}

    def final(self) -> int:
        with self.read() as session:
            status = Index(session).status()
            return -1 if status is None else status.final

    def balances(self, customers: Iterable[str] = WALLETS) -> dict[str, Balance]:
        with self.read() as session:
            return {customer: self.ledger(session).balance(customer) for customer in customers}

    def dump(self) -> bytes:
        """The database as a file's bytes."""
        with self.engine.connect() as connection:
            connection.connection.driver_connection.rollback()
            return connection.connection.driver_connection.serialize()
