"""`fabric.Executor` against a small real fabric: the contract of `concurrent.futures`, leases only for work."""

import threading
import time
from concurrent.futures import CancelledError, as_completed, wait

import pytest

import fabric


def double(x):
    return 2 * x


def fail(text):
    raise KeyError(text)


@pytest.fixture
def executor(small_fabric):
    with fabric.Executor(max_workers=2, gpu="H100") as made:
        yield made


def test_calls_of_several_functions_are_tasks_of_one_run(small_fabric, executor):
    futures = [executor.submit(double, 4), executor.submit(lambda a, b: a - b, b=1, a=9)]
    assert [future.result(20) for future in futures] == [8, 8]
    assert list(executor.map(pow, [2, 3], [5, 2])) == [32, 9]
    assert {future.result(20) for future in as_completed([executor.submit(double, x) for x in range(9)])} == set(
        range(0, 18, 2)
    )
    assert list(small_fabric.runs) == [executor.run.id]
    assert small_fabric.runs[executor.run.id]["request"]["kind"] == "map"


def test_a_functions_exception_is_its_futures_and_the_others_go_on(executor):
    broken, fine = executor.submit(fail, "gone"), executor.submit(double, 1)
    assert isinstance(broken.exception(20), KeyError)
    with pytest.raises(KeyError, match="gone"):
        broken.result()
    assert fine.result(20) == 2


def test_what_waits_can_be_cancelled_and_what_was_sent_cannot(small_fabric, tmp_path):
    with fabric.Executor(max_workers=1, gpu="H100") as executor:
        blocked = [executor.submit(_until, str(tmp_path / "go")) for _ in range(2)]
        waiting = executor.submit(double, 1)
        _when(lambda: all(future.running() for future in blocked))
        assert not waiting.running()
        assert waiting.cancel()
        assert not blocked[0].cancel()
        (tmp_path / "go").touch()
        done, _ = wait([*blocked, waiting], 20)
        assert len(done) == 3
        with pytest.raises(CancelledError):
            waiting.result(0)
    assert len(small_fabric.node().ran) == 2


def test_shutdown_waits_refuses_more_and_gives_the_leases_back(small_fabric):
    executor = fabric.Executor(max_workers=2, linger=0)
    futures = [executor.submit(double, x) for x in range(5)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(double, 1)
    executor.shutdown()
    _when(lambda: all(lease["state"] == "CLOSED" for lease in small_fabric.leases.values()))
    _when(lambda: executor.run.status == "SUCCEEDED")


def test_shutdown_can_cancel_what_waits(small_fabric, tmp_path):
    executor = fabric.Executor(max_workers=1)
    blocked = executor.submit(_until, str(tmp_path / "go"))
    _when(blocked.running)
    futures = [executor.submit(double, x) for x in range(3)]
    executor.shutdown(wait=False, cancel_futures=True)
    (tmp_path / "go").touch()
    wait(futures, 20)
    assert sum(future.cancelled() for future in futures) >= 2
    assert blocked.result(20) is None


def test_no_lease_is_asked_for_without_a_call_nor_kept_long_without_one(small_fabric):
    with fabric.Executor(gpu="H100", linger=0) as executor:
        assert not small_fabric.runs
        assert executor.submit(double, 2).result(20) == 4
        _when(lambda: small_fabric.leases["lease0"]["state"] == "CLOSED")
        assert executor.submit(double, 3).result(20) == 6
    assert len(small_fabric.leases) == 2


def test_several_leases_work_at_once(small_fabric, tmp_path):
    with fabric.Executor(max_workers=2, gpu="H100") as executor:
        blocked = [executor.submit(_until, str(tmp_path / "go")) for _ in range(2)]
        _when(lambda: len([node for node in small_fabric.nodes.values() if node.ran]) == 2)
        (tmp_path / "go").touch()
        assert [future.result(20) for future in blocked] == [None, None]


def test_a_run_that_cannot_begin_fails_every_future(small_fabric):
    small_fabric.problems = [("insufficient-funds", "no money")]
    with fabric.Executor(gpu="H100") as executor:
        futures = [executor.submit(double, 1)]
        wait(futures, 20)
        assert isinstance(futures[0].exception(0), fabric.Error)
        assert isinstance(executor.submit(double, 1).exception(20), fabric.Error)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"max_workers": 0}, "from 1 to"),
        ({"max_workers": True}, "from 1 to"),
        ({"gpus": "H100"}, "did you mean 'gpu'"),
        ({"dry_run": True}, "no keyword 'dry_run'"),
    ],
)
def test_wrong_keywords_are_refused_before_anything_is_sent(small_fabric, keywords, words):
    with pytest.raises(fabric.InvalidRequest, match=words):
        fabric.Executor(**keywords)
    assert not small_fabric.requests


def test_what_cannot_travel_is_refused_at_submit(small_fabric, executor):
    with pytest.raises(fabric.InvalidRequest, match="cannot be pickled"):
        executor.submit(double, threading.Lock())
    with pytest.raises(fabric.InvalidRequest, match="must be a function"):
        executor.submit(3)
    assert not small_fabric.runs


def _until(path):
    from pathlib import Path

    while not Path(path).exists():
        time.sleep(0.005)


def _when(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


class Shape:
    def __init__(self, sides):
        self.area = lambda: sides * sides


def test_an_executor_that_trusts_takes_what_can_be_pickled(small_fabric):
    with fabric.Executor(max_workers=1, gpu="H100", trust=True) as trusting:
        assert trusting.submit(Shape, 3).result(20).area() == 9
