"""`fabric.arun` and `fabric.amap` against a small real fabric: values, errors, and the end of whoever waits."""

import asyncio
import time

import pytest

import fabric


def double(x):
    return 2 * x


def fail(_):
    raise KeyError("gone")


async def test_several_runs_are_awaited_at_once(small_fabric):
    assert await asyncio.gather(fabric.arun(double, 1, gpu="H100"), fabric.arun(double, 2, gpu="H100")) == [2, 4]
    assert await fabric.arun(pow, 2, kwargs={"exp": 5}, gpu="H100") == 32


async def test_a_functions_exception_is_raised_as_itself(small_fabric):
    with pytest.raises(KeyError, match="gone"):
        await fabric.arun(fail, 1, gpu="H100")


async def test_who_is_cancelled_cancels_the_run(small_fabric, tmp_path):
    waiting = asyncio.create_task(fabric.arun(_until, str(tmp_path / "go"), gpu="H100"))
    await _when(lambda: small_fabric.nodes and small_fabric.node().ran)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await _when(lambda: next(iter(small_fabric.runs.values()))["state"] == "CANCELLED")
    (tmp_path / "go").touch()


async def test_a_map_gives_values_in_the_order_of_its_inputs_or_as_they_come(small_fabric):
    assert [value async for value in fabric.amap(double, range(5), gpu="H100")] == [0, 2, 4, 6, 8]
    loose = [value async for value in fabric.amap(double, range(5), gpu="H100", ordered=False)]
    assert sorted(loose) == [0, 2, 4, 6, 8]


async def test_inputs_may_be_asynchronous(small_fabric):
    async def numbers():
        for n in range(3):
            await asyncio.sleep(0)
            yield n

    assert [value async for value in fabric.amap(double, numbers(), gpu="H100")] == [0, 2, 4]


async def test_a_maps_first_error_ends_it_unless_errors_are_returned(small_fabric):
    with pytest.raises(KeyError):
        [value async for value in fabric.amap(fail, [1], gpu="H100")]
    kept = [value async for value in fabric.amap(fail, [1, 2], gpu="H100", return_exceptions=True)]
    assert [type(value) for value in kept] == [KeyError, KeyError]


async def test_a_map_that_is_left_early_is_cancelled(small_fabric):
    values = fabric.amap(double, iter(range(10_000)), gpu="H100")
    async for _ in values:
        break
    await values.aclose()
    await _when(lambda: next(iter(small_fabric.runs.values()))["state"] == "CANCELLED")


async def test_an_error_of_the_inputs_is_the_callers(small_fabric):
    async def numbers():
        yield 1
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        [value async for value in fabric.amap(double, numbers(), gpu="H100")]


async def test_wrong_keywords_are_refused_before_anything_is_sent(small_fabric):
    with pytest.raises(fabric.InvalidRequest, match="did you mean 'gpu'"):
        await fabric.arun(double, 1, gpus="H100")
    with pytest.raises(fabric.InvalidRequest, match="no keyword 'nodes'"):
        await fabric.arun(double, 1, nodes=2)
    with pytest.raises(fabric.InvalidRequest, match="needs an iterable"):
        await anext(fabric.amap(double, 3))
    with pytest.raises(fabric.InvalidRequest, match="not a dict"):
        await fabric.arun(double, 1, kwargs=3)
    assert not small_fabric.requests


def _until(path):
    from pathlib import Path

    while not Path(path).exists():
        time.sleep(0.005)


async def _when(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it happens in another thread
            await asyncio.sleep(0.005)
