"""`fabric.actor` against a small real fabric: state, streams, cancelling, and what happens when the lease is lost."""

import asyncio
import gc
import threading

import pytest

import fabric
from fabric.client import session as sessions
from fabric.wire import channel


class Counter:
    def __init__(self, start=0):
        self.n = start

    def add(self, k=1):
        self.n += k
        return self.n

    def fail(self):
        raise KeyError("gone")

    def up_to(self, n):
        yield from range(n)

    def stops(self, n):
        yield from range(n)
        raise KeyError("after some")


class Broken:
    def __init__(self):
        raise OSError("no weights")

    def any(self):
        return 1


@pytest.fixture
def counter(small_fabric):
    with fabric.actor(Counter, gpu="H100", max_concurrency=4)(5) as made:
        yield made


def until(small_fabric, condition):
    """Wait for something that happens elsewhere soon."""
    changed = threading.Event()
    for _ in range(500):
        if condition():
            return
        changed.wait(0.01)
    raise AssertionError("it did not happen")


def test_calls_share_the_objects_state_and_are_tasks_of_one_run(small_fabric, counter):
    assert counter.add.remote() == 6
    assert counter.add.remote(k=2) == 8
    assert list(counter.add.map([1, 1, 1])) == [9, 10, 11]
    (run,) = small_fabric.runs.values()
    assert run["request"]["kind"] == "actor"
    assert len(small_fabric.leases) == 1


def test_spawn_gives_a_future_that_can_also_be_awaited(counter):
    assert counter.add.spawn().result(10) == 6

    async def both():
        return await asyncio.gather(counter.add.spawn(), counter.add.spawn())

    assert sorted(asyncio.run(both())) == [7, 8]


def test_an_exception_of_a_method_is_raised_as_itself_and_the_object_lives_on(counter):
    with pytest.raises(KeyError, match="gone"):
        counter.fail.remote()
    assert counter.add.remote() == 6


def test_a_stream_is_read_with_for_and_with_async_for(small_fabric, counter):
    assert list(counter.up_to.stream(40)) == list(range(40))
    assert max(small_fabric.node().read_to.values()) >= 39 - channel.PARTS_AHEAD  # else the node had held the last back

    async def read():
        return [value async for value in counter.up_to.stream(5)]

    assert asyncio.run(read()) == list(range(5))


def test_a_streams_exception_comes_after_its_values(counter):
    read = []
    with pytest.raises(KeyError, match="after some"):
        read.extend(counter.stops.stream(3))
    stream = counter.stops.stream(2)
    assert [next(stream), next(stream)] == [0, 1]


def test_a_stream_that_is_left_early_is_ended_over_there(small_fabric, counter):
    with counter.up_to.stream(10**9) as stream:
        assert next(stream) == 0
    until(small_fabric, lambda: small_fabric.node().cancelled)
    assert list(stream) == []
    assert counter.add.remote() == 6


def test_a_lost_lease_makes_the_object_anew_and_sends_its_calls_again(small_fabric, counter):
    assert counter.add.remote(10) == 15
    node = small_fabric.node()

    async def lose():
        await node.send(["closed", "operator_lost", "as the test wants"])

    small_fabric.leases[node.lease]["state"] = "LOST"
    small_fabric.on_loop(lose())
    assert counter.add.remote(1) == 6
    assert len(small_fabric.leases) == 2


def test_a_stream_that_was_read_in_part_is_not_begun_again(small_fabric, counter):
    stream = counter.up_to.stream(10**9)
    assert next(stream) == 0
    node = small_fabric.node()
    small_fabric.leases[node.lease]["state"] = "LOST"
    small_fabric.on_loop(node.send(["closed", "operator_lost", "as the test wants"]))
    with pytest.raises(fabric.OperatorLost):
        for _ in stream:
            pass


def test_close_ends_the_run_and_releases_the_lease(small_fabric):
    made = fabric.actor(Counter)()
    assert made.add.remote() == 1
    made.close()
    until(small_fabric, lambda: small_fabric.runs[made.id]["state"] == "SUCCEEDED")
    until(small_fabric, lambda: all(lease["state"] == "CLOSED" for lease in small_fabric.leases.values()))
    with pytest.raises(fabric.InvalidRequest, match="closed"):
        made.add.remote()
    made.close()


def test_an_object_nobody_holds_any_more_gives_its_lease_back(small_fabric):
    made = fabric.actor(Counter)()
    call = made.add.spawn()
    run = made.id
    del made
    gc.collect()
    assert call.result(10) == 1
    del call
    gc.collect()
    until(small_fabric, lambda: small_fabric.runs[run]["state"] == "SUCCEEDED")


def test_an_object_that_cannot_be_made_says_so_in_every_call(small_fabric):
    with fabric.actor(Broken)() as made, pytest.raises(OSError, match="no weights"):
        made.any.remote()


def test_wrong_names_and_keywords_are_refused_before_anything_is_sent(small_fabric, counter):
    with pytest.raises(AttributeError, match="did you mean 'add'"):
        counter.ad  # noqa: B018
    with pytest.raises(TypeError, match=r"call add\.remote\("):
        counter.add(1)
    with pytest.raises(AttributeError, match="no public method"):
        counter._n  # noqa: B018
    with pytest.raises(fabric.InvalidRequest, match="max_concurrency"):
        fabric.actor(Counter, max_concurrency=0)
    with pytest.raises(fabric.InvalidRequest, match="did you mean 'max_concurrency'"):
        fabric.actor(Counter, max_concurency=2)
    with pytest.raises(fabric.InvalidRequest, match="max_parallel"):
        fabric.actor(Counter, max_parallel=2)
    with pytest.raises(fabric.InvalidRequest, match="needs a class"):
        fabric.actor(3)


def test_it_decorates_a_class(small_fabric):
    @fabric.actor(gpu="H100")
    class Local(Counter):
        pass

    with Local(1) as made:
        assert made.add.remote() == 2


def test_a_cancelled_call_is_taken_back(small_fabric, counter):
    call = counter.up_to.spawn(1)
    call.cancel()
    assert call.cancelled()
    sessions.current().call(asyncio.sleep(0.05))
    assert counter.add.remote() == 6


class Place:
    def read(self, name):
        import os
        from pathlib import Path

        return os.environ.get("FAB_TOKEN"), Path(name).read_text()


class Leaky:
    def __init__(self):
        import os

        raise OSError(f"no access with {os.environ['FAB_TOKEN']}")

    def any(self):
        return 1


def test_an_object_finds_its_secrets_and_its_folder_and_keeps_them(small_fabric, tmp_path, monkeypatch):
    monkeypatch.setenv("FAB_TOKEN", "before")  # and put back at the end
    monkeypatch.chdir(tmp_path)  # the small node is this process
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "a.txt").write_text("weights")
    with fabric.actor(Place, workdir=str(tmp_path / "w"), secrets={"FAB_TOKEN": "s3cret"})() as place:
        assert [place.read.remote("a.txt") for _ in range(2)] == [("s3cret", "weights")] * 2
    request = next(iter(small_fabric.runs.values()))["request"]
    assert "s3cret" not in str(request)
    with (
        fabric.actor(Leaky, secrets={"FAB_TOKEN": "s3cret"})() as leaky,
        pytest.raises(OSError, match="no access") as caught,
    ):
        leaky.any.remote()
    assert "s3cret" not in str(caught.value)
    assert "FAB_TOKEN" in str(caught.value)
