"""Wake-ups are never lost between reading the rows and waiting."""

import asyncio

from api.signals import Signals


async def test_a_notice_wakes_who_waits_and_only_them():
    signals = Signals()
    signals.bind(asyncio.get_running_loop())
    waits = asyncio.create_task(signals.wait("a", signals.seen("a"), 5))
    other = asyncio.create_task(signals.wait("b", signals.seen("b"), 0.05))
    await asyncio.sleep(0)
    signals.notify("a")
    assert await waits
    assert not await other


async def test_a_notice_between_looking_and_waiting_is_not_lost():
    signals = Signals()
    signals.bind(asyncio.get_running_loop())
    seen = signals.seen("a")
    await asyncio.to_thread(signals.notify, "a")
    await asyncio.sleep(0)
    assert await signals.wait("a", seen, 0)


async def test_cancelling_a_waiter_at_the_moment_of_its_notice_cancels_it():
    signals = Signals()
    signals.bind(asyncio.get_running_loop())
    waits = asyncio.create_task(signals.wait("a", signals.seen("a"), 5))
    await asyncio.sleep(0)
    signals.notify("a")
    waits.cancel()
    await asyncio.wait([waits])
    assert waits.cancelled()
