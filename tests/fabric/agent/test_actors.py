"""An actor on a node: its tasks run at once in one child, stream, end one by one, and share the lease's time."""
# ruff: noqa: T201 - customers' methods print

import asyncio
import hashlib
import os
import time

import cloudpickle
import pytest

from fabric.agent import events
from fabric.wire import channel, codec, job
from fabric.wire.actor import Actor
from fabric.wire.frames import split
from fabric.wire.reasons import Reason


class Bench:
    """What the tests put on the node."""

    def __init__(self, start=0):
        self.total = start
        self.together = self.most = 0
        self.changed = asyncio.Condition()

    def add(self, n):
        self.total += n
        return self.total

    async def meet(self, n):
        self.together += 1
        self.most = max(self.most, self.together)
        async with self.changed:
            self.changed.notify_all()
            await self.changed.wait_for(lambda: self.most >= n)
        self.together -= 1
        return self.most

    async def count_to(self, n):
        for i in range(n):
            yield i

    def plain(self, n):
        for i in range(n):
            print("part", i)
            yield i
        return "end"

    async def forever(self):
        await asyncio.Event().wait()

    async def endless(self):
        i = 0
        while True:
            yield i
            i += 1

    def stuck(self):
        time.sleep(60)

    def die(self):
        os._exit(3)

    def tokens(self, n):
        job.report_counts({"tokens": n})

    def _hidden(self):
        return 1


class Broken:
    def __init__(self):
        raise KeyError("no weights")


def actor(customer, made, at_once=1):
    packed = cloudpickle.dumps(made)
    digest = hashlib.sha256(packed).digest()
    customer.send([channel.FN, digest, at_once], packed)
    return digest


def call(customer, digest, name, *args, task=0, streams=False, **more):
    customer.call(digest, name, streams, args, {}, task=task, **more)


# `Customer.call` packs (args, kwargs): the child reads (name, streams, args, kwargs) as args.


async def parts(customer, count):
    found = []
    while len(found) < count:
        header, body = await customer.next(channel.PART)
        first, *buffers = split(memoryview(body), header[5])
        found.append((header[2], header[4], codec.decode(first, buffers, types=codec.NoTypes())))
    return found


async def test_an_actor_keeps_its_state_between_tasks(site):
    customer = await site.leased()
    digest = actor(customer, Actor(Bench, (5,)))
    for task in range(3):
        call(customer, digest, "add", 1, task=task)
    assert await customer.outcomes(3) == {0: 6, 1: 7, 2: 8}


async def test_an_object_that_travels_whole_is_started_before_its_first_method(site):
    class Started:
        def start(self):
            self.ready = True

        def look(self):
            return self.ready

    customer = await site.leased()
    call(customer, actor(customer, Actor(Started(), whole=True)), "look")
    assert await customer.outcomes(1) == {0: True}


@pytest.mark.parametrize(
    ("name", "args", "takes"),
    [
        ("add", (), "(n)"),
        ("meet", (1, 2), "(n)"),
        ("count_to", (), "(n)"),
        ("plain", (1, 2), "(n)"),
        ("add", ("x",), ""),
    ],
)
async def test_wrong_arguments_are_a_type_error_that_names_the_right_ones(site, name, args, takes):
    customer = await site.leased()
    call(customer, actor(customer, Actor(Bench)), name, *args)
    error = (await customer.outcomes(1))[0]
    assert isinstance(error, TypeError)
    assert getattr(error, "takes", "") == takes


async def test_tasks_run_at_the_same_time_up_to_the_number_asked_for(site):
    customer = await site.leased()
    digest = actor(customer, Actor(Bench), at_once=3)
    customer.calls(digest, [(task, ("meet", False, (3,), {})) for task in range(3)])
    assert await customer.outcomes(3) == {0: 3, 1: 3, 2: 3}
    for task in range(3, 9):
        call(customer, digest, "meet", 1, task=task)
    assert max((await customer.outcomes(6)).values()) <= 3


@pytest.mark.parametrize("name", ["count_to", "plain"])
async def test_a_generator_streams_its_values_before_the_result(site, name):
    customer = await site.leased()
    call(customer, actor(customer, Actor(Bench)), name, 4, streams=True)
    assert await parts(customer, 4) == [(0, i, i) for i in range(4)]
    assert await customer.outcomes(1) == {0: "end" if name == "plain" else None}


async def test_a_stream_waits_for_its_reader_and_goes_on_when_parts_are_taken(site):
    customer = await site.leased()
    call(customer, actor(customer, Actor(Bench)), "count_to", channel.PARTS_AHEAD + 5, streams=True)
    await parts(customer, channel.PARTS_AHEAD)
    await asyncio.sleep(0.05)
    assert not any(header[0] in (channel.PART, channel.RESULT) for header, _ in customer.frames[customer._read :])
    customer.send([channel.TAKEN, "run_1", 0, 1, channel.PARTS_AHEAD - 1])
    assert [seq for _, seq, _ in await parts(customer, 5)] == list(range(channel.PARTS_AHEAD, channel.PARTS_AHEAD + 5))
    assert await customer.outcomes(1) == {0: None}


