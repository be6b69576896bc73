"""`place` against a brute force that looks at everything, on small fleets: legal, complete, cheapest, best packed."""

from dataclasses import dataclass, replace
from itertools import combinations, groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.placement.answer import Placement, Reason, Refusal, Verdict
from fabric.placement.fleet import Fleet, Gpu, Held, Kind, Node
from fabric.placement.grammar import GpuRequest, GpuSpec, parse_gpu
from fabric.placement.outlook import CELLS, STEP_MILLI
from fabric.placement.place import as_held, keep_clear, offers, place
from fabric.placement.policy import BATCH
from fabric.placement.request import Request

GB = 10**9
MODELS = {"H100": 80 * GB, "A100": 40 * GB, "L4": 24 * GB}


def gpu(uuid: str, model: str = "H100", **changes) -> Gpu:
    prices = changes.pop("prices", {"on_demand": 200, "spot": 100})
    return Gpu(uuid=uuid, model=model, memory_bytes=MODELS[model], prices_dc_per_gpu_hour=prices, **changes)


def node(name: str, gpus: int = 8, model: str = "H100", **changes) -> Node:
    facts = {"operator": "ann", "cluster": "ann-1", "cpu_milli": 64_000, "memory_bytes": 512 * GB} | changes
    cards = facts.pop("cards", None)
    prices = facts.pop("prices", {"on_demand": 200, "spot": 100})
    step = facts.pop("share_step_milli", 10)
    cards = cards or tuple(gpu(f"{name}-{i}", model, prices=prices, share_step_milli=step) for i in range(gpus))
    return Node(name=name, gpus=cards, **facts)


def fleet_of(*nodes: Node) -> Fleet:
    fleet = Fleet()
    for one in nodes:
        fleet.upsert_node(one)
    return fleet


def ask(text, **changes) -> Request:
    return Request(gpu=parse_gpu(text), **changes)


def placed(answer) -> Placement:
    assert isinstance(answer, Placement), answer.text
    return answer


def refused(answer) -> Refusal:
    assert isinstance(answer, Refusal), answer
    return answer


def lease(fleet: Fleet, name: str, request: Request, **changes) -> Placement:
    answer = placed(place(fleet, request))
    fleet.take(as_held(answer, name, **changes))
    return answer


# ---- a brute force that shares nothing with the product but the rules


@dataclass(frozen=True)
class Free:
    node: Node
    kind: Kind
    gpus: tuple[tuple[str, int], ...]
    cpu_milli: int
    memory_bytes: int


def brute_rows(fleet: Fleet, *, empty: bool = False) -> list[Free]:
    rows = []
    for one in fleet.nodes.values():
        held = [] if empty else [p for h in fleet.leases.values() for p in h.assignments if p.node == one.name]
        taken: dict[str, int] = {}
        for part in held:
            for share in part.gpus:
                taken[share.uuid] = taken.get(share.uuid, 0) + share.milli
        healthy = sorted((g for g in one.gpus if g.healthy), key=lambda g: repr(Kind.of(g)))
        for _, alike in groupby(healthy, key=lambda g: repr(Kind.of(g))):
            cards = list(alike)
            free = tuple((g.uuid, 1000 - taken.get(g.uuid, 0)) for g in cards)
            cpu = one.cpu_milli - sum(p.cpu_milli for p in held)
            memory = one.memory_bytes - sum(p.memory_bytes for p in held)
            rows.append(Free(one, Kind.of(cards[0]), free, cpu, memory))
    return rows


