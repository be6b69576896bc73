import itertools
import random

from fabric.agent.sandbox.uids import fresh_uids

WHOLE = "         0          0 4294967295\n"
CONTAINER = "         0     100000      65536\n"


def test_numbers_do_not_repeat_and_belong_to_nobody():
    numbers = list(itertools.islice(fresh_uids(WHOLE), 1000))
    assert len(set(numbers)) == 1000
    assert all(1_879_048_192 <= number < 2_147_483_647 for number in numbers)


def test_numbers_fit_into_the_map_of_a_container_and_start_over_at_its_end():
    numbers = list(itertools.islice(fresh_uids(CONTAINER), 5000))
    assert len(set(numbers)) == 4336
    assert all(61_184 <= number < 65_520 for number in numbers)


def test_the_start_is_a_matter_of_chance():
    assert next(fresh_uids(WHOLE, random.Random(1))) != next(fresh_uids(WHOLE, random.Random(2)))
