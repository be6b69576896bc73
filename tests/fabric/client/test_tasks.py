"""Invariant 20: never two accepted results for one task, whatever is lost, late or repeated."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric.client.tasks import Tasks
from fabric.wire.machines import TaskState
from fabric.wire.reasons import Reason
from fabric.wire.retry import Retry

LEASES = st.sampled_from(["a", "b", "c"])


class TasksMachine(RuleBasedStateMachine):
    """Leases answer, fail and vanish in any order; every message may come again later."""

    @initialize(retries=st.integers(0, 3))
    def begin(self, retries):
        self.tasks = Tasks(Retry(on=("interruption",), max=retries))
        self.retries = retries
        self.now = 0.0
        self.sent = []
        self.accepted = []
        self.failed = []
        self.count = 0

    @rule()
    def add(self):
        self.tasks.add(self.count, [b"x" * (self.count % 3)])
        self.count += 1

    @rule(lease=LEASES, count=st.integers(1, 3), max_bytes=st.integers(1, 4))
    def take(self, lease, count, max_bytes):
        taken = self.tasks.take(lease, count, max_bytes, self.now)
        assert len(taken) <= count
        assert sum(task.size for task in taken) <= max_bytes or len(taken) == 1
        self.sent += [(lease, task.index, task.attempt) for task in taken]

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def answer(self, data):
        lease, index, attempt = data.draw(st.sampled_from(self.sent))
        if self.tasks.accept(lease, index, attempt) is not None:
            self.accepted.append(index)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), reason=st.sampled_from([Reason.INTERNAL_ERROR, Reason.CRASHED]))
    def fail(self, data, reason):
        ended = self.tasks.end(*data.draw(st.sampled_from(self.sent)), reason, "", self.now)
        if ended is not None and ended.retry_at is None:
            self.failed.append(ended.task.index)

    @rule(lease=LEASES)
    def lose(self, lease):
        for ended in self.tasks.lose(lease, Reason.OPERATOR_LOST, "", self.now):
            assert ended.attempt <= self.retries + 1
            if ended.retry_at is None:
                self.failed.append(ended.task.index)

    @invariant()
    def no_task_ends_twice(self):
        ends = self.accepted + self.failed
        assert len(ends) == len(set(ends))

    @invariant()
    def every_task_is_somewhere(self):
        assert self.count == self.tasks.open + self.tasks.done + self.tasks.failed
        assert (self.tasks.done, self.tasks.failed) == (len(self.accepted), len(self.failed))

    @invariant()
    def a_task_is_out_on_one_lease_only(self):
        out = [index for tasks in self.tasks.out.values() for index in tasks]
        assert len(out) == len(set(out))


TestTasks = TasksMachine.TestCase
TestTasks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def one_out(retry):
    tasks = Tasks(retry)
    tasks.add(0, [b""])
    tasks.seal()
    tasks.take("a", 1, 100, 0.0)
    return tasks


def test_a_retried_task_waits_for_its_backoff():
    tasks = one_out(Retry(on=("interruption",), max=1, backoff=5))
    (ended,) = tasks.lose("a", Reason.OPERATOR_LOST, "", 10.0)
    assert ended.retry_at == 15.0
    assert tasks.take("b", 1, 100, 14.9) == []
    (task,) = tasks.take("b", 1, 100, 15.0)
    assert task.attempt == 2


def test_an_answer_of_an_earlier_attempt_does_not_count():
    tasks = one_out(Retry(max=1))
    tasks.lose("a", Reason.OPERATOR_LOST, "", 0.0)
    tasks.take("a", 1, 100, 1.0)
    assert tasks.accept("a", 0, 1) is None
    assert tasks.accept("a", 0, 2) is not None
    assert tasks.over


def test_what_never_arrived_is_sent_again_as_the_same_attempt():
    tasks = one_out(Retry())
    assert tasks.owed("a") == [(0, 1)]
    (task,) = tasks.again("a", [0, 7])
    assert (task.index, task.attempt, task.state) == (0, 1, TaskState.SENT)


def test_giving_up_ends_everything_that_is_open():
    tasks = one_out(Retry())
    tasks.add(1, [b""])
    tasks.fail_all()
    assert tasks.over
    assert tasks.accept("a", 0, 1) is None


@pytest.mark.parametrize(("max_bytes", "taken"), [(1, 1), (19, 1), (20, 2), (1000, 3)])
def test_a_frame_holds_at_most_the_given_bytes_but_at_least_one_task(max_bytes, taken):
    tasks = Tasks(Retry())
    for index in range(3):
        tasks.add(index, [b"x" * 10])
    assert len(tasks.take("a", 3, max_bytes, 0.0)) == taken