def brute_allows(row: Free, request: Request, spec: GpuSpec, *, any_price: bool = False) -> bool:
    one, kind = row.node, row.kind
    price = kind.price(request.tier)
    cap = request.max_price_dc_per_gpu_hour
    return (
        spec.accepts(kind.vendor, kind.model, kind.memory_bytes)
        and price is not None
        and (any_price or cap is None or price <= cap)
        and (not request.region or one.region in request.region)
        and (not request.operators or one.operator in request.operators)
        and one.operator not in request.operators_denied
        and one.reputation >= request.min_reputation
        and one.verification >= request.min_verification
        and one.name not in request.exclude_nodes
        and (not request.python or not one.pythons or request.python in one.pythons)
        and request.needs <= one.capabilities
        and (not request.interconnect or request.interconnect in one.interconnects)
        and (request.max_rtt_ms is None or request.rtt_ms.get(one.cluster, 1e9) <= request.max_rtt_ms)
        and (request.tier == "spot" or kind.slot == request.slot)
        and (request.allow_simulated or not kind.simulated)
    )


def brute_fits(row: Free, request: Request, spec: GpuSpec) -> bool:
    milli = row.kind.granted_milli(spec.milli)
    able = sum(free >= milli for _, free in row.gpus) if milli else 0
    return able >= spec.count_min and row.cpu_milli >= request.cpu_milli and row.memory_bytes >= request.memory_bytes


def brute_prices(rows: list[Free], request: Request, spec: GpuSpec, *, any_price: bool = False) -> list[int]:
    """The price of every possible gang, by trying every combination of nodes."""
    able = [r for r in rows if brute_allows(r, request, spec, any_price=any_price) and brute_fits(r, request, spec)]
    gangs = [
        gang
        for gang in combinations(able, request.nodes)
        if len({r.node.name for r in gang}) == request.nodes
        and len({r.node.cluster for r in gang}) == 1
        and len({r.kind for r in gang}) == 1
    ]
    return [gang[0].kind.price(request.tier) or 0 for gang in gangs]


def check_legal(fleet: Fleet, request: Request, answer: Placement) -> None:
    spec = request.gpu.specs[answer.alternative]
    assert len({part.node for part in answer.assignments}) == request.nodes == len(answer.assignments)
    assert len({fleet.nodes[part.node].cluster for part in answer.assignments}) == 1
    for part in answer.assignments:
        rows = [r for r in brute_rows(fleet) if r.node.name == part.node]
        mine = {share.uuid for share in part.gpus}
        row = next(r for r in rows if mine <= {uuid for uuid, _ in r.gpus})
        assert brute_allows(row, request, spec)
        assert len(mine) == len(part.gpus) == answer.gpus_per_node >= spec.count_min
        assert spec.count_max is None or answer.gpus_per_node <= spec.count_max
        assert all(share.milli == answer.milli >= spec.milli for share in part.gpus)
        free = dict(row.gpus)
        if not answer.evicts:
            assert all(free[share.uuid] >= share.milli for share in part.gpus)
        assert (part.cpu_milli, part.memory_bytes) == (request.cpu_milli, request.memory_bytes)
        assert row.kind.price(request.tier) == answer.price_dc_per_gpu_hour


# ---- small fleets and requests of every sort


@st.composite
def nodes(draw, name: str) -> Node:
    operator = draw(st.sampled_from(["ann", "bob"]))
    model = draw(st.sampled_from(sorted(MODELS)))
    prices = {"on_demand": {"ann": 200, "bob": 150}[operator] + len(model), "spot": 90}
    shares = draw(st.sampled_from([{}, {"share_step_milli": 10}, {"shares_milli": (142, 285, 571)}]))
    slot = draw(st.sampled_from(["", "", "slot-1"]))
    cards = [gpu(f"{name}-{i}", model, prices=prices, **shares) for i in range(draw(st.integers(1, 4)))]
    if draw(st.booleans()):
        cards[0] = replace(cards[0], slot=slot)
    if draw(st.integers(0, 4)) == 0:
        cards[-1] = replace(cards[-1], healthy=False)
    return Node(
        name=name,
        operator=operator,
        cluster=f"{operator}-{draw(st.integers(1, 2))}",
        gpus=tuple(cards),
        cpu_milli=draw(st.sampled_from([4_000, 16_000])),
        memory_bytes=draw(st.sampled_from([16, 64])) * GB,
        region=draw(st.sampled_from(["eu", "us"])),
        reputation=draw(st.sampled_from([100, 900])),
        verification=draw(st.integers(0, 2)),
        interconnects=draw(st.sampled_from([frozenset(), frozenset({"nvlink"})])),
        pythons=draw(st.sampled_from([frozenset(), frozenset({"3.11"})])),
        capabilities=draw(st.sampled_from([frozenset(), frozenset({"network:open"})])),
    )


