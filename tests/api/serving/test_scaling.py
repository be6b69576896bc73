"""How many replicas: up at once, down slowly, within the bounds."""

from hypothesis import given
from hypothesis import strategies as st

from api.serving.affinity import Memory, prompt_of
from api.serving.scaling import Scaler


def test_it_grows_at_once_and_goes_to_zero_after_the_idle_time():
    scaler = Scaler(0, 8, 10, 60)
    assert scaler.wanted(0, 0) == 0
    assert scaler.wanted(1, 1) == 1
    assert scaler.wanted(30, 2) == 4
    assert scaler.wanted(0, 3) == 4
    assert scaler.wanted(0, 61.5) == 4
    assert scaler.wanted(0, 62.5) == 0


def test_a_least_number_stays():
    assert Scaler(2, 4, 1, 60).wanted(0, 0) == 2


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 30)), max_size=50), st.integers(0, 3), st.integers(3, 9))
def test_it_stays_within_its_bounds_and_always_covers_the_load(steps, least, most):
    scaler, now = Scaler(least, most, 4, 20), 0.0
    for load, pause in steps:
        now += pause
        wanted = scaler.wanted(load, now)
        assert least <= wanted <= most
        assert wanted == most or wanted * 4 >= load


def test_a_replica_is_known_by_the_longest_beginning_it_has_read():
    memory = Memory()
    first = [{"role": "user", "content": "x" * 400}]
    longer = [*first, {"role": "assistant", "content": "y" * 40}, {"role": "user", "content": "z"}]
    assert memory.cached_tokens(prompt_of(longer)) == 0
    memory.note(prompt_of(first))
    assert 0 < memory.cached_tokens(prompt_of(longer)) < prompt_of(longer).tokens
    assert memory.cached_tokens(prompt_of([{"role": "user", "content": "other"}])) == 0
