"""What placement and pools see of verification."""

from sqlmodel import Session

from api.fleets import note_change
from api.verification_tables import ChallengeRow, StandingRow
from api.verified import verified_between
from ledger.leaves import gpu_id_hex


def stand(fabric, gpu: str, level: int, strikes: int = 0) -> None:
    with fabric.plane.database.write() as session:
        session.merge(StandingRow(gpu=gpu, level=level, strikes=strikes, in_a_row=0))
        note_change(session, fabric.plane.now_ms(), "op-1/main")


def test_a_run_that_asks_for_verified_gpus_gets_only_those(fabric, agent):
    fabric.submit(gpu=["H100"], min_verification=2, queue_timeout_ms=0, expect=409)
    stand(fabric, "GPU-1", 2)
    stand(fabric, "GPU-2", 3)
    refusal = fabric.submit(min_verification=2, expect=409)
    assert refusal["next_best"]["change"] == "min_verification"  # a node is verified as well as its least GPU
    stand(fabric, "GPU-3", 2)
    assert fabric.submit(min_verification=2)["state"] == "STARTING"


def test_a_gpu_that_failed_gets_no_new_lease_and_drags_its_node_no_further(fabric, agent):
    stand(fabric, "GPU-1", 0, strikes=2)
    stand(fabric, "GPU-2", 2)
    stand(fabric, "GPU-3", 2)
    run = fabric.submit(gpu=["H100"], min_verification=2)
    assert [gpu["uuid"] for lease in run["leases"] for gpu in lease["gpus"]] == ["GPU-2"]
    fabric.submit(gpu=["H100:2"], queue_timeout_ms=0, expect=409)


def test_offers_and_gpus_show_the_level(fabric, agent):
    for gpu in ("GPU-1", "GPU-2", "GPU-3"):
        stand(fabric, gpu, 2)
    offers = fabric.call("GET", "/v1/offers?gpu=H100")["offers"]
    assert {offer["verification"] for offer in offers} == {2}
    one = fabric.call("GET", f"/v1/gpus/{gpu_id_hex('GPU-1')}")
    assert (one["verification"]["level"], one["verification"]["reason"]) == (2, "")


def challenge(session: Session, name: str, gpu: str, begun_ms: int, stage: str) -> None:
    session.add(
        ChallengeRow(
            id=name,
            round=name,
            operator="op-1",
            cluster="op-1/main",
            node="node-1",
            gpu=gpu,
            gpu_id=gpu_id_hex(gpu),
            stage=stage,
            plan={},
            seed=bytes(32),
            prepared_ms=begun_ms,
            begun_ms=begun_ms,
        )
    )


def test_verified_in_a_stretch_of_time_is_who_passed_a_challenge_begun_in_it(fabric, agent):
    with fabric.plane.database.write() as session:
        challenge(session, "a", "GPU-1", 1000, "passed")
        challenge(session, "b", "GPU-2", 2000, "passed")
        challenge(session, "c", "GPU-3", 1500, "failed")
    with fabric.plane.database.read() as session:
        one, two = gpu_id_hex("GPU-1"), gpu_id_hex("GPU-2")
        assert verified_between(session, 1000, 2000) == {one}
        assert verified_between(session, 0, 2001) == {one, two}
        assert verified_between(session, 0, 2001, gpu_ids=[two]) == {two}


def test_a_run_that_asks_for_an_interconnect_gets_only_what_has_it(start):
    from scripted import Agent, nodes

    fabric = start()
    joined = Agent(fabric, nodes=nodes(interconnects=["nvlink"]))
    joined.connect()
    fabric.submit(interconnect="infiniband", queue_timeout_ms=0, expect=409)
    assert fabric.submit(interconnect="nvlink")["state"] == "STARTING"
