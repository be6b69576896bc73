"""What lingers serves the next run of the process, and stands in the way of none that waits."""

import asyncio

import pytest

from fabric.client.lease_pool import HeldLease, LeasePool
from fabric.wire import channel
from fabric.wire.reasons import Reason


class OpenChannel:
    """As much of a channel as a pool uses."""

    def __init__(self):
        self.is_open = True
        self.leaving = None
        self.listener = None

    def close(self):
        self.is_open = False


@pytest.fixture
def released():
    return []


@pytest.fixture
async def pool(released):
    async def release(held, reason):
        released.append((held.id, reason))

    return LeasePool(release, asyncio.ensure_future, lambda *_: None)


def held(name, key=("L4",), price=50_000):
    return HeldLease(name, 1, key, {"price_dc_per_gpu_hour": str(price)}, OpenChannel(), "run_a")


async def test_a_lingering_lease_serves_the_next_run_of_its_kind_only(pool):
    pool.give(held("lease_a"), 60)
    assert pool.take(("H100",), None) is None
    assert pool.take(("L4",), 49_999) is None
    assert pool.take(("L4",), 50_000).id == "lease_a"
    assert pool.take(("L4",), None) is None


async def test_what_lingers_is_released_as_soon_as_a_run_of_the_process_waits(pool, released):
    pool.give(held("lease_a"), 60)
    with pool.waiting():
        await asyncio.sleep(0)
        assert released == [("lease_a", Reason.DONE)]
        pool.give(held("lease_b"), 60)
        await asyncio.sleep(0)
    assert [name for name, _ in released] == ["lease_a", "lease_b"]
    pool.give(held("lease_c"), 60)
    await asyncio.sleep(0)
    assert len(released) == 2


async def test_what_got_its_notice_is_neither_kept_nor_taken(pool, released):
    first, second = held("lease_a"), held("lease_b")
    pool.give(first, 60)
    pool.give(second, 60)
    first.channel.leaving = Reason.PREEMPTED
    pool.on_frame(first.channel, [channel.NOTICE, "preempted", 30_000], memoryview(b""))
    await asyncio.sleep(0)
    assert released == [("lease_a", Reason.DONE)]
    assert pool.take(("L4",), None) is second
    second.channel.leaving = Reason.OPERATOR_DRAIN
    pool.give(second, 60)
    await asyncio.sleep(0)
    assert [name for name, _ in released] == ["lease_a", "lease_b"]
    assert pool.take(("L4",), None) is None
