"""The notice on its node: the job hears of it, the customer too, and the deadline is kept whatever the job does."""

import time

import pytest

import fabric
from fabric.agent import dialect, events
from fabric.wire import channel
from fabric.wire.reasons import Reason


def give_notice(site, notice_ms, reason=Reason.PREEMPTED, generation=1):
    site.agent.send([dialect.NOTICE, "lease_1", generation, str(reason), notice_ms])


def waits_for_the_hook():
    import threading

    heard = threading.Event()
    left = []
    fabric.on_preempt(lambda seconds: (left.append(seconds), heard.set()))
    print("registered", flush=True)  # noqa: T201 - tells the test how far it is
    heard.wait(20)
    return left, fabric.preempting()


async def test_the_hook_is_called_with_the_seconds_left_and_the_job_may_end_by_itself(site):
    customer = await site.leased()
    customer.call(customer.function(waits_for_the_hook))
    await customer.next(channel.LOG)
    give_notice(site, 10_000)
    header, _ = await customer.next(channel.NOTICE)
    assert header[1] == Reason.PREEMPTED
    assert 0 < header[2] <= 10_000
    left, preempting = (await customer.outcomes(1))[0]
    assert len(left) == 1
    assert 0 < left[0] <= 10
    assert preempting is True


async def test_the_deadline_is_kept_although_the_job_goes_on(site):
    customer = await site.leased()
    customer.call(customer.function(lambda: time.sleep(60)))
    give_notice(site, 300)
    header, _ = await customer.next(channel.CLOSED)
    assert header[1:] == [Reason.PREEMPTED, "a lease of a higher tier needed the GPU"]
    closed = [event for event in site.events() if isinstance(event, events.Closed)]
    assert [event.reason for event in closed] == [Reason.PREEMPTED]


async def test_a_hook_that_hangs_or_raises_moves_no_deadline_and_keeps_no_other_hook_from_being_called(site):
    def stubborn():
        def fails(_):
            raise RuntimeError("no")

        fabric.on_preempt(fails)
        fabric.on_preempt(lambda _: print("second", flush=True) or time.sleep(60))  # noqa: T201
        print("registered", flush=True)  # noqa: T201
        time.sleep(60)

    customer = await site.leased()
    customer.call(customer.function(stubborn))
    await customer.next(channel.LOG)
    give_notice(site, 1500)
    assert (await customer.next(channel.CLOSED))[0][1] == Reason.PREEMPTED
    lines = [entry[2] for header, _ in customer.frames if header[0] == channel.LOG for entry in header[3]]
    assert "second" in lines
    assert any("RuntimeError: no" in line for line in lines)


async def test_a_second_notice_moves_the_deadline_nearer_and_never_away(site):
    customer = await site.leased()
    customer.call(customer.function(lambda: time.sleep(60)))
    give_notice(site, 60_000)
    give_notice(site, 300, Reason.OPERATOR_DRAIN)
    give_notice(site, 90_000)
    assert (await customer.next(channel.CLOSED))[0][1] == Reason.OPERATOR_DRAIN


async def test_a_notice_of_another_generation_is_nobodys(site):
    customer = await site.leased()
    give_notice(site, 0, generation=2)
    customer.call(customer.function(fabric.preempting))
    assert (await customer.outcomes(1))[0] is False


async def test_hooks_of_an_earlier_task_are_forgotten(site):
    def registers():
        fabric.on_preempt(lambda _: print("stale", flush=True))  # noqa: T201

    customer = await site.leased()
    customer.call(customer.function(registers), task=0)
    await customer.outcomes(1)
    customer.call(customer.function(waits_for_the_hook), task=1)
    await customer.next(channel.LOG)
    give_notice(site, 5_000)
    assert (await customer.outcomes(1))[1][1] is True
    lines = [entry[2] for header, _ in customer.frames if header[0] == channel.LOG for entry in header[3]]
    assert "stale" not in lines


async def test_a_customer_who_comes_back_during_the_notice_hears_of_it(site):
    await site.leased()
    give_notice(site, 30_000)
    again = await site.customer()
    assert (await again.next(channel.NOTICE))[0][1] == Reason.PREEMPTED


async def test_a_job_can_have_itself_preempted_on_its_first_attempt_only(site):
    def simulates():
        fabric.simulate_preemption(after=0)
        time.sleep(0.3)
        return fabric.preempting()

    customer = await site.leased(notice_ms=20_000)
    customer.call(customer.function(simulates), task=0, attempt=2)
    assert (await customer.outcomes(1))[0] is False
    customer.call(customer.function(simulates), task=1)
    assert (await customer.outcomes(1))[1] is True


def test_a_moment_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="between 0 and 86400"):
        fabric.simulate_preemption(after=-1)
