"""Properties of the meter: every line is a difference of one cumulative sum, whatever happens in whatever order."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.agent.events import Closed, Finished, Opened, Passed, Returned, Ticked
from fabric.agent.meter import MINIMUM_MS, LeaseMeter, MeterError

GPUS = (("GPU-a", 1000), ("GPU-b", 1000))
MS = 1_000_000


def opened(ns: int = 0) -> Opened:
    return Opened("lease_1", 1, ns, "run_0", "session_1", GPUS, False)


@st.composite
def histories(draw) -> list:
    """A lease's events as a node would write them: at most two frames at the child, results in order."""
    now = draw(st.integers(0, 10**12))
    events: list = [opened(now)]
    frames: list[tuple[str, list[int]]] = []
    task = 0
    for _ in range(draw(st.integers(0, 25))):
        now += draw(st.integers(0, 3_000 * MS))
        step = draw(st.sampled_from(["pass", "finish", "return", "tick"]))
        if step == "pass" and len(frames) < 2:
            run, count = f"run_{draw(st.integers(0, 2))}", draw(st.integers(1, 5))
            frames.append((run, list(range(task, task + count))))
            task += count
            events.append(Passed("lease_1", 1, now, run, tuple((n, 1) for n in frames[-1][1])))
        elif step == "finish" and frames:
            run, waiting = frames[0]
            ended = [waiting.pop(0) for _ in range(draw(st.integers(1, len(waiting))))]
            lines = tuple((n, 1, "done", b"", draw(st.integers(0, 10**10))) for n in ended)
            events.append(Finished("lease_1", 1, now, run, lines))
        elif step == "return" and frames:
            run, waiting = frames.pop()
            events.append(Returned("lease_1", 1, now, run, tuple((n, 1) for n in waiting)))
        elif step == "tick":
            events.append(Ticked("lease_1", 1, now, (0, 0), (0, 0)))
        frames = [frame for frame in frames if frame[1]]
    for run, waiting in frames:
        now += draw(st.integers(0, 3_000 * MS))
        events.append(Finished("lease_1", 1, now, run, tuple((n, 1, "crashed", b"", 0) for n in waiting)))
    events.append(Closed("lease_1", 1, now + draw(st.integers(0, 3_000 * MS)), "done"))
    return events


def fold(events: list) -> tuple[LeaseMeter, list]:
    meter, lines = LeaseMeter(events[0]), []
    for event in events[1:]:
        lines += meter.apply(event)
    return meter, lines


@given(histories())
def test_tasks_and_idle_add_up_exactly_to_the_lease(events):
    meter, lines = fold(events)
    gpus, runs = meter.gpu_lines(), meter.run_lines()
    assert sum(gpu.gpu_ms for gpu in gpus) == sum(run.gpu_ms for run in runs)
    worked = sum(line.gpu_ms for line in lines)
    returned = any(isinstance(event, Returned) for event in events)
    idle = sum(run.idle_ms for run in runs)
    if not returned:
        assert worked + idle == sum(gpu.gpu_ms for gpu in gpus)
    assert worked + idle <= sum(gpu.gpu_ms for gpu in gpus)


@given(histories())
def test_a_lease_is_billed_its_whole_time_rounded_down_but_at_least_a_second(events):
    meter, _ = fold(events)
    whole = (events[-1].ns - events[0].ns) // MS
    assert {gpu.gpu_ms for gpu in meter.gpu_lines()} == {max(MINIMUM_MS, whole)}


@given(histories())
def test_tasks_follow_one_another_without_overlap(events):
    _, lines = fold(events)
    for before, after in pairwise(lines):
        assert before.start_ms <= before.end_ms <= after.start_ms <= after.end_ms
        assert before.gpu_ms == (before.end_ms - before.start_ms) * len(GPUS)


@given(histories(), st.integers(0, 30))
def test_a_meter_that_is_stored_and_restored_goes_on_as_if_it_never_was(events, cut):
    whole, lines = fold(events)
    at = 1 + min(cut, len(events) - 2)
    half, first = fold(events[:at])
    half = LeaseMeter.from_state(half.to_state())
    second = [line for event in events[at:] for line in half.apply(event)]
    assert first + second == lines
    assert half.to_state() == whole.to_state()