@st.composite
def requests(draw) -> Request:
    texts = ["H100", "A100:2", "24GB..", ":1", "L4:0.5", ":0.125", "H100:2..3", "80GB:2", "L4,A100:1..2", ":3"]
    chosen = draw(st.lists(st.sampled_from(texts), min_size=1, max_size=2, unique=True))
    gpus = parse_gpu(chosen if draw(st.booleans()) else set(chosen))
    changes: dict = {"tier": draw(st.sampled_from(["on_demand", "on_demand", "spot"]))}
    if draw(st.integers(0, 9)) == 0:
        changes = {"tier": "reserved", "slot": "slot-1", "gpu": gpus}
    options = {
        "max_price_dc_per_gpu_hour": st.sampled_from([80, 120, 153, 203]),
        "region": st.just(frozenset({"eu"})),
        "operators": st.just(frozenset({"ann"})),
        "operators_denied": st.just(frozenset({"bob"})),
        "min_reputation": st.just(500),
        "min_verification": st.just(1),
        "exclude_nodes": st.just(frozenset({"n0"})),
        "python": st.sampled_from(["3.11", "3.12"]),
        "needs": st.just(frozenset({"network:open"})),
        "interconnect": st.just("nvlink"),
        "max_rtt_ms": st.sampled_from([10.0, 40.0]),
        "nodes": st.integers(2, 3),
        "objective": st.just("latency"),
    }
    for name, values in options.items():
        if draw(st.integers(0, 5)) == 0:
            changes[name] = draw(values)
    return Request(
        **({"gpu": gpus} | changes),
        cpu_milli=draw(st.sampled_from([0, 1_000, 5_000])),
        memory_bytes=draw(st.sampled_from([0, 8 * GB, 20 * GB])),
        rtt_ms=draw(st.sampled_from([{}, {"ann-1": 5.0, "bob-1": 30.0}])),
    )


fleets = st.integers(1, 4).flatmap(lambda n: st.tuples(*(nodes(f"n{i}") for i in range(n))))


@settings(max_examples=300, deadline=None)
@given(fleets, st.lists(requests(), min_size=1, max_size=8))
def test_every_answer_agrees_with_brute_force(given_nodes, asked) -> None:
    fleet = fleet_of(*given_nodes)
    for index, request in enumerate(asked):
        fleet.saw(request)
        answer = place(fleet, request, now_ms=index)
        rows = brute_rows(fleet)
        possible = [(i, p) for i, s in enumerate(request.gpu.specs) for p in brute_prices(rows, request, s)]
        if isinstance(answer, Refusal):
            assert not possible
            empty = brute_rows(fleet, empty=True)
            fits = any(brute_prices(empty, request, spec) for spec in request.gpu.specs)
            fits_dear = any(brute_prices(empty, request, spec, any_price=True) for spec in request.gpu.specs)
            wanted = Verdict.TAKEN if fits else Verdict.PRICE if fits_dear else Verdict.NEVER_FITS
            assert answer.kind is wanted
            continue
        check_legal(fleet, request, answer)
        if answer.evicts:
            assert not possible
            assert request.tier != "spot"
            for name in answer.evicts:
                assert fleet.leases[name].tier == "spot"
                fleet.release(name)
        elif request.objective == "cost":
            first = min(i for i, _ in possible)
            if request.gpu.ordered:
                assert answer.alternative == first
            assert answer.price_dc_per_gpu_hour == min(p for i, p in possible if i == answer.alternative)
        fleet.take(as_held(answer, f"lease-{index}", safe_ms=index))
        for row in brute_rows(fleet):
            assert all(0 <= free <= 1000 for _, free in row.gpus)
            assert row.cpu_milli >= 0
            assert row.memory_bytes >= 0


