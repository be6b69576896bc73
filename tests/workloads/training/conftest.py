"""A fabric of real processes whose operator has two nodes, without Ray."""

import pytest

from fabric.client import session as sessions
from tests.workloads.training.town import TwoNodes


@pytest.fixture(scope="session")
def _town(tmp_path_factory):
    town = TwoNodes(tmp_path_factory.mktemp("town"))
    yield town
    town.close()


@pytest.fixture
def town(_town):
    import fabric

    fabric.init(_town.url, _town.key)
    yield _town
    sessions.end()
    fabric.init()