@given(histories())
def test_cumulative_lines_never_go_down(events):
    meter = LeaseMeter(events[0])
    last, by_run = 0, {}
    for event in events[1:]:
        meter.apply(event)
        now = sum(gpu.gpu_ms for gpu in meter.gpu_lines())
        assert now >= last
        last = now
        for run in meter.run_lines():
            assert run.gpu_ms >= by_run.get(run.run, 0)
            by_run[run.run] = run.gpu_ms


def test_idle_time_belongs_to_the_run_that_used_the_lease_last():
    meter = LeaseMeter(opened())
    meter.apply(Passed("lease_1", 1, 100 * MS, "run_1", ((0, 1),)))
    (line,) = meter.apply(Finished("lease_1", 1, 300 * MS, "run_1", ((0, 1, "done", b"", 5),)))
    meter.apply(Closed("lease_1", 1, 2_000 * MS, "done"))
    assert (line.start_ms, line.end_ms, line.gpu_ms) == (100, 300, 400)
    assert {run.run: (run.gpu_ms, run.idle_ms) for run in meter.run_lines()} == {
        "run_0": (200, 200),
        "run_1": (3_800, 3_400),
    }


def test_tasks_of_one_frame_share_its_interval_by_the_childs_own_measure():
    meter = LeaseMeter(opened())
    meter.apply(Passed("lease_1", 1, 0, "run_1", ((0, 1), (1, 1))))
    lines = meter.apply(Finished("lease_1", 1, 1_000 * MS, "run_1", ((0, 1, "done", b"", 10), (1, 1, "done", b"", 30))))
    assert [(line.start_ms, line.end_ms) for line in lines] == [(0, 250), (250, 1_000)]


def test_energy_between_two_results_belongs_to_the_later_ones_tasks():
    meter = LeaseMeter(opened())
    meter.apply(Passed("lease_1", 1, 0, "run_1", ((0, 1), (1, 1)), energy_mj=50))
    lines = meter.apply(
        Finished("lease_1", 1, MS, "run_1", ((0, 1, "done", b"", 1), (1, 1, "done", b"", 1)), energy_mj=150)
    )
    assert [line.energy_mj for line in lines] == [50, 50]


@pytest.mark.parametrize(
    "event",
    [
        Finished("lease_1", 1, 20 * MS, "run_1", ((7, 1, "done", b"", 0),)),
        Finished("lease_1", 1, 20 * MS, "run_2", ((0, 1, "done", b"", 0),)),
        Finished("lease_1", 1, 5 * MS, "run_1", ((0, 1, "done", b"", 0),)),
        Finished("lease_1", 1, 20 * MS, "run_1", ((1, 1, "done", b"", 0),)),
        Returned("lease_1", 1, 20 * MS, "run_1", ((9, 1),)),
        Passed("lease_1", 1, 20 * MS, "run_1", ()),
        Closed("lease_1", 1, 20 * MS, "done"),
        opened(),
    ],
)
def test_an_event_that_cannot_follow_is_refused_and_changes_nothing(event):
    meter = LeaseMeter(opened())
    meter.apply(Passed("lease_1", 1, 10 * MS, "run_1", ((0, 1),)))
    meter.apply(Passed("lease_1", 1, 10 * MS, "run_1", ((1, 1),)))
    before = meter.to_state()
    with pytest.raises(MeterError):
        meter.apply(event)
    assert meter.to_state() == before


def test_nothing_is_metered_after_the_close():
    meter = LeaseMeter(opened())
    meter.apply(Closed("lease_1", 1, 5_000 * MS, "done"))
    with pytest.raises(MeterError):
        meter.apply(Ticked("lease_1", 1, 6_000 * MS, (0, 0), (0, 0)))


