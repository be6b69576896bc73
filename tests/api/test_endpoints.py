"""Endpoints on the control plane: who may make, see, serve and stop them, and whose money it is."""

import contextlib
import hashlib

import pytest
from scripted import Agent
from sqlalchemy import event

from api import router_tokens

CODE = b"packed"
SHA = hashlib.sha256(CODE).hexdigest()


@pytest.fixture
def serving(start):
    fabric = start(serving_url="http://router:8710")
    fabric.client.put(f"/v1/blobs/{SHA}", content=CODE, headers={"Authorization": "Bearer key-alice"})
    return fabric


def body(name="ep_1", **more):
    request = {"id": name, "kind": "serve", "session": "ses_x", "python": "3.11", "gpu": ["H100"]}
    return {
        "id": name, "name": "m", "request": request | more.pop("request", {}), "code": SHA, "methods": ["chat"],
        "min_replicas": 0, "max_replicas": 2, "at_once": 4,
    } | more  # fmt: skip


def as_router(fabric, customer=router_tokens.ROUTER):
    secret = router_tokens.load_secret(fabric.plane.settings.state_dir)
    return {"Authorization": f"Bearer {router_tokens.make(secret, customer, fabric.plane.now_ms())}"}


@contextlib.contextmanager
def selects(fabric):
    """What is read meanwhile."""
    said = []

    def note(_connection, _cursor, statement, *_):
        said.extend([statement] if statement.startswith("SELECT") else [])

    engine = fabric.plane.database.reader
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_an_endpoint_is_made_listed_and_stopped_by_its_customer_alone(serving):
    made = serving.call("POST", "/v1/endpoints", body(), expect=201)
    assert made["url"] == "http://router:8710/serve/ep_1/v1"
    assert serving.call("POST", "/v1/endpoints", body(), expect=201)["id"] == "ep_1"
    assert [e["id"] for e in serving.call("GET", "/v1/endpoints")["endpoints"]] == ["ep_1"]
    assert serving.call("GET", "/v1/endpoints", who="bob")["endpoints"] == []
    serving.call("GET", "/v1/endpoints/ep_1", who="bob", expect=404)
    serving.call("POST", "/v1/endpoints/ep_1/stop", who="bob", expect=404)
    assert serving.call("POST", "/v1/endpoints/ep_1/stop")["state"] == "STOPPED"
    assert serving.call("POST", "/v1/endpoints/ep_1/stop")["state"] == "STOPPED"
    assert serving.call("GET", "/v1/endpoints")["endpoints"] == []
    assert len(serving.call("GET", "/v1/endpoints?all=true")["endpoints"]) == 1


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"request": {"kind": "run"}}, 422),
        ({"min_replicas": 3}, 422),
        ({"max_replicas": 0}, 422),
        ({"at_once": 0}, 422),
        ({"code": "0" * 64}, 404),
        ({"surprise": 1}, 422),
    ],
)
def test_what_makes_no_sense_is_refused(serving, wrong, status):
    answer = serving.client.post("/v1/endpoints", json=body(**wrong), headers={"Authorization": "Bearer key-alice"})
    assert answer.status_code == status, answer.text


def test_without_a_router_nothing_can_be_served(fabric):
    fabric.call("POST", "/v1/endpoints", body(), expect=409)


def test_the_router_sees_every_endpoint_and_acts_for_its_customers_with_its_own_tokens_only(serving):
    serving.call("POST", "/v1/endpoints", body(), expect=201)
    listed = serving.call("GET", "/v1/serving/endpoints", headers=as_router(serving))["endpoints"]
    assert (listed[0]["id"], listed[0]["code"]) == ("ep_1", SHA)
    customer = listed[0]["customer"]
    serving.call("GET", "/v1/serving/endpoints", expect=401)
    serving.call("GET", "/v1/serving/endpoints", headers=as_router(serving, customer), expect=401)
    assert serving.call("GET", "/v1/account", headers=as_router(serving, customer))["id"] == customer
    serving.call("GET", "/v1/account", headers=as_router(serving), expect=401)
    good = as_router(serving, customer)["Authorization"]
    serving.call("GET", "/v1/account", headers={"Authorization": good[:-1]}, expect=401)
    serving.clock.advance(router_tokens.TOKEN_MS)
    serving.call("GET", "/v1/account", headers={"Authorization": good}, expect=401)


def test_a_run_of_an_endpoint_has_a_budget_its_own_lease_and_ends_with_it(serving):
    Agent(serving).connect()
    serving.call("POST", "/v1/endpoints", body(), expect=201)
    facts = serving.call("PUT", "/v1/serving/endpoints/ep_1", {"run": "run_1"}, headers=as_router(serving))
    request = facts["request"] | {"id": "run_1", "session": "ses_r"}
    run = serving.call("POST", "/v1/runs", request, expect=201, headers=as_router(serving, facts["customer"]))
    assert (run["kind"], run["state"]) == ("serve", "STARTING")
    assert int(run["cost"]["budget_dc"]) > 0
    assert int(serving.call("GET", "/v1/endpoints/ep_1")["spent_dc"]) == int(run["cost"]["held_dc"]) > 0
    told = {"budget_dc": "5"}
    serving.call("PUT", "/v1/serving/endpoints/ep_1", told, headers=as_router(serving), expect=422)
    with selects(serving) as said:
        serving.call("GET", "/v1/serving/endpoints", headers=as_router(serving))
    assert len(said) == 1, "it is asked for each second, with all endpoints and their runs"
    serving.call("POST", "/v1/endpoints/ep_1/stop")
    assert serving.run("run_1")["state"] in ("CANCELLING", "CANCELLED")
    serving.call("PUT", "/v1/serving/endpoints/ep_1", {"run": "run_2"}, headers=as_router(serving), expect=409)
    assert serving.audit() == []


def test_code_of_an_endpoint_outlives_the_days_of_other_blobs(serving):
    serving.call("POST", "/v1/endpoints", body(), expect=201)
    for _ in range(4):
        serving.clock.advance(4 * 86_400_000)
        serving.call("PUT", "/v1/serving/endpoints/ep_1", {}, headers=as_router(serving))
    assert serving.client.get(f"/v1/blobs/{SHA}", headers={"Authorization": "Bearer key-alice"}).content == CODE
