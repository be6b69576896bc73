import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire.machines import (
    ACTIVE_LEASE_STATES,
    LEASE_EDGES,
    RUN_EDGES,
    TASK_EDGES,
    IllegalTransition,
    is_terminal,
    step,
)

TABLES = [RUN_EDGES, LEASE_EDGES, TASK_EDGES]


@pytest.mark.parametrize("edges", TABLES)
def test_every_state_appears_in_its_table(edges):
    assert set(edges) == set(type(next(iter(edges))))


@pytest.mark.parametrize("edges", TABLES)
def test_every_state_leads_to_an_end(edges):
    ended = {state for state in edges if is_terminal(edges, state)}
    reached = set(ended)
    while True:
        more = {s for s, targets in edges.items() if targets & reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(edges)


@given(st.sampled_from(TABLES), st.data())
def test_only_listed_edges_are_taken(edges, data):
    states = list(edges)
    here, there = data.draw(st.sampled_from(states)), data.draw(st.sampled_from(states))
    if there in edges[here]:
        assert step(edges, here, there) is there
    else:
        with pytest.raises(IllegalTransition, match=f"{here} → {there}"):
            step(edges, here, there)


def test_active_leases_are_those_that_have_not_ended():
    assert {s for s in LEASE_EDGES if not is_terminal(LEASE_EDGES, s)} == ACTIVE_LEASE_STATES
