"""The book of a lease's tasks beside a plain model: nothing runs twice, nothing is lost, cancels hit what they name."""

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.agent.tasks import IN_FLIGHT, TASK_BYTES, Call, Outcome, Task, TaskBook, failed, parse_call
from fabric.wire import channel
from fabric.wire.frames import FrameError
from fabric.wire.reasons import Reason


def call(tasks, run="run_1", attempt=1) -> Call:
    return Call(run, b"digest", 0, [Task(task, attempt, (2,), memoryview(b"ab")) for task in tasks])


def done(task: int, attempt: int = 1) -> Outcome:
    return Outcome(False, [task, attempt, 0, 0, 0, 0, [1]], b"x")


@given(st.lists(st.tuples(st.sampled_from(["add", "again", "pass", "finish", "die", "ack"]), st.integers(0, 7))))
def test_every_task_reaches_a_child_and_ends_once(steps):
    book, added, ran, ended, acked = TaskBook(), [], [], set(), set()
    for step, n in steps:
        if step == "add":
            fresh = [len(added) + i for i in range(1 + n % 3)]
            added += fresh
            assert book.add(call(fresh)) == []
        elif step == "again" and added:
            task = added[n % len(added)]
            repeated = book.add(call([task]))
            if task in acked:
                ran = [x for x in ran if x != task]
                acked.discard(task)
                ended.discard(task)
            assert bool(repeated) == (task in ended)
        elif step == "pass":
            book.next_call()
            assert len(book.flying) <= IN_FLIGHT
        elif step == "finish" and book.flying:
            task = book.flying[0].tasks[0].task
            book.land("run_1", [(task, 1)])
            book.finish("run_1", task, 1, done(task))
            assert task not in ran
            ran.append(task)
            ended.add(task)
        elif step == "die":
            book.requeue(book.ground())
        elif step == "ack" and ended:
            task = sorted(ended)[n % len(ended)]
            book.ack("run_1", [task])
            acked.add(task)
    while book.flying or book.waiting:
        book.next_call()
        task = book.flying[0].tasks[0].task
        book.land("run_1", [(task, 1)])
        book.finish("run_1", task, 1, done(task))
        assert task not in ran
        ran.append(task)
    assert set(ran) == set(added)
    assert book.waiting_bytes == 0


def test_resume_tells_what_is_done_waits_for_what_runs_and_names_what_never_came():
    book = TaskBook()
    book.add(call([0, 1]))
    book.next_call()
    book.land("run_1", [(0, 1)])
    book.finish("run_1", 0, 1, done(0))
    outcomes, unknown = book.resume("run_1", [[0, 1], [1, 1], [2, 1]])
    assert [key for key, _ in outcomes] == [("run_1", 0)]
    assert unknown == [2]
    assert book.resume("run_2", [[0, 1]]) == ([], [0])


def test_an_older_attempt_neither_runs_nor_answers_for_a_newer_one():
    book = TaskBook()
    book.add(call([0], attempt=2))
    assert book.add(call([0], attempt=1)) == []
    assert len(book.waiting) == 1
    book.finish("run_1", 0, 1, done(0))
    assert book.resume("run_1", [[0, 2]]) == ([], [])
    assert book.resume("run_1", [[0, 3]]) == ([], [0])


def test_kept_results_are_counted_until_they_are_acknowledged():
    book = TaskBook()
    book.add(call([0]))
    book.next_call()
    book.land("run_1", [(0, 1)])
    book.finish("run_1", 0, 1, done(0))
    assert book.kept_bytes == 1
    book.ack("run_1", [0, 5])
    book.ack("run_1", [0])
    assert book.kept_bytes == 0


def test_waiting_tasks_without_arguments_are_counted_too():
    book = TaskBook()
    for task in range(4):
        book.add(Call("run_1", b"digest", 0, [Task(task, 1, (0,), memoryview(b""))]))
    assert book.waiting_bytes == 4 * TASK_BYTES
    book.cancel("run_1", [0])
    while book.next_call() is not None:
        book.land("run_1", [(book.flying[0].tasks[0].task, 1)])
    assert book.waiting_bytes == 0


