"""Round-trip estimates: measured pairs are their measurement, others near the truth, the error is known and used."""

import math
import random

import pytest

from fabric.placement.coordinates import NEIGHBOURS, RttMap

PLACES = 60


def true_rtt(one: int, other: int) -> float:
    """Places on a plane in four clumps, each with its own way into the network."""
    spots = [(0, 0), (80, 0), (0, 120), (150, 150)]
    x1, y1 = spots[one % 4]
    x2, y2 = spots[other % 4]
    away = math.hypot(x1 + one / 7 - x2 - other / 7, y1 + one / 9 - y2 - other / 9)
    return away + 1 + one % 3 + other % 3


def mapped(neighbours: int = 12) -> RttMap:
    draw, known = random.Random(3), RttMap()
    for one in range(PLACES):
        for other in draw.sample([n for n in range(PLACES) if n != one], neighbours):
            known.measured(f"p{one}", f"p{other}", true_rtt(one, other))
    known.fit()
    return known


@pytest.fixture(scope="module")
def known() -> RttMap:
    return mapped()


def test_a_measured_pair_is_its_measurement_both_ways() -> None:
    known = RttMap()
    known.measured("a", "b", 20.0)
    known.measured("b", "a", 40.0)
    known.fit()
    for pair in (("a", "b"), ("b", "a")):
        found = known.estimate(*pair)
        assert found is not None
        assert (found.rtt_ms, found.error_ms, found.measured) == (25.0, 0.0, True)


def test_pairs_never_measured_are_near_the_truth(known: RttMap) -> None:
    errors = []
    for one in range(PLACES):
        for other in range(PLACES):
            found = known.estimate(f"p{one}", f"p{other}")
            assert found is not None
            if not found.measured:
                errors.append(abs(found.rtt_ms - true_rtt(one, other)) / true_rtt(one, other))
    assert len(errors) > PLACES * PLACES / 2
    assert sorted(errors)[len(errors) // 2] < 0.05


def test_an_estimate_says_how_far_it_may_be_off(known: RttMap) -> None:
    pairs = [(one, other) for one in range(PLACES) for other in range(one)]
    found = [(known.estimate(f"p{one}", f"p{other}"), true_rtt(one, other)) for one, other in pairs]
    guessed = [(one, truth) for one, truth in found if one is not None and not one.measured]
    assert all(one.error_ms > 0 for one, _ in guessed)
    within = sum(abs(one.rtt_ms - truth) <= 3 * one.error_ms for one, truth in guessed)
    assert within / len(guessed) > 0.75


def test_probing_a_few_finds_a_place_nearly_as_near_as_the_nearest(known: RttMap) -> None:
    draw = random.Random(5)
    close = 0
    for _ in range(200):
        here, *others = draw.sample(range(PLACES), 21)
        picked = known.to_probe(f"p{here}", [f"p{other}" for other in others])
        assert len(picked) == len(set(picked)) == 5
        best = min(true_rtt(here, other) for other in others)
        close += min(true_rtt(here, int(name[1:])) for name in picked) <= best + 5
    assert close / 200 >= 0.95


def test_a_place_in_no_fit_has_no_estimate_and_is_probed_last(known: RttMap) -> None:
    assert known.estimate("p0", "nobody") is None
    assert known.estimate("nobody", "p0") is None
    assert known.to_probe("p0", ["nobody", "p1", "p2"])[-1] == "nobody"
    itself = known.estimate("p0", "p0")
    assert itself is not None
    assert itself.rtt_ms == 0.0


def test_a_newcomer_is_placed_by_a_refit() -> None:
    known = mapped()
    for other in range(0, PLACES, 5):
        known.measured("new", f"p{other}", true_rtt(1, other))
    assert known.estimate("new", "p1") is None
    known.fit()
    found = known.estimate("new", "p2")
    assert found is not None
    assert found.rtt_ms == pytest.approx(true_rtt(1, 2), rel=0.3)


def test_the_same_measurements_give_the_same_map(known: RttMap) -> None:
    again = mapped()
    names = [f"p{one}" for one in range(PLACES)]
    assert again.estimates("p0", names) == known.estimates("p0", names)


def test_nobody_is_measured_more_often_than_asked_for() -> None:
    known, everybody = RttMap(), [f"p{one}" for one in range(100)]
    first = known.to_measure("p0", everybody)
    assert len(first) == len(set(first)) == NEIGHBOURS
    assert "p0" not in first
    assert first == known.to_measure("p0", reversed(everybody))
    for name in first[:10]:
        known.measured("p0", name, 5.0)
    assert set(known.to_measure("p0", everybody)) == set(first[10:])
    assert known.measured_count("p0") == 10


@pytest.mark.parametrize("rtt_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_time_is_refused(rtt_ms: float) -> None:
    with pytest.raises(ValueError, match="two places and a time above 0"):
        RttMap().measured("a", "b", rtt_ms)
    with pytest.raises(ValueError, match="two places"):
        RttMap().measured("a", "a", 1.0)


def test_an_empty_map_knows_nothing() -> None:
    known = RttMap()
    known.fit()
    assert known.estimates("a", ["b"]) == [None]


def seen(known: RttMap, measured: int) -> list[float]:
    """Relative errors of what a place that is not on the map estimates, having measured the first few of it."""
    here = PLACES + 5
    errors = []
    for start in range(0, PLACES, 4):
        targets = [(start + 7 * step) % PLACES for step in range(measured)]
        rtts = {f"p{other}": true_rtt(here, other) for other in targets}
        for other, found in enumerate(known.seen_from(rtts, [f"p{n}" for n in range(PLACES)])):
            assert found is not None
            assert found.measured is (other in targets)
            errors.append(abs(found.rtt_ms / true_rtt(here, other) - 1))
    return errors


def test_a_place_off_the_map_estimates_by_what_it_measured_and_moves_nothing(known: RttMap) -> None:
    before = known.estimates("p1", [f"p{n}" for n in range(PLACES)])
    errors = sorted(seen(known, 8))
    assert errors[len(errors) // 2] < 0.1
    assert known.estimates("p1", [f"p{n}" for n in range(PLACES)]) == before


def test_a_place_off_the_map_that_measured_too_little_knows_only_that(known: RttMap) -> None:
    one, other = known.seen_from({"p1": 20.0, "p2": 30.0, "elsewhere": 4.0}, ["p1", "p3"])
    assert one is not None
    assert (one.rtt_ms, one.measured) == (20.0, True)
    assert other is None
    assert RttMap().seen_from({"p1": 20.0}, ["p1", "p2"]) == [one, None]


def test_what_is_not_on_the_map_has_no_estimate_from_off_it_either(known: RttMap) -> None:
    rtts = {f"p{other}": true_rtt(70, other) for other in range(5)}
    assert known.seen_from(rtts, ["elsewhere"]) == [None]
