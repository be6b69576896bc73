"""Processes: who is below whom, and what is killed with whom."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from fabric.local.part import FIRST_DELAY_S, LONGEST_DELAY_S, STEADY_S, Part
from fabric.local.processes import descendants, find_descendant, is_alive, kill_tree

SLEEP = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
ADOPTING = textwrap.dedent(
    f"""
    import os, subprocess, sys, time
    from fabric.local.processes import adopt_orphans, descendants, kill_orphans
    adopt_orphans()
    kept = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
    middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}])"
    subprocess.run([sys.executable, "-c", middle])
    assert len(descendants(os.getpid())) == 2
    kill_orphans([kept.pid])
    while len(descendants(os.getpid())) > 1:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        time.sleep(0.01)
    assert kept.poll() is None
    kept.kill()
    kept.wait()
    """
)


def test_a_tree_is_seen_and_killed_as_a_whole():
    root = subprocess.Popen([sys.executable, "-c", PARENT])
    _eventually(lambda: len(descendants(root.pid)) == 1)
    (child,) = descendants(root.pid)
    name = Path(f"/proc/{child}/comm").read_text().strip()
    assert find_descendant(root.pid, name) == child
    assert find_descendant(root.pid, "raylet") is None
    assert is_alive(child, name)
    kill_tree(root.pid)
    assert root.wait(10) == -9
    _eventually(lambda: _is_gone(child))


def test_orphans_are_killed_and_known_children_are_not():
    subprocess.run([sys.executable, "-c", ADOPTING], check=True, timeout=30)


def test_a_part_starts_again_later_each_time_and_at_once_after_it_was_steady(tmp_path):
    part = Part("sleeper", [sys.executable, "-c", SLEEP], dict(os.environ), tmp_path, tmp_path / "log")
    delays = []
    for _ in range(12):
        part.process = subprocess.Popen([sys.executable, "-c", ""])
        part.process.wait()
        part.started_at = 100.0
        part.ended(1, 101.0)
        delays.append(part.restart_at - 101.0)
    assert delays == sorted(delays)
    assert (round(delays[0], 6), delays[-1]) == (FIRST_DELAY_S, LONGEST_DELAY_S)
    part.process = subprocess.Popen([sys.executable, "-c", ""])
    part.process.wait()
    part.ended(1, 100.0 + STEADY_S)
    assert part.failures == 0


def test_a_parts_last_words_are_the_end_of_its_log(tmp_path):
    part = Part("talker", [], {}, tmp_path, tmp_path / "log")
    assert part.last_words() == "it said nothing"
    (tmp_path / "log").write_text("one\ntwo\nthree\n")
    assert part.last_words(2) == "two / three"


def test_what_was_logged_before_a_part_was_started_is_not_its_last_words(tmp_path):
    (tmp_path / "log").write_text("an older life\n")
    part = Part("talker", [sys.executable, "-c", "print('this one')"], {}, tmp_path, tmp_path / "log")
    part.start()
    assert part.process is not None
    part.process.wait()
    assert part.last_words() == "this one"


def _is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _eventually(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_part_that_was_too_slow_for_its_own_deadline_is_worth_one_more_try(tmp_path):
    talk = "print('the node timed out during startup')"
    for says, expected in (("timed out", [True, False]), ("another word", [False, False]), ("", [False, False])):
        part = Part(
            "slow", [sys.executable, "-c", talk], dict(os.environ), tmp_path, tmp_path / "log", gives_up_saying=says
        )
        seen = []
        for _ in range(2):
            part.start()
            assert part.process is not None
            part.ended(part.process.wait(10), time.monotonic())
            seen.append(part.was_too_slow())
        assert seen == expected
