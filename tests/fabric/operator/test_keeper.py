import logging
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.operator import keeper
from fabric.operator.keeper import FIRST_DELAY_S, GCS_GRACE_S, GOOD_RUN_S, LONGEST_DELAY_S, Keeper, next_delay


class Time:
    """Seconds that pass while somebody waits, and half a one with every look when `running`."""

    def __init__(self, *, running=False):
        self.seconds = 0.0
        self.step = 0.5 if running else 0.0

    def now(self):
        self.seconds += self.step
        return self.seconds

    def wait(self, seconds):
        self.seconds += seconds


def kept(tmp_path, script, alive, time, **changed):
    command = ["sh", "-c", script]
    return Keeper(tmp_path, command, alive, **{"wait": time.wait, "now": time.now, "poll_s": 0.001, **changed})


@given(st.integers(FIRST_DELAY_S, LONGEST_DELAY_S), st.floats(0, 10 * GOOD_RUN_S))
def test_the_delay_grows_after_short_runs_up_to_a_minute_and_starts_again_after_a_good_one(delay, ran):
    following = next_delay(delay, ran)
    if ran >= GOOD_RUN_S:
        assert following == FIRST_DELAY_S
    else:
        assert following == min(2 * delay, LONGEST_DELAY_S)


def test_an_agent_that_ends_is_started_again_after_growing_delays(tmp_path, caplog):
    starts = tmp_path / "starts"
    starts.touch()
    with caplog.at_level(logging.WARNING):
        kept(tmp_path, f"echo x >> {starts}", lambda: len(starts.read_text()) < 6, Time()).run()
    assert starts.read_text().split() == ["x"] * 3
    assert [record.args[1] for record in caplog.records] == [1, 2, 4]


def test_the_agent_ends_with_the_clusters_gcs_after_a_grace(tmp_path):
    time = Time(running=True)
    alive = iter([True])
    kept(tmp_path, "exec sleep 1000", lambda: next(alive, False), time).run()
    assert time.seconds > GCS_GRACE_S
    assert not (tmp_path / "agent.pid").exists()


def test_a_gcs_that_comes_back_within_the_grace_keeps_its_agent(tmp_path):
    time = Time(running=True)
    gone_from, gone_to, end = 5, 3 + GCS_GRACE_S, 100
    kept(tmp_path, "exec sleep 1000", lambda: time.seconds < gone_from or gone_to <= time.seconds < end, time).run()
    assert time.seconds > end


def test_a_keeper_that_is_told_to_stop_ends_its_agent(tmp_path):
    pids = []

    def alive():
        if (tmp_path / "agent.pid").exists():
            pids.append(int((tmp_path / "agent.pid").read_text()))
            made.stop()
        return True

    made = kept(tmp_path, "exec sleep 1000", alive, Time())
    made.run()
    assert subprocess.run(["ps", "-p", str(pids[0])], capture_output=True, check=False).returncode != 0


def test_only_one_keeper_works_in_a_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(keeper, "gcs_alive", lambda: pytest.fail("a second keeper went to work"))
    with (tmp_path / "keeper.lock").open("w") as lock:
        keeper.fcntl.flock(lock, keeper.fcntl.LOCK_EX)
        assert keeper.main([str(tmp_path), "true"]) == 0
    assert "another keeper" in caplog.text