@settings(max_examples=100, deadline=None)
@given(fleets, st.lists(requests(), min_size=1, max_size=6), st.integers(0, 3))
def test_what_was_remembered_changes_no_answer(given_nodes, asked, drop) -> None:
    """Leases and releases one by one, and a fleet rebuilt from what is left, decide alike."""
    fleet = fleet_of(*given_nodes)
    for index, request in enumerate(asked):
        fleet.saw(request)
        answer = place(fleet, request)
        if isinstance(answer, Placement) and not answer.evicts:
            fleet.take(as_held(answer, f"lease-{index}"))
        if index == drop and fleet.leases:
            fleet.release(next(iter(fleet.leases)))
    rebuilt = fleet_of(*given_nodes)
    for request in asked:
        rebuilt.saw(request)
    for held in fleet.leases.values():
        rebuilt.take(held)
    for request in asked:
        assert place(fleet, request) == place(rebuilt, request)
        assert offers(fleet, request) == offers(rebuilt, request)


@settings(max_examples=100, deadline=None)
@given(fleets, st.lists(requests(), min_size=1, max_size=6))
def test_offers_are_what_place_would_choose_from(given_nodes, asked) -> None:
    fleet = fleet_of(*given_nodes)
    for index, request in enumerate(asked):
        answer, shown = place(fleet, request), offers(fleet, request)
        free = isinstance(answer, Placement) and not answer.evicts
        assert bool(shown) == free
        if free:
            like = [o for o in shown if (o.cluster, o.model, o.milli) == (answer.cluster, answer.model, answer.milli)]
            assert answer.price_dc_per_gpu_hour in {offer.price_dc_per_gpu_hour for offer in like}
            fleet.take(as_held(answer, f"lease-{index}"))


