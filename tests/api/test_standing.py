"""Where a GPU stands after its challenges."""

import pytest

from api.standing import BOUND, FRESH_EPOCHS, MAX_LEVEL, TRUSTED_IN_A_ROW, Standing, failed, level, passed

DAY = 86_400_000


def test_a_gpu_that_was_never_challenged_is_at_level_zero_and_may_be_leased():
    assert (level(Standing(), 0, DAY), Standing().leasable) == (0, True)


def test_a_pass_makes_it_fresh_and_time_makes_it_stale():
    once = passed(Standing(), 0)
    assert [level(once, days * DAY, DAY) for days in (0, FRESH_EPOCHS, FRESH_EPOCHS + 1)] == [2, 2, 1]


def test_enough_passes_in_a_row_are_the_highest_level_until_one_fails():
    standing = Standing()
    for _ in range(TRUSTED_IN_A_ROW):
        standing = passed(standing, 0)
    assert level(standing, 0, DAY) == MAX_LEVEL
    assert level(passed(failed(standing, 1, "late", wrong=False), 2), 2, DAY) == 2


@pytest.mark.parametrize(("wrong", "times"), [(True, 1), (False, BOUND)])
def test_one_wrong_answer_or_two_late_ones_bar_it_from_new_leases(wrong, times):
    standing = passed(Standing(), 0)
    for at in range(times):
        assert standing.leasable
        standing = failed(standing, at, "it was late", wrong=wrong)
    assert (standing.leasable, level(standing, 0, DAY), standing.reason) == (False, 0, "it was late")
    assert passed(standing, 9).leasable
