"""Fixtures of the control plane's tests; what they are made of is in `scripted`."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scripted import Agent, Fabric, starts

from api.database import Database
from api.schema import migrate
from api.settings import Settings
from fabric.wire import link
from fabric.wire.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables and nothing in them: to make them is most of the start of a control plane."""
    folder = tmp_path_factory.mktemp("migrated")
    database = Database(Settings(state_dir=folder).sqlalchemy_url, lambda *_: None)
    migrate(database)
    database.close()
    return folder / "fabric.db"


@pytest.fixture
def start(tmp_path: Path, clock: ManualClock, migrated: Path) -> Iterator[Callable[..., Fabric]]:
    """Start a control plane on this test's state directory; called again, the one before is stopped."""
    yield from starts(tmp_path, clock, migrated)


@pytest.fixture
def fabric(start: Callable[..., Fabric]) -> Fabric:
    return start()


@pytest.fixture
def agent(fabric: Fabric) -> Agent:
    """An agent of op-1 with two H100 and an L4 on one node."""
    agent = Agent(fabric)
    assert isinstance(agent.connect(), link.Welcome)
    return agent


@pytest.fixture(scope="module")
def evm() -> Iterator[tuple[str, ManualClock]]:
    """A chain whose clock moves a second with every block."""
    from chained import running_evm

    yield from running_evm()


@pytest.fixture
def chain_settings(evm: tuple[str, ManualClock], tmp_path: Path) -> Any:
    """Of fresh contracts, all in the hands of one key."""
    from chained import fresh_contracts

    return fresh_contracts(evm, tmp_path)


@pytest.fixture
def start_chained(evm: tuple[str, ManualClock], tmp_path: Path) -> Iterator[Callable[..., Fabric]]:
    """Start a control plane with a chain."""
    from chained import control_planes

    yield from control_planes(evm, tmp_path)
