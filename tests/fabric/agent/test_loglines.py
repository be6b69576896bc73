"""Log lines for the control plane: all of them, up to the bound, and then a line that says so."""

import pytest

from fabric.agent import loglines
from fabric.agent.loglines import LogLines


@pytest.fixture
def sent() -> list:
    return []


async def test_lines_of_a_run_go_together_and_in_order(sent):
    lines = LogLines(sent.append)
    lines.add("run_1", [[0, 1, 5, "a"], [1, 2, 6, "b"]])
    lines.add("run_2", [[0, 1, 7, "c"]])
    assert sent == []
    lines.flush()
    assert [(logs.run, [line.text for line in logs.lines]) for logs in sent] == [
        ("run_1", ["a", "b"]),
        ("run_2", ["c"]),
    ]


async def test_beyond_the_bound_one_notice_and_then_nothing_for_that_run_alone(sent, monkeypatch):
    monkeypatch.setattr(loglines, "RUN_BYTES", 10)
    lines = LogLines(sent.append)
    for text in ("12345", "1234567", "lost", "lost too"):
        lines.add("run_1", [[0, 1, 0, text]])
    lines.add("run_2", [[0, 1, 0, "kept"]])
    lines.flush()
    first, second = sent
    assert [line.text[:20] for line in first.lines] == ["12345", "(further lines of th"]
    assert [line.text for line in second.lines] == ["kept"]