def brute_cost(fleet: Fleet, row: Free, request: Request, spec: GpuSpec) -> float:
    """What the outlook's tables say the placement spoils, worked out with plain numbers."""
    tables = fleet.outlook.tables(fleet)
    number = fleet.models.index(row.kind.chip)

    def worth(free: list[int], cpu: float, memory: float) -> float:
        sums = [sum(tables.cell[number * CELLS + f // STEP_MILLI][i] for f in free) for i in range(4)]
        short = 1 + (sums[1] / max(cpu, 1)) ** 8 + (sums[2] / max(memory, 1)) ** 8
        return sums[0] / short**0.125 + tables.gang[number][round(sums[3])]

    milli = row.kind.granted_milli(spec.milli)
    free = [f for _, f in row.gpus]
    before = worth(free, row.cpu_milli, row.memory_bytes)
    costs = []
    for chosen in combinations([i for i, f in enumerate(free) if f >= milli], spec.count_min):
        left = [f - milli if i in chosen else f for i, f in enumerate(free)]
        after = worth(left, row.cpu_milli - request.cpu_milli, row.memory_bytes - request.memory_bytes)
        costs.append(before - after + tables.scarcity[number] * milli * spec.count_min)
    return min(costs)


@settings(max_examples=150, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=8), st.integers(2, 4))
def test_among_equally_cheap_places_the_least_spoilt_is_taken(asked, count) -> None:
    fleet = fleet_of(*(node(f"n{i}", 2 + i, cpu_milli=16_000 * (1 + i % 2)) for i in range(count)))
    for index, wish in enumerate(asked):
        request = replace(wish, nodes=1, objective="cost", region=frozenset(), max_rtt_ms=None)
        for _ in range(5):  # enough for the outlook to follow what arrives
            fleet.saw(request)
        answer = place(fleet, request)
        if not isinstance(answer, Placement) or answer.evicts:
            continue
        spec = request.gpu.specs[answer.alternative]
        rows = [r for r in brute_rows(fleet) if brute_allows(r, request, spec) and brute_fits(r, request, spec)]
        costs = {r.node.name: brute_cost(fleet, r, request, spec) for r in rows}
        assert costs[answer.assignments[0].node] == pytest.approx(min(costs.values()), abs=0.2)
        fleet.take(as_held(answer, f"lease-{index}"))


# ---- single rules


def test_the_answer_names_gpus_price_and_what_came_next() -> None:
    fleet = fleet_of(node("n0", prices={"on_demand": 210}), node("n1", operator="bob", cluster="bob-1"))
    answer = placed(place(fleet, ask("H100:2", cpu_milli=8_000)))
    assert answer.assignments[0].node == "n1"
    assert (answer.price_dc_per_gpu_hour, answer.gpu_milli, answer.price_dc_per_hour_up) == (200, 2000, 400)
    assert answer.explain.next_best is not None
    assert (answer.explain.next_best.node, answer.explain.next_best.price_dc_per_gpu_hour) == ("n0", 210)
    assert answer.explain.considered == 2
    assert answer.explain.chosen_because == "price, then packing"


def test_rejections_are_counted_by_their_first_reason() -> None:
    fleet = fleet_of(node("n0"), node("n1", region="us", prices={"on_demand": 900}), node("n2", model="L4"), node("n3"))
    request = ask("H100", max_price_dc_per_gpu_hour=500, exclude_nodes=frozenset({"n3"}))
    explain = placed(place(fleet, request)).explain
    assert dict(explain.rejected) == {Reason.GPU: 1, Reason.PRICE: 1, Reason.EXCLUDED: 1}
    assert explain.eligible == 1


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        ({"text": "H100:12"}, "8 instead of 12 × H100 per node"),
        ({"nodes": 3}, "2 instead of 3 nodes with H100"),
        ({"cpu_milli": 65_000}, "nodes with H100 have at most 64 cores"),
        ({"cpu_milli": 65_000, "memory_bytes": 513 * 10**9}, "at most 64 cores, 476.837 GiB of memory"),
        ({"python": "3.9"}, "2 × H100 with Python 3.11 or 3.12"),
        ({"interconnect": "infiniband"}, "2 × H100 with nvlink"),
        ({"tier": "spot"}, "2 × H100 offered on_demand"),
    ],
)
def test_what_never_fits_is_told_the_nearest_thing_that_would(wish, text) -> None:
    facts = {"pythons": frozenset({"3.11", "3.12"}), "interconnects": frozenset({"nvlink"})}
    fleet = fleet_of(*(node(name, prices={"on_demand": 200}, **facts) for name in ("n0", "n1")))
    answer = refused(place(fleet, ask(**({"text": "H100:8"} | wish))))
    assert answer.kind is Verdict.NEVER_FITS
    assert text in answer.text


def test_a_share_grows_to_the_next_size_that_the_device_enforces() -> None:
    mig = tuple(gpu(f"g{i}", shares_milli=(142, 285, 571)) for i in range(2))
    fleet = fleet_of(node("n0", cards=mig))
    assert placed(place(fleet, ask("H100:0.2"))).milli == 285
    assert refused(place(fleet, ask("H100:0.6"))).kind is Verdict.NEVER_FITS
    for index in range(7):
        lease(fleet, f"l{index}", ask("H100:0.142"))
    assert {share.uuid for h in fleet.leases.values() for share in h.assignments[0].gpus} == {"g0"}


def test_whole_gpus_only_where_no_shares_are_offered() -> None:
    fleet = fleet_of(node("n0", share_step_milli=0))
    assert refused(place(fleet, ask("H100:0.5"))).kind is Verdict.NEVER_FITS
    assert placed(place(fleet, ask("H100"))).milli == 1000


