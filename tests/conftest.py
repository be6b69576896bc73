"""What all tests share: hypothesis without deadlines, because machines are shared and timings noisy; the order of work.

`pytest --hypothesis-profile thorough` asks for thousands of examples instead of hundreds.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

sys.path.insert(0, str(Path(__file__).parent))

from postgresql import BINARIES, running_postgresql

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("shared"), max_examples=9000)
settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, so that no worker is left alone with one at the end; the order within a file is kept."""
    slow = {item.path: 2 for item in items if item.get_closest_marker("ray")}
    slow = {item.path: 1 for item in items if item.get_closest_marker("slow")} | slow
    items.sort(key=lambda item: -slow.get(item.path, 0))


class OneRay(LoadFileScheduling):
    """Whole files to each worker, since their fixtures are; all files that start Ray to one, one after the other."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False
        tests = Path(__file__).parent
        self._ray = {
            path.relative_to(config.rootpath).as_posix()
            for path in tests.rglob("test_*.py")
            if "mark.ray" in path.read_text(encoding="utf-8")
        }

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "ray" if file in self._ray else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return OneRay(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    """Of the database of a server of this file's own."""
    if not (BINARIES / "initdb").exists():
        pytest.skip("needs PostgreSQL 15 binaries")
    with running_postgresql() as url:
        yield url
