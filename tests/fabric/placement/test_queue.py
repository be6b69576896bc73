"""Waiting requests: priority, then age; nobody starves; small ones do not overtake a big one for ever."""

from hypothesis import given
from hypothesis import strategies as st

from fabric.placement.queue import AGEING_MS, HOLD_BACK_MS, Waiting, held_back, next_up

waiting = st.lists(
    st.builds(
        Waiting,
        st.integers(0, 99).map(str),
        st.integers(0, 10**7),
        st.integers(-3, 3),
        st.sampled_from(["", "H100"]),
    ),
    unique_by=lambda one: one.name,
)


def names(ordered: list[Waiting]) -> list[str]:
    return [one.name for one in ordered]


def test_priority_goes_first_and_then_who_came_first() -> None:
    ordered = next_up([Waiting("c", 5), Waiting("b", 3), Waiting("a", 9, priority=1)], 10)
    assert names(ordered) == ["a", "b", "c"]


def test_whoever_waited_a_step_longer_overtakes_one_priority() -> None:
    old, urgent = Waiting("old", 0), Waiting("urgent", AGEING_MS + 1, priority=1)
    assert names(next_up([urgent, old], AGEING_MS + 1)) == ["old", "urgent"]
    soon = Waiting("urgent", AGEING_MS - 1, priority=1)
    assert names(next_up([soon, old], AGEING_MS + 1)) == ["urgent", "old"]


@given(waiting, st.integers(0, 10**7), st.integers(0, 10**7))
def test_the_order_does_not_depend_on_when_one_looks(entries: list[Waiting], now: int, later: int) -> None:
    assert next_up(entries, now) == next_up(list(reversed(entries)), later)


@given(waiting, st.integers(-3, 3))
def test_nobody_is_overtaken_by_who_comes_much_later(entries: list[Waiting], priority: int) -> None:
    for one in entries:
        late = Waiting("late", one.since_ms + (priority - one.priority) * AGEING_MS + 1, priority)
        ordered = names(next_up([late, one], 0))
        assert ordered == [one.name, "late"]


def test_a_big_one_is_passed_by_until_it_has_waited_long_enough() -> None:
    big, small, other = Waiting("big", 0, pool="H100"), Waiting("small", 5, pool="H100"), Waiting("other", 6, pool="L4")
    ordered = next_up([small, other, big], 7)
    assert held_back(ordered, "big", HOLD_BACK_MS - 1) == frozenset()
    assert held_back(ordered, "big", HOLD_BACK_MS) == {"small"}
