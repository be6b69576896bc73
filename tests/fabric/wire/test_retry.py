import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire.errors import InvalidRequest
from fabric.wire.reasons import EXPLANATIONS, RETRY_CLASSES, Reason
from fabric.wire.retry import Retry, delay_s


def test_by_default_only_interruptions_are_retried_three_times():
    retry = Retry()
    assert [delay_s(retry, Reason.OPERATOR_LOST, n) for n in (1, 2, 3, 4)] == [0.0, 0.0, 0.0, None]
    assert delay_s(retry, Reason.USER_ERROR, 1) is None


@given(st.sampled_from(list(Reason)), st.integers(1, 10), st.integers(0, 5))
def test_never_more_retries_than_allowed(reason, attempts, most):
    retry = Retry(on=tuple(RETRY_CLASSES), max=most, backoff=1)
    if attempts > most:
        assert delay_s(retry, reason, attempts) is None


def test_backoff_doubles_up_to_a_minute():
    retry = Retry(on=("error",), max=20, backoff=1.5)
    assert [delay_s(retry, Reason.CRASHED, n) for n in (1, 2, 3, 10)] == [1.5, 3.0, 6.0, 60.0]


def test_an_exit_code_can_be_retried_alone():
    retry = Retry(on=(), exit_codes=(75,))
    assert delay_s(retry, Reason.USER_ERROR, 1, exit_code=75) == 0.0
    assert delay_s(retry, Reason.USER_ERROR, 1, exit_code=1) is None


def test_a_cancel_is_never_retried():
    retry = Retry(on=tuple(RETRY_CLASSES), max=9)
    for reason in (Reason.CANCELLED_BY_USER, Reason.BUDGET_EXHAUSTED, Reason.DONE, Reason.CLIENT_LOST):
        assert delay_s(retry, reason, 1) is None


@pytest.mark.parametrize(
    "bad",
    [
        {"on": ("errors",)},
        {"on": 3},
        {"on": None},
        {"max": -1},
        {"max": "3"},
        {"backoff": -0.1},
        {"backoff": float("nan")},
        {"exit_codes": "75"},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(bad):
    with pytest.raises(InvalidRequest, match="Retry"):
        Retry(**bad)


def test_every_reason_has_an_explanation():
    assert set(EXPLANATIONS) == set(Reason)