@st.composite
def crowds(draw) -> list:
    """An actor's lease: tasks that start and end in any order, several at a time."""
    now = draw(st.integers(0, 10**12))
    events: list = [opened(now)]
    flying: list[int] = []
    task = energy = 0
    for _ in range(draw(st.integers(0, 40))):
        now += draw(st.integers(0, 40 * MS))
        energy += draw(st.integers(0, 50))
        step = draw(st.sampled_from(["pass", "finish", "tick"]))
        if step == "pass":
            flying.append(task)
            events.append(Passed("lease_1", 1, now, "run_1", ((task, 1),), energy, at_once=True))
            task += 1
        elif step == "finish" and flying:
            ended = flying.pop(draw(st.integers(0, len(flying) - 1)))
            counters = draw(st.sampled_from([(), ((("tokens", 3),),)]))
            events.append(Finished("lease_1", 1, now, "run_1", ((ended, 1, "done", b"", 0),), energy, counters))
        else:
            events.append(Ticked("lease_1", 1, now, (0, 0), (0, 0)))
    events += [Finished("lease_1", 1, now, "run_1", ((ended, 1, "crashed", b"", 0),), energy) for ended in flying]
    events.append(Closed("lease_1", 1, now + draw(st.integers(0, 3_000 * MS)), "done"))
    return events


@given(crowds())
def test_tasks_at_once_and_idle_add_up_exactly_to_the_lease(events):
    meter, lines = fold(events)
    idle = sum(run.idle_ms for run in meter.run_lines())
    assert sum(line.gpu_ms for line in lines) + idle == sum(gpu.gpu_ms for gpu in meter.gpu_lines())
    assert all(line.gpu_ms <= (line.end_ms - line.start_ms + 1) * len(GPUS) for line in lines)
    used = [event.energy_mj for event in events if isinstance(event, (Passed, Finished))]
    assert sum(line.energy_mj for line in lines) <= max(used, default=0)


@given(crowds(), st.integers(0, 50))
def test_a_meter_of_tasks_at_once_goes_on_from_its_stored_state(events, cut):
    whole, lines = fold(events)
    at = 1 + min(cut, len(events) - 2)
    half, first = fold(events[:at])
    half = LeaseMeter.from_state(half.to_state())
    assert first + [line for event in events[at:] for line in half.apply(event)] == lines
    assert half.to_state() == whole.to_state()


def test_time_is_divided_by_the_number_of_tasks_that_share_it():
    meter = LeaseMeter(opened())
    for task, at_ms in ((0, 0), (1, 100)):
        meter.apply(Passed("lease_1", 1, at_ms * MS, "run_1", ((task, 1),), at_once=True))
    (first,) = meter.apply(Finished("lease_1", 1, 300 * MS, "run_1", ((1, 1, "done", b"", 0),)))
    (second,) = meter.apply(Finished("lease_1", 1, 400 * MS, "run_1", ((0, 1, "done", b"", 0),)))
    assert (first.start_ms, first.end_ms, first.gpu_ms) == (100, 300, 100 * len(GPUS))
    assert (second.start_ms, second.end_ms, second.gpu_ms) == (0, 400, (100 + 100 + 100) * len(GPUS))


def test_tasks_at_once_beside_tasks_in_turn_are_refused():
    meter = LeaseMeter(opened())
    meter.apply(Passed("lease_1", 1, 0, "run_1", ((0, 1),)))
    with pytest.raises(MeterError, match="at once"):
        meter.apply(Passed("lease_1", 1, 0, "run_1", ((1, 1),), at_once=True))


@given(histories(), st.integers(1, 7))
def test_lines_that_are_taken_from_time_to_time_tell_in_the_end_what_all_lines_tell(events, every):
    meter, told = LeaseMeter(events[0]), {}
    for number, event in enumerate(events[1:]):
        meter.apply(event)
        if number % every == 0:
            told |= {line.run: line for line in meter.take_run_lines()}
            meter = LeaseMeter.from_state(meter.to_state())
            assert meter.take_run_lines() == ()
    told |= {line.run: line for line in meter.take_run_lines()}
    assert told == {line.run: line for line in meter.run_lines()}