async def test_after_a_dropped_connection_the_parts_that_were_not_taken_come_again(site):
    customer = await site.leased()
    call(customer, actor(customer, Actor(Bench)), "count_to", 5, streams=True)
    await parts(customer, 5)
    customer.send([channel.TAKEN, "run_1", 0, 1, 1])
    await customer.outcomes(1)
    customer.stream.close()
    again = await site.customer()
    again.send([channel.RESUME, "run_1", [[0, 1]]])
    assert [seq for _, seq, _ in await parts(again, 3)] == [2, 3, 4]
    assert await again.outcomes(1) == {0: None}


async def test_one_task_is_cancelled_and_the_others_go_on(site):
    customer = await site.leased()
    digest = actor(customer, Actor(Bench), at_once=2)
    call(customer, digest, "forever", task=0)
    call(customer, digest, "endless", task=1, streams=True)
    await parts(customer, 1)
    customer.send([channel.CANCEL, "run_1", [0]])
    assert (await customer.outcomes(1))[0][2] == Reason.CANCELLED_BY_USER
    customer.send([channel.CANCEL, "run_1", []])
    assert (await customer.outcomes(1))[1][2] == Reason.CANCELLED_BY_USER
    call(customer, digest, "add", 1, task=2)
    assert await customer.outcomes(1) == {2: 1}


async def test_a_task_beyond_its_timeout_ends_alone_and_one_that_cannot_be_ended_ends_with_its_process(site):
    customer = await site.leased()
    digest = actor(customer, Actor(Bench), at_once=2)
    call(customer, digest, "add", 1, task=0)
    call(customer, digest, "forever", task=1, timeout_ms=50)
    outcomes = await customer.outcomes(2)
    assert outcomes[1][2] == Reason.TIMEOUT
    call(customer, digest, "add", 1, task=2)
    assert await customer.outcomes(1) == {2: 2}


async def test_when_its_process_ends_all_its_tasks_fail_and_the_object_is_made_anew(site):
    customer = await site.leased()
    digest = actor(customer, Actor(Bench), at_once=2)
    call(customer, digest, "add", 7, task=0)
    await customer.outcomes(1)
    call(customer, digest, "forever", task=1)
    call(customer, digest, "die", task=2)
    outcomes = await customer.outcomes(2)
    assert {outcomes[1][2], outcomes[2][2]} == {Reason.CRASHED}
    call(customer, digest, "add", 1, task=3)
    assert await customer.outcomes(1) == {3: 1}


async def test_an_object_that_cannot_be_made_fails_every_task_with_its_error(site):
    customer = await site.leased()
    digest = actor(customer, Actor(Broken))
    call(customer, digest, "", task=0)
    call(customer, digest, "any", task=1)
    assert all(isinstance(error, KeyError) for error in (await customer.outcomes(2)).values())


async def test_methods_that_are_private_missing_or_called_the_wrong_way_are_refused(site):
    customer = await site.leased()
    digest = actor(customer, Actor(Bench))
    for task, (name, streams) in enumerate([("_hidden", False), ("gone", False), ("add", True), ("count_to", False)]):
        call(customer, digest, name, 1, task=task, streams=streams)
    outcomes = await customer.outcomes(4)
    assert [type(outcomes[task]) for task in range(4)] == [AttributeError, AttributeError, TypeError, TypeError]
    assert "add" in str(outcomes[1])
    assert "stream" in str(outcomes[3])


async def test_functions_and_an_actor_on_one_lease_take_turns(site):
    customer = await site.leased()
    digest, double = actor(customer, Actor(Bench), at_once=4), customer.function(lambda x: 2 * x)
    for task in range(0, 6, 2):
        call(customer, digest, "add", 1, task=task)
        customer.call(double, task, task=task + 1)
    outcomes = await customer.outcomes(6)
    assert [outcomes[task] for task in (1, 3, 5)] == [0, 4, 8]
    assert outcomes[4] == 3


async def test_counts_stand_in_the_tasks_line(site):
    customer = await site.leased()
    call(customer, actor(customer, Actor(Bench)), "tokens", 12)
    await customer.outcomes(1)
    finished = [event for event in site.events() if isinstance(event, events.Finished)]
    assert finished[0].counters == ((("tokens", 12),),)


@pytest.mark.parametrize("at_once", [-1, channel.MAX_AT_ONCE + 1, "many"])
async def test_a_number_of_tasks_at_once_beyond_the_bound_ends_the_connection(site, at_once):
    customer = await site.leased()
    actor(customer, Actor(Bench), at_once=at_once)
    await customer.end()
