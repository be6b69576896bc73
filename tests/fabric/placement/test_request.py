"""Requests that contradict themselves are refused before any fleet is looked at."""

import pytest

from fabric.placement.grammar import GpuRequest
from fabric.placement.request import Request, RequestError


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"nodes": 0}, "nodes"),
        ({"cpu_milli": -1}, "cpu"),
        ({"memory_bytes": -1}, "memory"),
        ({"disk_bytes": -1}, "disk"),
        ({"max_price_dc_per_gpu_hour": -1}, "max_price"),
        ({"max_rtt_ms": -1.0}, "max_rtt_ms"),
        ({"min_reputation": -1}, "min_reputation"),
        ({"tier": "cheap"}, "tier"),
        ({"objective": "speed"}, "objective"),
        ({"operators": frozenset({"a"}), "operators_denied": frozenset({"a"})}, "both allowed and denied"),
        ({"tier": "reserved"}, "slot"),
        ({"slot": "s"}, "slot"),
        ({"gpu": GpuRequest(())}, "alternatives"),
    ],
)
def test_a_contradiction_names_the_field(changes: dict, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        Request(**changes)


def test_nothing_said_is_one_gpu_of_any_kind_at_any_price() -> None:
    request = Request()
    assert (str(request.gpu), request.nodes, request.tier, request.objective) == (":1", 1, "on_demand", "cost")
    assert Request(tier="reserved", slot="s").slot == "s"
