"""Coroutines of customers' functions, run where the function ran."""

import asyncio

from fabric.wire.coroutines import settled


def test_a_coroutine_is_run_to_its_end_and_the_threads_own_loop_stays():
    async def answer():
        await asyncio.sleep(0)
        return 42

    own = asyncio.new_event_loop()
    asyncio.set_event_loop(own)
    try:
        assert settled(answer()) == 42
        assert asyncio.get_event_loop() is own
    finally:
        asyncio.set_event_loop(None)
        own.close()


def test_what_is_no_coroutine_is_the_value():
    value = object()
    assert settled(value) is value