def test_a_gang_is_all_or_nothing_in_one_cluster() -> None:
    fleet = fleet_of(node("n0"), node("n1", cluster="ann-2"), node("n2"))
    answer = placed(place(fleet, ask("H100:8", nodes=2)))
    assert {part.node for part in answer.assignments} == {"n0", "n2"}
    lease(fleet, "one", ask("H100", operators=frozenset({"ann"})))
    assert refused(place(fleet, ask("H100:8", nodes=3))).kind is Verdict.NEVER_FITS


def test_of_a_range_cost_takes_the_smallest_and_latency_the_largest_free() -> None:
    fleet = fleet_of(node("n0"))
    lease(fleet, "two", ask("H100:2"))
    assert placed(place(fleet, ask("H100:2..8"))).gpus_per_node == 2
    assert placed(place(fleet, ask("H100:2..8", objective="latency"))).gpus_per_node == 6
    assert placed(place(fleet, ask("H100:2..4", objective="latency"))).gpus_per_node == 4
    assert placed(place(fleet, ask("H100:2..", objective="latency"))).gpus_per_node == 6


def test_an_ordered_preference_beats_a_lower_price_and_a_set_does_not() -> None:
    fleet = fleet_of(node("n0"), node("n1", model="L4", prices={"on_demand": 20}))
    assert placed(place(fleet, ask(["H100", "L4"]))).model == "H100"
    assert placed(place(fleet, ask({"H100", "L4"}))).model == "L4"


def test_latency_takes_the_nearest_then_keeps_replicas_apart() -> None:
    fleet = fleet_of(
        node("n0"), node("n1"), node("n2", cluster="ann-2", prices={"on_demand": 900}), node("n3", cluster="far")
    )
    rtt_ms = {"ann-1": 11.0, "ann-2": 12.0, "far": 80.0}
    request = ask("H100", objective="latency", rtt_ms=rtt_ms, max_rtt_ms=60)
    assert placed(place(fleet, request)).cluster == "ann-1"
    apart = replace(request, apart_from=frozenset({"n0"}))
    assert placed(place(fleet, apart)).cluster == "ann-2"
    apart = replace(request, apart_from=frozenset({"n0", "n2"}))
    assert placed(place(fleet, apart)).assignments[0].node == "n1"
    assert placed(place(fleet, request)).rtt_ms == 11.0


def test_unknown_distance_is_too_far_only_when_distance_matters() -> None:
    fleet = fleet_of(node("n0"))
    assert placed(place(fleet, ask("H100", rtt_ms={"other": 3.0}))).rtt_ms is None
    answer = refused(place(fleet, ask("H100", rtt_ms={"other": 3.0}, max_rtt_ms=50.0)))
    assert "unknown distance" in answer.text


def test_batch_takes_any_cheapest_place() -> None:
    fleet = fleet_of(node("n0"), node("n1", prices={"on_demand": 150}))
    assert placed(place(fleet, ask("H100"), BATCH)).assignments[0].node == "n1"


def test_of_equal_gpus_the_least_used_is_taken_first() -> None:
    fleet = fleet_of(node("n0", 2), node("n1", 2))
    for uuid, used in (("n0-0", 50), ("n0-1", 40), ("n1-0", 30), ("n1-1", 20)):
        fleet.used(uuid, used)
    assert [share.uuid for share in placed(place(fleet, ask("H100"))).assignments[0].gpus] == ["n1-1"]


def test_only_the_holder_of_a_slot_gets_its_gpus_and_spot_may_borrow_them() -> None:
    cards = tuple(gpu(f"g{i}", slot="s1", prices={"on_demand": 200, "spot": 50, "reserved": 0}) for i in range(2))
    fleet = fleet_of(node("n0", cards=cards))
    assert refused(place(fleet, ask("H100"))).kind is Verdict.NEVER_FITS
    assert refused(place(fleet, ask("H100", tier="reserved", slot="s2"))).kind is Verdict.NEVER_FITS
    assert placed(place(fleet, ask("H100", tier="reserved", slot="s1"))).price_dc_per_gpu_hour == 0
    assert placed(place(fleet, ask("H100", tier="spot"))).price_dc_per_gpu_hour == 50


