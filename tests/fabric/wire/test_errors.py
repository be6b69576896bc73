import pytest

from fabric.wire import errors
from fabric.wire.reasons import Reason


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.DONE])
def test_every_reason_ends_in_an_error_that_names_it(reason):
    error = errors.run_failed(reason, "it ended", attempts=2)
    assert isinstance(error, errors.Error)
    if isinstance(error, errors.RunFailed):
        assert error.reason is reason
    assert error.details["attempts"] == 2


@pytest.mark.parametrize(
    ("code", "status", "cls"),
    [
        ("insufficient-funds", 402, errors.InsufficientFunds),
        ("no-capacity", 409, errors.NoCapacity),
        ("invalid-request", 422, errors.InvalidRequest),
        ("auth", 401, errors.AuthError),
    ],
)
def test_a_problem_document_becomes_its_error_again(code, status, cls):
    problem = {"type": f"https://berkeley-compute.dev/problems/{code}", "detail": "why", "needed_dc": "5"}
    error = errors.from_problem(problem, status)
    assert type(error) is cls
    assert error.message == "why"
    assert error.details == {"needed_dc": "5"}


def test_what_nobody_knows_is_a_service_error_that_says_whether_to_retry():
    assert errors.from_problem({}, 503).retryable
    assert not errors.from_problem({}, 500).retryable


def test_a_remote_error_reads_as_the_remote_exception():
    error = errors.RemoteError("boom", type_name="app.Boom", traceback="…")
    assert str(error) == "app.Boom: boom"
    assert error.reason is Reason.USER_ERROR


def test_exit_codes_tell_the_families_apart():
    families = (errors.InvalidRequest, errors.AuthError, errors.InsufficientFunds, errors.PriceExceeded)
    families += (errors.NoCapacity, errors.RunFailed, errors.Timeout, errors.ServiceError)
    codes = [cls.exit_code for cls in families]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes
