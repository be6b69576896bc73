"""Rules of the run and lease machines, without a database."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.lifecycle import (
    MAX_UNDO_MS,
    Act,
    LeaseEvent,
    RunFacts,
    billed_back_ms,
    lease_step,
    run_attempt_ended,
    run_cancelled,
    run_failed,
    run_finished,
    run_opened,
)
from fabric.wire.machines import (
    ACTIVE_LEASE_STATES,
    LEASE_EDGES,
    RUN_EDGES,
    IllegalTransition,
    LeaseState,
    RunState,
    is_terminal,
)
from fabric.wire.reasons import RETRY_CLASSES, Reason
from fabric.wire.retry import Retry

events = st.sampled_from(LeaseEvent)
run_states = st.sampled_from(RunState)
reasons = st.sampled_from(Reason)


def facts(state=RunState.RUNNING, *, placements=1, retry=None, active=0):
    return RunFacts(state, placements, retry or Retry(), active)


@given(st.sampled_from(LeaseState), events)
def test_a_lease_event_takes_a_listed_edge_or_changes_nothing(state, event):
    decided = lease_step(state, event)
    assert decided is None or decided.state in LEASE_EDGES[state]


@given(st.lists(events, max_size=12))
def test_a_lease_frees_its_gpus_and_ends_its_hold_exactly_once(sequence):
    state, acts = LeaseState.GRANTED, []
    for event in sequence:
        decided = lease_step(state, event)
        if decided:
            state, acts = decided.state, [*acts, *decided.acts]
    over = state not in ACTIVE_LEASE_STATES
    assert acts.count(Act.FREE_GPUS) == acts.count(Act.END_HOLD) == int(over)
    assert acts.count(Act.SEND_RELEASE) <= 1
    assert acts.count(Act.FENCE) == int(state is LeaseState.LOST)


def test_a_lost_lease_is_fenced_billed_back_and_freed():
    decided = lease_step(LeaseState.OPEN, LeaseEvent.LOST)
    assert decided is not None
    assert decided.acts == (Act.FENCE, Act.BILL_BACK, Act.FREE_GPUS, Act.END_HOLD)


@given(run_states, reasons, st.integers(0, 3), st.integers(1, 9))
def test_an_ended_attempt_takes_a_listed_edge_or_changes_nothing(state, reason, active, placements):
    retry = Retry(on=("interruption", "error", "no_capacity"), max=3)
    try:
        decided = run_attempt_ended(facts(state, placements=placements, retry=retry, active=active), reason, "")
    except IllegalTransition:
        return
    if decided is not None:
        assert decided.state in RUN_EDGES[state]
        assert not active
        assert not is_terminal(RUN_EDGES, state)


@pytest.mark.parametrize("reason", sorted(RETRY_CLASSES["interruption"]))
def test_an_interruption_queues_the_run_again_until_max(reason):
    assert run_attempt_ended(facts(placements=3), reason, "").state is RunState.QUEUED
    assert run_attempt_ended(facts(placements=4), reason, "").state is RunState.FAILED


def test_an_error_is_final_unless_retry_covers_it():
    assert run_attempt_ended(facts(), Reason.CRASHED, "").state is RunState.FAILED
    covered = facts(retry=Retry(on=("error",), backoff=2.0))
    decided = run_attempt_ended(covered, Reason.CRASHED, "")
    assert (decided.state, decided.retry_after_ms) == (RunState.QUEUED, 2000)


def test_a_run_goes_on_while_it_has_a_lease():
    assert run_attempt_ended(facts(active=1), Reason.OPERATOR_LOST, "") is None


def test_cancelling_waits_for_the_leases_and_ends_with_the_last():
    assert run_cancelled(facts(active=1)).state is RunState.CANCELLING
    assert run_cancelled(facts(active=0)).state is RunState.CANCELLED
    cancelling = facts(RunState.CANCELLING)
    assert run_attempt_ended(cancelling, Reason.CANCELLED_BY_USER, "").state is RunState.CANCELLED
    assert run_cancelled(facts(RunState.SUCCEEDED)) is None


def test_only_a_started_run_can_succeed_and_saying_it_twice_changes_nothing():
    assert run_finished(RunState.RUNNING, RunState.SUCCEEDED, "done", "").state is RunState.SUCCEEDED
    assert run_finished(RunState.SUCCEEDED, RunState.SUCCEEDED, "done", "") is None
    with pytest.raises(IllegalTransition):
        run_finished(RunState.QUEUED, RunState.SUCCEEDED, "done", "")
    with pytest.raises(IllegalTransition):
        run_finished(RunState.SUCCEEDED, RunState.FAILED, "user_error", "")


def test_a_finished_run_does_not_fail_later():
    assert run_failed(RunState.RUNNING, Reason.CLIENT_LOST, "").state is RunState.FAILED
    assert run_failed(RunState.SUCCEEDED, Reason.CLIENT_LOST, "") is None
    assert run_failed(RunState.CANCELLING, Reason.CLIENT_LOST, "") is None


def test_opening_starts_a_run_once():
    assert run_opened(RunState.STARTING).state is RunState.RUNNING
    assert run_opened(RunState.RUNNING) is None


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_billing_back_keeps_finished_work_and_takes_five_minutes_at_most(billed, last_task):
    kept = billed_back_ms(billed, last_task)
    assert billed - MAX_UNDO_MS <= kept <= billed
    assert kept >= min(billed, last_task)
