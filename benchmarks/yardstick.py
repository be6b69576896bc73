"""A made-up fleet of any size and the requests made to it, for measuring decision speed.

Nodes of eight GPUs, fifty operators with prices of their own, three quarters of all GPUs already leased; the requests
differ in model, number, CPU, tier, price cap, region and round trip, so that the product's filters all work.
"""

import random
from collections.abc import Iterator

from benchmarks.packers import FabricPacker
from fabric.placement.fleet import Assignment, Fleet, Gpu, GpuShare, Held, Node
from fabric.placement.grammar import parse_gpu
from fabric.placement.request import Request

_GPUS_PER_NODE = 8
_OPERATORS = 50
_CARDS = {
    "NVIDIA H100 80GB HBM3": (81_559, 250_000),
    "NVIDIA A100-SXM4-80GB": (81_920, 150_000),
    "NVIDIA L40S": (46_068, 90_000),
    "NVIDIA L4": (23_034, 50_000),
}
_REGIONS = ("eu", "us", "asia")
_WISHES = ("H100:8", "H100", "A100:4", "A100:2", "L40S", "L4", "L4:0.5", "L4:0.25", "24GB..", "80GB..:2")
_CPUS = (2_000, 4_000, 6_000, 8_000, 12_000, 16_000)
_TIERS = ("on_demand", "on_demand", "spot")
_CAPS = (None, None, 300_000, 120_000)
_GIB = 2**30


def large_fleet_packer(gpus: int, seed: int) -> FabricPacker:
    """A fleet of so many GPUs, three quarters of them leased."""
    draw = random.Random(seed)
    packer = FabricPacker([], [])
    for index in range(max(gpus // _GPUS_PER_NODE, 1)):
        node = _node(index)
        packer.fleet.upsert_node(node)
        _occupy(packer.fleet, node, draw)
    return packer


def large_fleet_arrivals(decisions: int, seed: int) -> Iterator[Request]:
    """So many requests, a third of them near to somewhere."""
    draw = random.Random(seed)
    for _ in range(decisions):
        near = {f"cluster-{index}": float(draw.randrange(5, 200)) for index in range(_OPERATORS)}
        local = draw.random() < 1 / 3
        yield Request(
            gpu=parse_gpu(draw.choice(_WISHES)),
            cpu_milli=draw.choice(_CPUS),
            memory_bytes=draw.choice((8, 16, 32, 64)) * _GIB,
            tier=draw.choice(_TIERS),
            max_price_dc_per_gpu_hour=draw.choice(_CAPS),
            region=frozenset(draw.sample(_REGIONS, 1)) if draw.random() < 0.25 else frozenset(),
            rtt_ms=near if local else {},
            max_rtt_ms=150.0 if local else None,
            objective="latency" if local else "cost",
        )


def _node(index: int) -> Node:
    operator = index % _OPERATORS
    model, (memory_mib, price) = list(_CARDS.items())[(index // _OPERATORS) % len(_CARDS)]
    prices = price + 1_000 * (operator % 7)
    gpus = tuple(
        Gpu(
            uuid=f"GPU-{index}-{position}",
            model=model,
            memory_bytes=memory_mib * 2**20,
            prices_dc_per_gpu_hour={"on_demand": prices, "spot": prices // 2},
            share_step_milli=10 if model == "NVIDIA L4" else 0,
        )
        for position in range(_GPUS_PER_NODE)
    )
    return Node(
        name=f"node-{index}",
        operator=f"operator-{operator}",
        cluster=f"cluster-{operator}",
        region=_REGIONS[operator % len(_REGIONS)],
        gpus=gpus,
        cpu_milli=128_000,
        memory_bytes=1024 * _GIB,
    )


def _occupy(fleet: Fleet, node: Node, draw: random.Random) -> None:
    taken = draw.choice((2, 4, 6, 7, 8, 8))
    shares = tuple(GpuShare(gpu.uuid, 1000) for gpu in node.gpus[:taken])
    assignment = Assignment(node.name, shares, 8_000 * taken, 64 * _GIB * taken, 0)
    fleet.take(Held(f"before-{node.name}", draw.choice(("on_demand", "spot")), (assignment,)))