def test_an_unfinished_task_cannot_be_acknowledged_away():
    book = TaskBook()
    book.add(call([0]))
    book.ack("run_1", [0])
    assert book.resume("run_1", [[0, 1]]) == ([], [])


def test_cancel_takes_waiting_tasks_out_and_dooms_those_at_the_child():
    book = TaskBook()
    book.add(call([0]))
    book.next_call()
    book.add(call([1, 2]))
    book.add(call([0], run="run_2"))
    assert [task.task for task in book.cancel("run_1", [0, 1])] == [1]
    assert book.doomed == {("run_1", 0)}
    assert [[task.task for task in waiting.tasks] for waiting in book.waiting] == [[2], [0]]
    assert [task.task for task in book.cancel("run_1", [])] == [2]
    assert [waiting.run for waiting in book.waiting] == ["run_2"]


def test_the_running_task_is_found_by_its_number_in_the_childs_life():
    book = TaskBook()
    book.add(call([5, 6]))
    book.add(call([7]))
    book.next_call()
    book.next_call()
    book.land("run_1", [(5, 1)])
    assert [book.running(n) and book.running(n)[1].task for n in range(5)] == [None, None, 6, 7, None]


@pytest.mark.parametrize("answer", [[(1, 1)], [(0, 2)], [(0, 1), (2, 1)], [(0, 1), (1, 1), (2, 1), (3, 1)]])
def test_a_child_that_answers_for_other_tasks_than_its_own_is_caught(answer):
    book = TaskBook()
    book.add(call([0, 1]))
    book.add(call([2]))
    book.next_call()
    book.next_call()
    with pytest.raises(FrameError):
        book.land("run_1", answer)


def test_results_of_two_frames_may_come_together():
    book = TaskBook()
    book.add(call([0, 1]))
    book.add(call([2, 3]))
    book.next_call()
    book.next_call()
    book.land("run_1", [(0, 1), (1, 1), (2, 1)])
    assert [task.task for task in book.flying[0].tasks] == [3]


def test_a_call_is_cut_into_its_tasks():
    bodies = [cloudpickle.dumps(((n,), {})) for n in range(3)]
    header = [channel.CALL, "run_1", b"digest", [[n, 1, [len(body)]] for n, body in enumerate(bodies)], 0]
    parsed = parse_call(header, b"".join(bodies))
    assert [bytes(task.pieces) for task in parsed.tasks] == bodies
    assert parsed.header() == header


@pytest.mark.parametrize(
    "entries",
    [
        [[0, 1, [2]], [0, 1, [2]]],
        [[n, 1, [0]] for n in range(257)],
        [[0, 0, [4]]],
        [[0, 1, [-1, 5]]],
        [["x", 1, [4]]],
        [[10**9 + 1, 1, [4]]],
        [[0, 2**31, [4]]],
        7,
    ],
)
def test_a_call_that_is_not_whole_is_refused(entries):
    with pytest.raises(FrameError):
        parse_call([channel.CALL, "run_1", b"digest", entries, 0], b"abcd")


@pytest.mark.parametrize("run", ["", "run_\0", "run 1", "r" * 81])
def test_a_call_of_what_is_no_run_is_refused_as_its_receipts_would_be(run):
    with pytest.raises(FrameError, match="is not the id of a run"):
        parse_call([channel.CALL, run, b"digest", [[0, 1, [4]]], 0], b"abcd")


def test_the_first_outcome_of_an_attempt_stands():
    book = TaskBook()
    book.add(call([0]))
    book.finish("run_1", 0, 1, done(0))
    book.finish("run_1", 0, 1, failed(0, 1, Reason.CRASHED, ""))
    ((_, outcome),), _ = book.resume("run_1", [[0, 1]])
    assert not outcome.failed
