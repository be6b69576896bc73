"""Waiting requests: priority, then age; nobody starves; who waits too long is named."""

from hypothesis import given
from hypothesis import strategies as st

from fabric.placement.queue import AGEING_MS, OVERDUE_MS, Waiting, next_up, overdue

waiting = st.lists(
    st.builds(
        Waiting,
        st.integers(0, 99).map(str),
        st.integers(0, 10**7),
        st.integers(-3, 3),
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


def test_who_has_waited_too_long_is_named_first_come_first() -> None:
    entries = [Waiting("c", 7), Waiting("a", 0), Waiting("b", 5, priority=1)]
    assert overdue(entries, OVERDUE_MS - 1) == []
    assert names(overdue(entries, OVERDUE_MS)) == ["a"]
    assert names(overdue(entries, OVERDUE_MS + 7)) == ["b", "a", "c"]
