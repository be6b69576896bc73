"""The fleet: what it is told is what it says, a lease touches what it holds, and the impossible is refused whole."""

import time

import pytest

from fabric.placement.answer import Placement
from fabric.placement.fleet import Assignment, Fleet, FleetError, Gpu, GpuShare, Held, Node
from fabric.placement.grammar import parse_gpu
from fabric.placement.place import as_held, place
from fabric.placement.request import Request


def gpu(uuid: str, **changes) -> Gpu:
    facts = {"model": "H100", "memory_bytes": 80 * 10**9, "prices_dc_per_gpu_hour": {"on_demand": 200, "spot": 100}}
    return Gpu(uuid=uuid, **(facts | changes))


def node(name: str = "n0", gpus: int = 2, **changes) -> Node:
    cards = tuple(gpu(f"{name}-{i}") for i in range(gpus))
    facts = {"gpus": changes.pop("cards", cards), "cpu_milli": 8_000, "memory_bytes": 64}
    return Node(name=name, **({"operator": "ann", "cluster": "ann-1"} | facts | changes))


def fleet_of(*nodes: Node) -> Fleet:
    fleet = Fleet()
    for one in nodes:
        fleet.upsert_node(one)
    return fleet


def held(lease: str, *shares: tuple[str, int], tier="on_demand", cpu_milli=0, where="n0") -> Held:
    parts = tuple(GpuShare(uuid, milli) for uuid, milli in shares)
    return Held(lease, tier, (Assignment(where, parts, cpu_milli, 0, 0),))


def free(fleet: Fleet, uuid: str) -> int:
    seat = fleet.seat(uuid)
    assert seat is not None
    return int(fleet.free[seat[1], seat[0]])


def test_a_lease_takes_and_a_release_gives_back() -> None:
    fleet = fleet_of(node())
    fleet.take(held("l", ("n0-0", 300), tier="spot", cpu_milli=1_000))
    assert (free(fleet, "n0-0"), int(fleet.room[0, 0]), int(fleet.spot[0, 0])) == (700, 7_000, 300)
    assert fleet.release("l").lease == "l"
    assert (free(fleet, "n0-0"), int(fleet.room[0, 0]), int(fleet.spot[0, 0])) == (1000, 8_000, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        held("l", ("n0-0", 600)),
        held("l", ("n0-1", 1000), ("n0-1", 1000)),
        held("l", ("gone", 1000)),
        held("l", ("n1-0", 1000)),
        held("l", ("n0-1", 1000), cpu_milli=9_000),
        held("l", ("n0-1", 1000), where="gone"),
        held("before"),
    ],
)
def test_what_is_not_free_is_refused_and_nothing_is_booked(wrong: Held) -> None:
    fleet = fleet_of(node(), node("n1"))
    fleet.take(held("before", ("n0-0", 500)))
    state = fleet.state.copy()
    with pytest.raises(FleetError):
        fleet.take(wrong)
    assert (fleet.state == state).all()
    assert set(fleet.leases) == {"before"}


def test_a_gang_is_booked_whole_or_not_at_all() -> None:
    fleet = fleet_of(node(), node("n1"))
    parts = (Assignment("n0", (GpuShare("n0-0", 1000),), 0, 0, 0), Assignment("n1", (GpuShare("gone", 1000),), 0, 0, 0))
    with pytest.raises(FleetError):
        fleet.take(Held("gang", "on_demand", parts))
    assert free(fleet, "n0-0") == 1000


def test_leases_outlive_a_change_of_their_node() -> None:
    fleet = fleet_of(node())
    fleet.take(held("l", ("n0-0", 1000), cpu_milli=2_000))
    fleet.upsert_node(node(gpus=3, reputation=7))
    assert (free(fleet, "n0-0"), free(fleet, "n0-2"), int(fleet.room[0, 0])) == (0, 1000, 6_000)
    fleet.release("l")
    assert (free(fleet, "n0-0"), int(fleet.room[0, 0])) == (1000, 8_000)


