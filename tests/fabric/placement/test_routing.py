"""Routing: the replica whose first token comes earliest, by round trip, prompts ahead and full batches."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fabric.placement.routing import Replica, choose, first_token_ms, ranked

NEAR = Replica("near", 10.0, 0, 0, 4, 1000.0, 8000.0)
FAR = Replica("far", 90.0, 0, 0, 4, 1000.0, 8000.0)

replicas = st.lists(
    st.builds(
        Replica,
        st.text("abc", min_size=1),
        st.floats(0, 300),
        st.integers(0, 10_000),
        st.integers(0, 20),
        st.integers(1, 8),
        st.floats(100, 10_000),
        st.floats(0, 10_000),
        st.integers(0, 2000),
    ),
    unique_by=lambda one: one.name,
)


def test_the_nearest_of_idle_replicas_is_chosen() -> None:
    assert choose([FAR, NEAR], 100) == NEAR


def test_prompts_ahead_count_as_the_time_to_read_them() -> None:
    assert first_token_ms(replace(NEAR, prompt_tokens_ahead=500), 100) == 10 + 600
    assert choose([FAR, replace(NEAR, prompt_tokens_ahead=50)], 100) == replace(NEAR, prompt_tokens_ahead=50)
    assert choose([FAR, replace(NEAR, prompt_tokens_ahead=100)], 100) == FAR


def test_a_full_batch_costs_the_wait_for_a_place_in_it() -> None:
    assert first_token_ms(replace(NEAR, in_flight=3), 0) == 10
    assert first_token_ms(replace(NEAR, in_flight=4), 0) == 10 + 2000


def test_a_prompt_that_is_already_there_is_not_read_again() -> None:
    assert choose([NEAR, replace(FAR, cached_tokens=1000)], 1000) == replace(FAR, cached_tokens=1000)
    assert first_token_ms(replace(NEAR, cached_tokens=5000), 100) == 10


def test_no_replica_is_an_answer() -> None:
    assert choose([], 1) is None


@given(replicas, st.integers(0, 5000))
def test_the_choice_is_the_first_of_the_ranking_whatever_the_order(given_: list[Replica], prompt: int) -> None:
    order = ranked(given_, prompt)
    assert choose(list(reversed(given_)), prompt) == (order[0] if order else None)
    times = [first_token_ms(one, prompt) for one in order]
    assert times == sorted(times)