def test_an_on_demand_offer_shows_when_a_sold_slot_begins() -> None:
    cards = (gpu("g0", ends_at_ms=5_000),)
    assert placed(place(fleet_of(node("n0", cards=cards)), ask("H100"))).ends_at_ms == 5_000
    assert [o.ends_at_ms for o in offers(fleet_of(node("n0", cards=cards)), ask("H100"))] == [5_000]


def test_spot_is_evicted_only_when_nothing_is_free_and_least_work_is_lost() -> None:
    fleet = fleet_of(node("n0", 2), node("n1", 2))
    for name, safe_ms in (("old", 0), ("new", 900), ("mid", 500)):
        lease(fleet, name, ask("H100", tier="spot"), safe_ms=safe_ms)
    assert placed(place(fleet, ask("H100"), now_ms=1000)).evicts == ()
    lease(fleet, "last", ask("H100", tier="spot"), safe_ms=100)
    answer = placed(place(fleet, ask("H100"), now_ms=1000))
    assert answer.evicts == ("new",)
    fleet.checkpointed("old", 1000)
    assert placed(place(fleet, ask("H100"), now_ms=1000)).evicts == ("old",)
    assert refused(place(fleet, ask("H100", tier="spot"), now_ms=1000)).kind is Verdict.TAKEN


def test_on_demand_is_never_evicted() -> None:
    fleet = fleet_of(node("n0", 1))
    lease(fleet, "theirs", ask("H100"))
    assert refused(place(fleet, ask("H100"))).kind is Verdict.TAKEN


def test_a_gang_evicts_on_as_many_nodes_as_it_needs() -> None:
    fleet = fleet_of(node("n0", 2), node("n1", 2), node("n2", 2))
    for index in range(3):
        lease(fleet, f"s{index}", ask("H100:2", tier="spot"), safe_ms=index)
    answer = placed(place(fleet, ask("H100:2", nodes=2), now_ms=10))
    assert answer.evicts == ("s2", "s1")


def test_refusals_tell_never_too_dear_and_taken_apart_and_name_the_nearest() -> None:
    fleet = fleet_of(node("n0", 2, region="eu"))
    dear = refused(place(fleet, ask("H100", max_price_dc_per_gpu_hour=150)))
    assert dear.kind is Verdict.PRICE
    assert dear.nearest[0].needed == 200
    assert "$0.0005 above your cap" in dear.text
    far = refused(place(fleet, ask("H100", rtt_ms={"ann-1": 31.0}, max_rtt_ms=20.0)))
    assert far.kind is Verdict.NEVER_FITS
    assert "1 × H100 at 31 ms, above your 20 ms" in far.text
    elsewhere = refused(place(fleet, ask("H100", region=frozenset({"us"}))))
    assert elsewhere.nearest[0].needed == "eu"
    fewer = refused(place(fleet, ask("H100:4")))
    assert fewer.kind is Verdict.NEVER_FITS
    lease(fleet, "one", ask("H100"), until_ms=40 * 60_000)
    taken = refused(place(fleet, ask("H100:2")))
    assert taken.kind is Verdict.TAKEN
    assert "1 instead of 2 × H100 per node" in taken.text
    assert "free in about 40 min" in taken.text
    assert dict(taken.reasons) == {Reason.TAKEN: 1}


def test_a_model_nobody_has_is_answered_with_what_it_may_have_meant() -> None:
    fleet = fleet_of(node("n0"))
    assert refused(place(fleet, ask("H10O"))).did_you_mean == ("H100",)
    assert refused(place(Fleet(), ask("H100"))).kind is Verdict.NEVER_FITS
    assert "empty" in refused(place(Fleet(), ask("H100"))).text


def test_simulated_gpus_serve_only_who_allows_them() -> None:
    fleet = fleet_of(node("n0", cards=(gpu("g0", simulated=True),)))
    assert placed(place(fleet, ask("H100"))).simulated
    assert Reason.SIMULATED in dict(refused(place(fleet, ask("H100", allow_simulated=False))).reasons)


