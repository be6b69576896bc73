"""Keywords: what they become on the wire, and how wrong ones are refused before anything is sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.client.options import RunOptions, read_options
from fabric.wire.errors import InvalidRequest
from fabric.wire.retry import Retry


def read(**keywords):
    return read_options("run", keywords)


def test_without_keywords_a_run_asks_for_one_gpu_of_any_model():
    assert read() == RunOptions()
    assert read().request()["gpu"] == [":1"]


def test_keywords_become_integers_in_the_wires_units():
    options = read(max_price=2.5, budget="40", cpu=0.5, memory="32GB", timeout=1.5, queue_timeout=0, tier="spot")
    assert (options.max_price_dc, options.budget_dc, options.cpu_milli) == (250_000, 4_000_000, 500)
    assert (options.memory_bytes, options.timeout_ms, options.queue_timeout_ms) == (32 * 10**9, 1500, 0)
    assert options.tier == "spot"


@given(st.decimals(min_value="0.00001", max_value=10**6, places=5))
def test_usd_amounts_are_exact(usd):
    assert read(budget=usd).budget_dc == int(usd * 100_000)


def test_a_list_of_gpus_is_an_order_and_a_set_is_not():
    assert read(gpu=["H200:8", "H100:8"]).request()["gpu"] == ["H200:8", "H100:8"]
    assert not read(gpu=["H200:8", "H100:8"]).gpu_any
    assert read(gpu={"H200:8", "H100:8"}).gpu_any


def test_an_unknown_keyword_is_refused_with_the_nearest_one():
    with pytest.raises(InvalidRequest, match=r"no keyword 'budgett'; did you mean 'budget'\?"):
        read(budgett=1)


def test_a_keyword_of_the_function_is_told_where_to_go():
    def train(cfg, *, lr=0.1):
        return cfg, lr

    with pytest.raises(InvalidRequest, match=r"kwargs=\{'lr': …\}"):
        read_options("run", {"lr": 0.2}, train)


def test_a_keyword_of_map_is_no_keyword_of_run():
    assert read_options("map", {"max_parallel": 3}).max_parallel == 3
    with pytest.raises(InvalidRequest, match="max_parallel"):
        read(max_parallel=3)


def test_a_bad_gpu_string_says_which_character():
    with pytest.raises(InvalidRequest, match="character 6") as caught:
        read(gpu="H100:x8")
    assert caught.value.details["position"] == 5


@pytest.mark.parametrize(
    ("keyword", "bad"),
    [
        ("gpu", 4),
        ("gpu", []),
        ("tier", "reserved"),
        ("max_price", -1),
        ("max_price", "cheap"),
        ("budget", 0),
        ("budget", True),
        ("cpu", 0),
        ("cpu", "many"),
        ("memory", "32"),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("timeout", 10**400),
        ("max_rtt_ms", 10**400),
        ("startup_timeout", "1"),
        ("queue_timeout", -1),
        ("linger", None),
        ("retry", "always"),
        ("retry", True),
        ("retry", -1),
        ("region", 3),
        ("region", "\ud800"),
        ("operators", [""]),
        ("min_reputation", 1001),
        ("min_verification", 4),
        ("interconnect", ""),
        ("objective", "speed"),
        ("name", ""),
        ("tags", ["a"]),
        ("idempotency_key", 7),
        ("dry_run", 1),
    ],
)
def test_an_impossible_value_is_refused_naming_the_keyword(keyword, bad):
    with pytest.raises(InvalidRequest) as caught:
        read(**{keyword: bad})
    assert keyword in str(caught.value).lower()


def test_a_number_of_retries_is_a_retry_rule():
    assert read(retry=2).retry == Retry(max=2)
    assert read(retry=Retry(on=("error",), max=1)).request()["retry"]["on"] == ["error"]


def test_operators_can_be_asked_for_and_avoided():
    options = read(operators=["acme", "!evil"])
    assert (options.operators_allow, options.operators_deny) == (("acme",), ("evil",))


def test_runs_that_differ_only_in_price_or_name_can_share_a_lease():
    assert read(max_price=3, name="a").lease_key == read(max_price=2, name="b").lease_key
    assert read(gpu="H100").lease_key != read(gpu="L4").lease_key


def test_a_budget_or_an_idempotency_key_asks_for_a_lease_of_its_own():
    assert read(budget=1).own_lease
    assert read(idempotency_key="k").own_lease
    assert read(checkpoint="run_1").own_lease
    assert not read(max_price=1).own_lease


def test_near_is_a_region_a_host_or_a_place_on_earth():
    assert read(near="eu-west").request()["near"] == "eu-west"
    assert read(near=(52.5, 13.4)).near == "52.500000,13.400000"
    assert (read().near, read().request()["max_rtt_ms"]) == ("", None)


@pytest.mark.parametrize("near", ["", "  ", 3, (52.5,), (98, 13.4), (52.5, 181), ("a", "b"), "x" * 201, None])
def test_what_is_no_place_is_refused(near):
    with pytest.raises(InvalidRequest, match="is not a region, a gateway's host"):
        read(near=near)


@pytest.mark.parametrize("limit", [0, -1, True, "20", float("nan"), float("inf"), 60_001])
def test_what_is_no_round_trip_is_refused(limit):
    assert read(max_rtt_ms=20).max_rtt_ms == 20.0
    with pytest.raises(InvalidRequest, match="is not a round trip in ms"):
        read(max_rtt_ms=limit)


@pytest.mark.parametrize(
    ("keywords", "measures"),
    [
        ({}, False),
        ({"max_rtt_ms": 20}, True),
        ({"objective": "latency"}, True),
        ({"max_rtt_ms": 20, "near": "eu"}, False),
        ({"near": "eu"}, False),
    ],
)
def test_only_who_wants_to_be_near_itself_measures(keywords, measures):
    assert read(**keywords).measures is measures


def test_a_lease_serves_only_those_who_want_to_be_near_the_same_place():
    assert read(max_rtt_ms=20).lease_key != read(max_rtt_ms=30).lease_key
    assert read(near="eu").lease_key != read(near="us").lease_key
    assert read(near="eu", max_rtt_ms=20).lease_key == read(near="eu", max_rtt_ms=20).lease_key


@pytest.mark.parametrize(("given", "nodes", "least"), [(1, 1, 0), (4, 4, 0), ((2, 4), 4, 2), ((3, 3), 3, 0)])
def test_nodes_are_a_number_or_the_least_and_the_most(given, nodes, least):
    request = read_options("submit", {"nodes": given}).request()
    assert (request["nodes"], request["nodes_min"]) == (nodes, least)
    assert request["network"] == ("gang" if nodes > 1 else "none")


@pytest.mark.parametrize("given", [0, True, "2", (4, 2), (1, 2, 3), 2000])
def test_other_numbers_of_nodes_are_refused(given):
    with pytest.raises(InvalidRequest, match="neither a number of nodes"):
        read_options("run", {"nodes": given})
    with pytest.raises(InvalidRequest, match="no keyword 'nodes'"):
        read_options("map", {"nodes": given})
