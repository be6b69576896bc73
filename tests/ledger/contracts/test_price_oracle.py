"""The oracle: median, freshness, 24 hour average, step bound, halt, gaps."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

USD = 10**18
HOUR = 3600
DAY = 24 * HOUR


def _price(world, time: int | None = None) -> int:
    return world.view("PriceOracle", "read", world.now if time is None else time)[0]


def _average(world, time: int | None = None) -> int:
    return world.view("PriceOracle", "read", world.now if time is None else time)[1]


@pytest.fixture
def single(new_world):
    """One reporter, so that each report is an observation."""
    return new_world(reporters=("reporter-1",), quorum=1, step_bps=5000)


def test_there_is_no_price_until_a_quorum_has_reported(new_world, reverts):
    world = new_world()
    world.send("reporter-1", "PriceOracle", "report", USD)
    with reverts("NoPrice", 0):
        _price(world)
    world.send("reporter-2", "PriceOracle", "report", USD + 10)
    assert _price(world) == USD + 5


@pytest.mark.parametrize(
    ("prices", "median"),
    [((100, 110, 105), 105), ((110, 100, 100), 100), ((100, 101, 119, 118), 109), ((100, 101), 100)],
)
def test_the_price_is_the_median_of_the_fresh_reports_the_middle_two_meaned_down(new_world, prices, median):
    names = tuple(f"r{i}" for i in range(len(prices)))
    world = new_world(reporters=names, quorum=len(names), step_bps=5000)
    for name, price in zip(names, prices, strict=True):
        world.send(name, "PriceOracle", "report", price)
    assert _price(world) == median


def test_one_liar_among_three_moves_nothing(world):
    world.send("reporter-1", "PriceOracle", "report", 1000 * USD)
    assert _price(world) == USD
    assert not world.view("PriceOracle", "halted")


def test_a_report_older_than_the_freshness_does_not_count(world, reverts):
    world.pass_time(HOUR)
    assert _price(world) == USD
    world.pass_time(1)
    world.send("reporter-1", "PriceOracle", "report", USD)
    with reverts("NoPrice"):
        _price(world)


def test_a_move_to_the_step_bound_is_taken_and_one_beyond_it_halts_and_is_never_clamped(single, reverts):
    single.send("reporter-1", "PriceOracle", "report", USD)
    single.send("reporter-1", "PriceOracle", "report", USD * 3 // 2)
    assert _price(single) == USD * 3 // 2
    single.send("reporter-1", "PriceOracle", "report", USD * 3 // 2 + 1)
    assert single.events("PriceOracle") == ["Reported", "HaltedBy"]
    with reverts("OracleHalted"):
        _price(single)
    with reverts("OracleHalted"):
        _price(single, single.now - 1)


def test_many_small_steps_within_an_hour_are_one_large_move(single):
    price = USD
    for _ in range(6):
        single.send("reporter-1", "PriceOracle", "report", price)
        single.pass_time(60)
        price = price * 110 // 100
    assert single.view("PriceOracle", "halted")


def test_the_same_steps_an_hour_apart_are_taken(single):
    price = USD
    for _ in range(6):
        single.send("reporter-1", "PriceOracle", "report", price)
        single.pass_time(HOUR)
        price = price * 110 // 100
    assert not single.view("PriceOracle", "halted")


def test_a_halt_ends_with_the_owner_who_takes_the_median_of_that_moment(world):
    world.report(3 * USD)
    assert world.view("PriceOracle", "halted")
    world.report(4 * USD)
    world.send("owner", "PriceOracle", "resume")
    assert _price(world) == 4 * USD
    world.pass_time(60)
    world.report(4 * USD + USD // 2)
    assert _price(world) == 4 * USD + USD // 2


def test_a_price_of_a_past_second_never_changes_again(single):
    single.send("reporter-1", "PriceOracle", "report", USD)
    single.pass_time(100)
    single.send("reporter-1", "PriceOracle", "report", USD * 3 // 4)
    seen = [single.view("PriceOracle", "read", single.now - back) for back in range(1, 101)]
    single.pass_time(5 * HOUR)
    single.send("reporter-1", "PriceOracle", "report", USD)
    then = single.now - 5 * HOUR
    assert seen == [single.view("PriceOracle", "read", then - back) for back in range(1, 101)]


def test_in_a_gap_the_price_is_the_first_one_known_after_it(single, reverts):
    single.send("reporter-1", "PriceOracle", "report", USD)
    in_gap = single.now + 2 * HOUR
    single.pass_time(3 * HOUR)
    with reverts("NoPrice"):
        _price(single, in_gap)
    single.send("reporter-1", "PriceOracle", "report", USD * 5 // 4)
    assert _price(single, in_gap) == USD * 5 // 4
    assert _price(single, in_gap - HOUR) == USD


def test_replaced_reporters_have_no_say(world, reverts):
    world.send("owner", "PriceOracle", "setReporters", [world.address("new")], 1)
    with reverts("NotReporter"):
        world.send("reporter-1", "PriceOracle", "report", USD)
    world.send("new", "PriceOracle", "report", USD)
    assert _price(world) == USD


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 40_000), st.integers(8_000, 12_000)), min_size=1, max_size=12))
def test_the_average_is_time_weighted_over_24_hours_and_rounded_down(new_world, steps):
    world = new_world(reporters=("reporter-1",), quorum=1, step_bps=5000, freshness=86_400)
    path, price = [(world.now, USD)], USD
    world.send("reporter-1", "PriceOracle", "report", USD)
    for seconds, factor in steps:
        world.pass_time(seconds)
        price = min(max(price * factor // 10_000, USD * 4 // 5), USD * 6 // 5)  # within the step bound of one another
        world.send("reporter-1", "PriceOracle", "report", price)
        path.append((world.now, price))
    world.pass_time(1234)
    assert _average(world) == _expected_average(path, world.now)


def _expected_average(path: list[tuple[int, int]], now: int) -> int:
    start = max(now - DAY, path[0][0])
    ends = [*(time for time, _ in path[1:]), now]
    area = sum(price * max(0, end - max(begin, start)) for (begin, price), end in zip(path, ends, strict=True))
    return int(Fraction(area, now - start))
