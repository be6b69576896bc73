"""What the tests of serving share: a small fabric made for each test."""

import pytest

import fabric
from fabric.client import session as sessions
from tests.api.serving.town import KEY, Town


@pytest.fixture
def make_town(tmp_path):
    made = []

    def make(**options):
        made.append(Town(tmp_path, **options))
        fabric.init(made[-1].url, KEY)
        return made[-1]

    yield make
    sessions.end()
    fabric.init()
    for town in made:
        town.close()
