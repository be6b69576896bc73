"""How many tasks share a frame and how many are on their way."""

from hypothesis import given
from hypothesis import strategies as st

from fabric.client.pace import BATCH_MS, MAX_BATCH, Pace


def paced(duration_ms, frames=30):
    pace = Pace()
    for _ in range(frames):
        pace.measured([duration_ms] * pace.batch)
    return pace


def test_small_tasks_share_full_frames_and_some_wait_at_the_lease():
    pace = paced(0)
    assert pace.batch == MAX_BATCH
    assert pace.window > MAX_BATCH


def test_a_frame_holds_about_twenty_ms_of_work():
    assert paced(4).batch == BATCH_MS / 4


def test_of_long_tasks_only_one_is_at_the_lease():
    pace = paced(1000)
    assert (pace.batch, pace.window) == (1, 1)
    assert pace.room(1) == 0
    assert pace.room(0) == 1


def test_before_anything_was_measured_two_single_tasks_are_sent():
    pace = Pace()
    assert (pace.room(0), pace.room(1), pace.room(2)) == (1, 1, 0)


@given(st.lists(st.lists(st.integers(0, 10_000), max_size=64), max_size=40), st.integers(0, 1000))
def test_batches_grow_at_most_twofold_and_windows_are_never_exceeded(frames, out):
    pace = Pace()
    for durations in frames:
        before = pace.batch
        pace.measured(durations)
        assert 1 <= pace.batch <= min(MAX_BATCH, 2 * before)
    assert out + pace.room(out) <= max(out, pace.window)
    assert pace.room(0) >= 1
