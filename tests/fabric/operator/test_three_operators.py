"""The federation as a customer meets it: three operators, one map over all of them, and one that dies in its middle."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from books import books_are_right
from errand import where
from fabric_of_three import ALICE, BALANCE_DC, ThreeOperators, wait_for

import fabric
from fabric.client import session as sessions

GIVEN_UP_S = 5.0
"""How long the customer's process tries to reach a node again; 30 s where nobody waits for a test."""


@pytest.fixture
def three(tmp_path, monkeypatch):
    monkeypatch.setattr("fabric.client.channel.RECONNECT_S", GIVEN_UP_S)
    made = ThreeOperators(tmp_path)
    try:
        made.start()
        fabric.init(made.url, ALICE)
        yield made
    finally:
        sessions.end()
        fabric.init()
        made.tell()
        made.end()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.sandbox
@pytest.mark.skipif(shutil.which("bwrap") is None or shutil.which("cc") is None, reason="needs bubblewrap and cc")
def test_a_map_over_three_operators_outlives_one_of_them_and_is_billed_right(three):
    ids = {name: one.id for name, one in three.operators.items()}
    models = {"amber": "H100", "birch": "A100", "cedar": "L4"}
    assert three.offered() == sorted((ids[name], model) for name, model in models.items() for _ in range(2))

    def operator_of(**wish):
        run = fabric.submit(where, 1, **wish)
        assert run.result(timeout=60) == 1
        (lease,) = three.get(f"/v1/runs/{run.id}")["leases"]
        return lease["operator"]

    assert operator_of() == ids["cedar"], "the cheapest"
    assert operator_of(gpu="A100") == ids["birch"], "the type asked for"
    assert operator_of(gpu="80GB..", region="eu", max_price=3.5, max_rtt_ms=5_000) == ids["amber"]
    with pytest.raises(fabric.PriceExceeded):
        fabric.run(where, 1, gpu="H100", max_price=2.99)
    with pytest.raises(fabric.NoCapacity):
        fabric.run(where, 1, gpu="H100", max_rtt_ms=0.001, queue_timeout=0)

    got, killed = [], False
    for index in fabric.map(where, range(240), max_parallel=6, ordered=False, linger=0):
        got.append(index)
        if len(got) == 60 and not killed:
            killed = True
            newest = three.get("/v1/runs?limit=1")["runs"][0]
            assert {lease["operator"] for lease in newest["leases"]} == set(ids.values()), "all three at work"
            three.operators["birch"].kill()
    assert sorted(got) == list(range(240)), "each once"

    def told():
        run = three.get(f"/v1/runs/{newest['id']}")
        ours = [lease for lease in run["leases"] if lease["operator"] != ids["birch"]]
        return run if run["state"] == "SUCCEEDED" and all(lease["state"] == "CLOSED" for lease in ours) else None

    run = wait_for(told, "the end of the leases of who lives", 30)
    assert run["tasks"]["failed"] == 0
    assert 200 < run["tasks"]["done"] <= 240, "what died with its receipt is nobody's, and not billed"
    assert {operator for operator, _ in three.offered()} == {ids["amber"], ids["cedar"]}
    sessions.end()
    three.stop_control_plane()
    books_are_right(three.base / "control", ids["birch"], BALANCE_DC)
