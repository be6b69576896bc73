"""Which ranks a lease holds, how many there are, what a budget pays for: values alone."""

import pytest

import fabric
from workloads.training.plan import bought, count_ranks, most_gpus, places, seconds_for

GANG = {
    "FABRIC_RANK": "1",
    "FABRIC_WORLD_SIZE": "3",
    "FABRIC_ATTEMPT": "2",
    "FABRIC_PEERS": "10.78.0.1,10.78.0.2,10.78.0.3",
    "FABRIC_RENDEZVOUS_PORT": "29500",
}


def test_ranks_follow_each_other_node_by_node_and_all_know_where_rank_0_is():
    found = places(GANG, 2, 0)
    assert [(one.rank, one.local_rank, one.world_size) for one in found] == [(2, 0, 6), (3, 1, 6)]
    assert {(one.host, one.port, one.own, one.attempt) for one in found} == {("10.78.0.1", 29500, "10.78.0.2", 2)}


def test_one_node_alone_meets_on_its_own_loopback():
    found = places({}, 4, 1234)
    assert [(one.rank, one.world_size, one.host, one.port) for one in found] == [
        (rank, 4, "127.0.0.1", 1234) for rank in range(4)
    ]


def test_ranks_of_one_machine_know_how_many_share_its_cores():
    assert places(GANG, 2, 0)[0].neighbours == 2
    assert places(GANG | {"FABRIC_PEERS": "127.0.0.2,127.0.0.3,127.0.0.2"}, 2, 0)[0].neighbours == 6


@pytest.mark.parametrize(
    ("gpu", "ranks"),
    [
        (None, 1),
        ("H100", 1),
        ("H100:8", 8),
        ("4090", 1),
        ("A100:80GB:4", 4),
        ("24GB..:2", 2),
        ("24GB..", 1),
        ("L4:0.5", 1),
        (["H200:8", "H100:8"], 8),
    ],
)
def test_there_is_one_rank_per_gpu_of_a_lease(gpu, ranks):
    assert count_ranks(gpu, None) == ranks


@pytest.mark.parametrize("gpu", [["H100:8", "L4:2"], "H100:2..4", "H100:2.."])
def test_a_number_that_is_left_open_must_be_said(gpu):
    with pytest.raises(fabric.InvalidRequest, match="ranks_per_node"):
        count_ranks(gpu, None)
    assert count_ranks(gpu, 2) == 2


@pytest.mark.parametrize(
    ("gpu", "nodes", "most"),
    [(None, 1, 1), ("L4:0.5", 1, 1), ("H100:8", 2, 16), (["H100:2..4", "L4"], (2, 3), 12), ("A100:80GB..", 2, 2)],
)
def test_the_most_gpus_at_once_are_those_of_the_largest_spec_on_the_most_nodes(gpu, nodes, most):
    assert most_gpus(gpu, nodes) == most
    with pytest.raises(fabric.InvalidRequest, match="leaves open"):
        most_gpus("H100:2..", nodes)


def test_a_share_of_a_gpu_costs_its_share():
    chosen = {"nodes": ["a", "b"], "gpus": 1, "share_milli": 250, "price_dc_per_gpu_hour": "36000"}
    assert bought(chosen) == (0.5, 0.36)


def test_a_budget_pays_for_what_is_left_of_it_beside_the_end_of_the_leases():
    assert seconds_for("1.00", 3.6, 10) == pytest.approx(0.9 * (100 - 11))
    assert seconds_for(1, 3.6, 10, "spot") == pytest.approx(0.9 * (100 - 36))
    with pytest.raises(fabric.InvalidRequest, match="give more"):
        seconds_for(0.1, 3.6, 10)
