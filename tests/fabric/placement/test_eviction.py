"""Who has to leave, against a brute force that tries every place and every set of spot leases, on small fleets."""

from collections.abc import Iterable
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.placement.answer import Placement
from fabric.placement.fleet import Assignment, Fleet, Gpu, GpuShare, Held, Node
from fabric.placement.grammar import parse_gpu
from fabric.placement.place import place
from fabric.placement.request import Request

NOW = 1_000
NODES = ("n0", "n1", "n2", "n3")


def node(name: str, gpus: int) -> Node:
    cards = tuple(
        Gpu(
            uuid=f"{name}-{i}",
            model="H100",
            memory_bytes=80 * 10**9,
            prices_dc_per_gpu_hour={"on_demand": 2, "spot": 1},
        )
        for i in range(gpus)
    )
    return Node(name=name, operator="ann", cluster="ann-1", gpus=cards, cpu_milli=16_000, memory_bytes=10**9)


def held(name: str, where: str, gpus: Iterable[int], *, tier="spot", safe_ms=0, cpu_milli=0, gang="") -> Held:
    shares = tuple(GpuShare(f"{where}-{i}", 1000) for i in gpus)
    return Held(name, tier, (Assignment(where, shares, cpu_milli, 0, 0),), safe_ms, None, gang)


def fleet_of(sizes: dict[str, int], leases: Iterable[Held]) -> Fleet:
    fleet = Fleet()
    for name, gpus in sizes.items():
        fleet.upsert_node(node(name, gpus))
    for one in leases:
        fleet.take(one)
    return fleet


def brute_loss(fleet: Fleet, gone: Iterable[str]) -> int:
    gangs = {fleet.leases[name].gang or name for name in gone}
    losing = [one for one in fleet.leases.values() if (one.gang or one.lease) in gangs]
    return sum((NOW - one.safe_ms) * len(one.assignments[0].gpus) for one in losing)


def brute_fits(fleet: Fleet, name: str, gone: set[str], request: Request) -> bool:
    stay = [one.assignments[0] for one in fleet.leases_on(name) if one.lease not in gone]
    free = len(fleet.nodes[name].gpus) - sum(len(part.gpus) for part in stay)
    cpu = fleet.nodes[name].cpu_milli - sum(part.cpu_milli for part in stay)
    return free >= request.gpu.specs[0].count_min and cpu >= request.cpu_milli


def brute_least(fleet: Fleet, request: Request) -> int | None:
    """The least that any set of spot leases loses with which the request fits; None when none would do."""
    spots = [one.lease for one in fleet.leases.values() if one.tier == "spot"]
    sets = (set(some) for size in range(len(spots) + 1) for some in combinations(spots, size))
    able = [
        brute_loss(fleet, gone)
        for gone in sets
        if sum(brute_fits(fleet, name, gone, request) for name in fleet.nodes) >= request.nodes
    ]
    return min(able, default=None)


@st.composite
def fleets(draw) -> Fleet:
    sizes = {name: draw(st.integers(1, 4)) for name in NODES[: draw(st.integers(1, 4))]}
    leases: list[Held] = []
    for name, gpus in sizes.items():
        free, gangs = list(range(gpus)), ["", "", "red", "blue"]  # a gang has one lease on a node
        while free and len(leases) < 9 and draw(st.integers(0, 3)):
            mine = [free.pop() for _ in range(draw(st.integers(1, len(free))))]
            tier = draw(st.sampled_from(["spot", "spot", "spot", "on_demand"]))
            gang = draw(st.sampled_from(gangs)) if tier == "spot" else ""
            gangs = [one for one in gangs if one != gang or not gang]
            cpu_milli = draw(st.sampled_from([0, 4_000]))
            safe_ms = draw(st.integers(0, 9)) * 100
            leases.append(
                held(f"l{len(leases)}", name, mine, tier=tier, safe_ms=safe_ms, cpu_milli=cpu_milli, gang=gang)
            )
    return fleet_of(sizes, leases)


@settings(max_examples=250, deadline=None)
@given(fleets(), st.integers(1, 4), st.integers(1, 3), st.sampled_from([0, 1_000, 12_000]))
def test_no_other_eviction_would_lose_less(fleet, gpus, count, cpu_milli) -> None:
    request = Request(gpu=parse_gpu(f"H100:{gpus}"), nodes=count, cpu_milli=cpu_milli)
    answer = place(fleet, request, now_ms=NOW)
    least = brute_least(fleet, request)
    if not isinstance(answer, Placement):
        assert least is None
        return
    assert brute_loss(fleet, answer.evicts) == least
    gone = set(answer.evicts)
    assert all(fleet.leases[name].tier == "spot" for name in gone)
    for part in answer.assignments:
        assert brute_fits(fleet, part.node, gone, request)
        taken = {s.uuid for one in fleet.leases_on(part.node) if one.lease not in gone for s in one.assignments[0].gpus}
        assert not taken.intersection(share.uuid for share in part.gpus)


def test_one_large_lease_goes_rather_than_many_small_ones_that_lose_more() -> None:
    small = [held(f"small-{i}", "n0", [i], safe_ms=700) for i in range(4)]
    fleet = fleet_of({"n0": 8}, [*small, held("large", "n0", range(4, 8), safe_ms=750)])
    answer = place(fleet, Request(gpu=parse_gpu("H100:4")), now_ms=NOW)
    assert isinstance(answer, Placement)
    assert answer.evicts == ("large",)


def test_a_gang_that_has_to_go_anyway_is_lost_once() -> None:
    gang = [held(f"rank-{i}", f"n{i}", [0, 1], safe_ms=400, gang="gang") for i in range(2)]
    single = [held(f"single-{i}", f"n{i + 2}", [0, 1], safe_ms=300) for i in range(2)]
    fleet = fleet_of(dict.fromkeys(NODES, 2), [*gang, *single])
    one, two = (place(fleet, Request(gpu=parse_gpu("H100:2"), nodes=n), now_ms=NOW) for n in (1, 2))
    assert isinstance(one, Placement)
    assert isinstance(two, Placement)
    assert one.evicts == ("single-0",)
    assert set(two.evicts) == {"rank-0", "rank-1"}
