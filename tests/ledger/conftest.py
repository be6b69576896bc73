"""A ledger on an in-memory SQLite, a clock that moves when told, and usage as a control plane would pass it."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine
from sqlmodel import Session

from fabric.wire.clock import ManualClock
from ledger.database import open_engine
from ledger.leaves import gpu_id_hex
from ledger.settings import LedgerSettings
from ledger.store import Ledger
from ledger.tables import create_schema
from ledger.usage import Usage

GENESIS_MS = 1_700_000_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(GENESIS_MS)


@pytest.fixture
def settings() -> LedgerSettings:
    return LedgerSettings(genesis_ms=GENESIS_MS, epoch_ms=3_600_000)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = open_engine("sqlite://")
    with engine.begin() as connection:
        create_schema(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@pytest.fixture
def ledger(session: Session, clock: ManualClock, settings: LedgerSettings) -> Ledger:
    return Ledger(session, clock, settings)


@pytest.fixture
def use(clock: ManualClock) -> Callable[..., Usage]:
    """Usage of one H100 at USD 2 an hour; any field by keyword."""

    def make(seq: int, cumulative_gpu_ms: int, *, gpu: str = "GPU-1", **fields) -> Usage:
        given = {
            "lease_id": "lease-1",
            "generation": 1,
            "run_id": "run-1",
            "customer": "alice",
            "operator": "op-1",
            "pool": "op-1",
            "holder": "0x" + "11" * 20,
            "model": "H100",
            "share_milli": 1000,
            "price_dc_per_gpu_hour": 200_000,
            "at_ms": clock.now_ms(),
        }
        return Usage(seq=seq, cumulative_gpu_ms=cumulative_gpu_ms, gpu_id=gpu_id_hex(gpu), **(given | fields))

    return make


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    """A ledger in which alice has 1,000,000 DC, 40,000 of them held for lease-1 of run-1."""
    ledger.credit_test("alice", 1_000_000, "test/alice")
    ledger.hold("lease-1", "run-1", "alice", 40_000, "hold/lease-1")
    return ledger
