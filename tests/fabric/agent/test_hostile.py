"""A customer whose function takes the node's protocol into its own hands, and one that asks and never reads."""

import asyncio
import sys

import cloudpickle

from fabric.agent import dialect
from fabric.agent.customer import BACKLOG_CHARS, UNREAD_BYTES, Customer
from fabric.agent.restoring import Restoring
from fabric.agent.saving import MAX_PIECE_BYTES, MAX_UNANSWERED
from fabric.wire import channel
from fabric.wire.reasons import Reason

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def floods(count, size):
    """Send pieces of a checkpoint without waiting for anybody."""
    from fabric.wire import job

    child = job.ask_for_notice.__self__
    for number in range(1, count + 1):
        child._outbound.send([channel.PIECE, *child._at, 1, number], [bytes(size)])
    return "all sent"


def asks(count):
    from fabric.wire import job

    for _ in range(count):
        job.ask_for_notice(3600)
    job.ask_for_notice(7200)
    return "asked"


def talks(count):
    from fabric.wire import job

    child = job.ask_for_notice.__self__
    for number in range(count):
        child._outbound.send([channel.PROGRESS, *child._at, number, None], [])
    return "told"


async def test_pieces_without_end_end_the_child_and_not_the_nodes_memory(site):
    customer = await site.leased()
    site.agent.send = lambda *_: None  # the agent is slow: it answers nothing
    customer.call(customer.function(floods), 1000, 1 << 20)
    failed = (await customer.outcomes(1))[0]
    assert failed[2] == Reason.CRASHED
    assert "broke its protocol" in failed[3]
    assert sum(header[0] == dialect.PIECE for header, _ in site.agent.frames) <= MAX_UNANSWERED
    customer.call(customer.function(lambda: "well"), task=1)
    assert (await customer.outcomes(1))[1] == "well"


async def test_a_piece_that_is_too_large_ends_the_child(site):
    customer = await site.leased()
    site.agent.send = lambda *_: None
    customer.call(customer.function(floods), 1, MAX_PIECE_BYTES + 1)
    await customer.outcomes(1)
    assert site.node._leases["lease_1"]._saving.unanswered == 0


async def test_who_asks_for_a_notice_again_and_again_has_one_timer(site):
    customer = await site.leased()
    customer.call(customer.function(asks), 2000)
    assert (await customer.outcomes(1))[0] == "asked"
    lease = site.node._leases["lease_1"]
    assert len(lease._background) < 5
    assert 3500 < lease._asked.timer.when() - asyncio.get_running_loop().time() <= 3600, "the earliest counts"


async def test_progress_that_nobody_reads_is_dropped(site):
    customer = await site.leased()
    customer.call(customer.function(lambda: 0), task=1)
    await customer.outcomes(1)
    customer.stream.hold()
    lease = site.node._leases["lease_1"]
    stream = lease._customer._stream
    stream.send([channel.LOG, "run_1", 0, []], bytes(16 << 20))  # far behind already
    before, kept = stream.unsent_bytes, lease._book.kept_bytes
    customer.call(customer.function(talks), 20_000)
    while lease._book.kept_bytes == kept:  # noqa: ASYNC110 - the customer hears nothing
        await asyncio.sleep(0.01)
    assert stream.unsent_bytes < before + 20_000
    customer.stream.release()
    assert (await customer.outcomes(1))[0] == "told"


async def test_who_asks_for_the_same_again_and_again_without_reading_is_not_heard_until_it_reads(site):
    customer = await site.leased()
    customer.call(customer.function(lambda: bytes(1 << 20)))
    await customer.outcomes(1)
    customer.stream.hold()
    for _ in range(400):
        customer.stream.send([channel.RESUME, "run_1", [[0, 1]]])
    stream = site.node._leases["lease_1"]._customer._stream
    largest = 0
    for _ in range(100):
        await asyncio.sleep(0.01)
        largest = max(largest, stream.unsent_bytes)
    assert UNREAD_BYTES < largest < UNREAD_BYTES + (4 << 20)
    customer.stream.release()
    answered = 0
    while answered < 400:
        await customer.next(channel.RESULT)
        answered += 1


async def test_the_agent_is_asked_once_for_a_checkpoint_that_many_attempts_wait_for(site):
    customer = await site.leased()
    site.agent.send = lambda *_: None
    digest = customer.function(lambda: 0)
    for attempt in range(2, 40):
        customer.call(digest, attempt=attempt)
    customer.send([channel.PING, 7])
    await customer.next(channel.PONG)
    assert sum(header[0] == dialect.WANTED for header, _ in site.agent.frames) <= 1


def test_lines_that_nobody_reads_have_a_size():
    customer = Customer()
    for number in range(3000):
        customer.log(("run", 0), [[1, number, "x" * 60_000]])
    kept = [line for _, line in customer._backlog]
    assert sum(len(line[2]) for line in kept) <= BACKLOG_CHARS
    assert kept[-1][1] == 2999, "the newest are kept"


def test_checkpoints_that_wait_have_a_size_together(monkeypatch):
    monkeypatch.setattr("fabric.agent.restoring.MAX_BYTES", 100)
    restoring = Restoring(None, lambda _: True)
    for task in range(3):
        restoring.add_piece("a", bytes(60))
        restoring.arrived("run", task, b"manifest")
    assert [len(restoring.frames("run", task)) for task in range(3)] == [2, 0, 0]
    restoring.forget(("run", 0))
    restoring.add_piece("a", bytes(60))
    restoring.arrived("run", 3, b"manifest")
    assert len(restoring.frames("run", 3)) == 2