def test_offers_count_what_is_left() -> None:
    fleet = fleet_of(node("n0"), node("n1"), node("n2", operator="bob", cluster="bob-1", prices={"on_demand": 150}))
    shown = offers(fleet, ask("H100:4"))
    assert [(o.operator, o.available, o.price_dc_per_gpu_hour) for o in shown] == [("bob", 2, 150), ("ann", 4, 200)]
    assert [o.available for o in offers(fleet, ask("H100:8", nodes=2))] == [1]
    lease(fleet, "one", ask("H100:5", operators=frozenset({"ann"})))
    assert [o.available for o in offers(fleet, ask("H100:4"))] == [2, 2]


def test_work_without_gpus_needs_only_room() -> None:
    fleet = fleet_of(node("n0", 1))
    lease(fleet, "gpu", ask("H100", cpu_milli=60_000))
    no_gpu = GpuRequest((GpuSpec(count_min=0, count_max=0),))
    assert placed(place(fleet, Request(gpu=no_gpu, cpu_milli=4_000))).assignments[0].gpus == ()
    assert refused(place(fleet, Request(gpu=no_gpu, cpu_milli=5_000))).kind is Verdict.TAKEN


def test_a_held_lease_is_what_was_placed() -> None:
    fleet = fleet_of(node("n0"))
    answer = placed(place(fleet, ask("H100", tier="spot")))
    assert as_held(answer, "l", safe_ms=3, until_ms=9) == Held("l", "spot", answer.assignments, 3, 9)


def test_room_for_who_waits_too_long_collects_where_least_is_held() -> None:
    fleet = fleet_of(node("n0"), node("n1"), node("n2", cluster="ann-2"), node("n3", model="L4"))
    for index, (name, count) in enumerate((("n0", 3), ("n1", 2), ("n2", 1))):
        others = frozenset({"n0", "n1", "n2"} - {name})
        lease(fleet, f"l{index}", ask(f"H100:{count}", exclude_nodes=others))
    big = ask("H100:8")
    assert refused(place(fleet, big)).kind is Verdict.TAKEN
    assert keep_clear(fleet, big) == {"n2"}
    assert keep_clear(fleet, ask("H100:8", nodes=2)) == {"n0", "n1"}
    assert keep_clear(fleet, ask(["B200", "L4"])) == {"n3"}
    assert keep_clear(fleet, ask("H100:9")) == frozenset()
    assert placed(place(fleet, ask("H100", exclude_nodes=keep_clear(fleet, big)))).assignments[0].node != "n2"


def test_a_price_at_the_cap_is_paid_and_one_above_it_is_not() -> None:
    fleet = fleet_of(node("n0"))
    assert placed(place(fleet, ask("H100", max_price_dc_per_gpu_hour=200))).price_dc_per_gpu_hour == 200
    assert refused(place(fleet, ask("H100", max_price_dc_per_gpu_hour=199))).kind is Verdict.PRICE


def test_each_wish_is_met_at_its_bound_and_refused_beyond_it() -> None:
    facts = {"reputation": 500, "verification": 2, "cpu_milli": 8_000, "memory_bytes": 10 * GB, "disk_bytes": 7}
    fleet = fleet_of(node("n0", 2, **facts))
    bounds = {
        "min_reputation": 500,
        "min_verification": 2,
        "cpu_milli": 8_000,
        "memory_bytes": 10 * GB,
        "disk_bytes": 7,
    }
    for name, bound in bounds.items():
        placed(place(fleet, ask("H100", **{name: bound})))
        assert refused(place(fleet, ask("H100", **{name: bound + 1}))).kind is Verdict.NEVER_FITS
    rtt_ms = {"ann-1": 20.0}
    placed(place(fleet, ask("H100", rtt_ms=rtt_ms, max_rtt_ms=20.0)))
    refused(place(fleet, ask("H100", rtt_ms=rtt_ms, max_rtt_ms=19.9)))
