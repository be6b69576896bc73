"""One effect per Idempotency-Key, the same answer to the same request."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from api import idempotency
from api.errors import Conflict
from fabric.wire.errors import InvalidRequest
from fabric.wire.ids import new_id


def submit(fabric, key, expect=201, **members):
    return fabric.submit(headers={"Idempotency-Key": key}, gpu=["H100"], expect=expect, **members)


def test_the_same_key_and_body_answers_the_same_and_leases_once(fabric, agent):
    name = new_id("run")
    first = submit(fabric, "k", id=name)
    assert submit(fabric, "k", id=name) == first
    assert len(fabric.call("GET", "/v1/runs")["runs"]) == 1


def test_a_key_is_kept_for_ever(fabric, agent):
    name = new_id("run")
    first = submit(fabric, "k", id=name)
    fabric.tick(400 * 86_400_000)
    assert submit(fabric, "k", id=name) == first
    assert submit(fabric, "k", expect=422)["type"].endswith("invalid-request")
    assert len(fabric.call("GET", "/v1/runs")["runs"]) == 1


def test_the_same_key_with_another_body_is_refused(fabric, agent):
    submit(fabric, "k")
    assert submit(fabric, "k", expect=422)["type"].endswith("invalid-request")
    assert submit(fabric, "k", who="bob", session="s")["state"] == "STARTING"


def test_a_refused_request_gives_its_key_back(fabric, agent):
    name = new_id("run")
    submit(fabric, "k", id=name, max_price_dc=1, expect=409)
    assert submit(fabric, "k", id=name)["state"] == "STARTING"


def test_a_request_in_flight_is_a_conflict_until_it_is_abandoned(fabric):
    plane = fabric.plane
    assert idempotency.claim(plane, "alice", "k", b"body") is None
    with pytest.raises(Conflict, match="in flight"):
        idempotency.claim(plane, "alice", "k", b"body")
    fabric.clock.advance(60_001)
    assert idempotency.claim(plane, "alice", "k", b"body") is None


def test_a_key_that_was_taken_over_has_no_second_effect(fabric):
    plane = fabric.plane
    idempotency.claim(plane, "alice", "k", b"body")
    with plane.database.write() as session:
        idempotency.complete(session, "alice", "k", 201, {"id": "first"})
    with pytest.raises(Conflict, match="taken over"), plane.database.write() as session:
        idempotency.complete(session, "alice", "k", 201, {"id": "second"})
    assert idempotency.claim(plane, "alice", "k", b"body") == {"id": "first"}


def test_a_key_has_a_length(fabric):
    with pytest.raises(InvalidRequest):
        idempotency.claim(fabric.plane, "alice", "k" * 201, b"")


def test_many_at_once_have_one_effect(fabric, agent):
    name = new_id("run")
    body = {"id": name, "session": "s", "gpu": ["H100"]}
    headers = {"Authorization": "Bearer key-alice", "Idempotency-Key": "k"}

    def post(_):
        return fabric.client.post("/v1/runs", json=body, headers=headers).status_code

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(post, range(16)))
    assert 201 in codes
    assert set(codes) <= {201, 409}
    assert len(fabric.call("GET", "/v1/runs")["runs"][0]["leases"]) == 1
