"""fabric.run and fabric.map end to end against small real servers."""

import itertools

import pytest

import fabric


def test_a_run_returns_the_value_of_the_function(small_fabric):
    assert fabric.run(lambda x: x * 2, 21) == 42


def test_a_second_run_uses_the_lingering_lease_and_is_registered_beside_it(small_fabric):
    assert fabric.run(lambda: 1) == 1
    assert fabric.run(lambda: 2) == 2
    assert len(small_fabric.leases) == 1
    assert [r for r in small_fabric.requests if r[:2] == ("POST", "/v1/runs")].__len__() == 1


def test_a_map_gives_results_in_the_order_of_the_inputs(small_fabric):
    assert list(fabric.map(lambda x: x + 1, range(500))) == list(range(1, 501))


def test_a_map_takes_inputs_only_as_far_as_there_is_room(small_fabric):
    taken = []

    def numbers():
        for n in itertools.count():
            taken.append(n)
            yield n

    results = fabric.map(lambda x: x, numbers())
    assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
    results.close()
    assert len(taken) < 3000


def test_the_users_exception_comes_back_with_the_workers_traceback(small_fabric):
    def broken():
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost") as caught:
        fabric.run(broken)
    assert "Traceback on the worker" in caught.value.__notes__[0]
    assert "broken" in caught.value.__notes__[0]