def test_a_gpu_that_falls_ill_while_leased_is_not_offered_again() -> None:
    fleet = fleet_of(node())
    fleet.take(held("l", ("n0-0", 1000)))
    fleet.upsert_node(node(cards=(gpu("n0-0", healthy=False), gpu("n0-1"))))
    fleet.release("l")
    assert fleet.seat("n0-0") is None
    assert free(fleet, "n0-1") == 1000


def test_a_removed_node_loses_its_leases_everywhere() -> None:
    fleet = fleet_of(node(), node("n1"))
    parts = (Assignment("n0", (GpuShare("n0-0", 1000),), 0, 0, 0), Assignment("n1", (GpuShare("n1-0", 1000),), 0, 0, 0))
    fleet.take(Held("gang", "on_demand", parts))
    assert fleet.remove_node("n0") == ("gang",)
    assert free(fleet, "n1-0") == 1000
    assert fleet.seat("n0-0") is None
    with pytest.raises(FleetError):
        fleet.remove_node("n0")


def test_an_unchanged_node_costs_nothing() -> None:
    fleet = fleet_of(node())
    version = fleet.version
    fleet.upsert_node(node())
    assert fleet.version == version
    fleet.upsert_node(node(reputation=1))
    assert fleet.version == version + 1


def test_one_gpu_is_one_nodes() -> None:
    fleet = fleet_of(node())
    with pytest.raises(FleetError, match="already at node 'n0'"):
        fleet.upsert_node(node("n1", cards=(gpu("n0-0"),)))
    with pytest.raises(FleetError, match="twice"):
        fleet.upsert_node(node("n1", cards=(gpu("x"), gpu("x"))))


def test_a_node_of_two_models_shares_its_cpu_between_them() -> None:
    fleet = fleet_of(node(cards=(gpu("a"), gpu("b", model="L4", memory_bytes=24 * 10**9)), cpu_milli=8_000))
    fleet.take(held("l", ("a", 1000), cpu_milli=5_000))
    assert [int(fleet.room[0, row]) for row in fleet.rows_of("n0")] == [3_000, 3_000]


def test_unknown_leases_and_gpus_are_refused() -> None:
    fleet = fleet_of(node())
    for call in (lambda: fleet.release("x"), lambda: fleet.checkpointed("x", 1), lambda: fleet.used("x", 1)):
        with pytest.raises(FleetError):
            call()


def test_wide_nodes_and_many_nodes_find_room() -> None:
    fleet = fleet_of(*(node(f"n{i}", 2) for i in range(70)), node("wide", 16))
    answer = place(fleet, Request(gpu=parse_gpu("H100:16")))
    fleet.take(as_held(answer, "l"))
    assert free(fleet, "wide-15") == 0
    assert free(fleet, "n69-1") == 1000


def test_ten_thousand_gpus_are_rebuilt_in_a_second() -> None:
    nodes = [node(f"n{i}", 8) for i in range(1_250)]
    leases = [held(f"l{i}", (f"n{i}-0", 1000), where=f"n{i}") for i in range(1_250)]
    start = time.process_time()
    fleet = fleet_of(*nodes)
    for one in leases:
        fleet.take(one)
    place(fleet, Request())
    assert time.process_time() - start < 1


def test_endless_price_changes_leave_nothing_behind() -> None:
    fleet = fleet_of(node("n0"), node("n1"))
    fleet.take(held("l", ("n0-0", 1000)))
    for price in range(1_500):
        cards = tuple(gpu(f"n0-{i}", prices_dc_per_gpu_hour={"on_demand": price}) for i in range(2))
        fleet.upsert_node(node("n0", cards=cards, reputation=price % 1000))
    assert len(fleet.sorts) < 1_200
    answer = place(fleet, Request(gpu=parse_gpu("H100"), min_reputation=1))
    assert isinstance(answer, Placement)
    assert (answer.assignments[0].gpus[0].uuid, answer.price_dc_per_gpu_hour) == ("n0-1", 1_499)
    assert place(fleet, Request(gpu=parse_gpu("H100"))).price_dc_per_gpu_hour == 200
