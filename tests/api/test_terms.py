"""What nodes let a run do, and whose work runs where nothing isolates it."""

import pytest
from scripted import Agent, gpu, nodes

from api.terms import own_account
from fabric.wire import link
from ledger.chain.crediting import link_wallet

WALLET = "0x" + "Ab" * 20


def join(fabric, *, capabilities=(), isolation="bubblewrap"):
    agent = Agent(fabric, nodes=nodes(gpu(1), gpu(2), capabilities=list(capabilities), isolation=isolation))
    assert isinstance(agent.connect(), link.Welcome)
    return agent


@pytest.mark.parametrize(
    ("wish", "capability"),
    [
        ({"network": "open"}, "network:open"),
        ({"network": ["pypi.org"]}, "network:hosts"),
        ({"network": "gang"}, "network:gang"),
        ({"env": {"pip": ["torch"]}}, "env"),
        ({"env": {"python": "3.12", "pip": []}}, "python:3.12"),
    ],
    ids=["open", "hosts", "gang", "env", "python"],
)
def test_a_run_goes_only_where_the_operator_allows_what_it_needs_and_is_told_what_to_leave_out(
    fabric, wish, capability
):
    agent = join(fabric)
    refusal = fabric.submit(expect=409, **wish)
    assert refusal["next_best"]["change"] == capability.partition(":")[0]
    assert f"without {capability}" in refusal["detail"]
    agent.close()
    agent = join(fabric, capabilities=[capability])
    fabric.submit(**wish)
    assert isinstance(agent.expect(link.Grant), link.Grant)


def test_a_grant_tells_the_node_which_environment_and_network_to_make(fabric):
    agent = join(fabric, capabilities=["network:hosts", "env"])
    fabric.submit(network=["pypi.org", "*.acme.org:443"], env={"pip": ["a==1", "b"]})
    grant = agent.expect(link.Grant)
    assert (grant.network, grant.hosts) == ("hosts", ["*.acme.org:443", "pypi.org"])
    assert grant.env == link.EnvSpec(pip=["a==1", "b"])
    fabric.submit()
    plain = agent.expect(link.Grant)
    assert (plain.network, plain.hosts, plain.env, plain.gang) == ("none", [], None, None)


@pytest.mark.parametrize("other", [{"network": "open"}, {"env": {"pip": ["b"]}}, {}])
def test_a_lease_serves_only_runs_of_its_own_environment_and_network(fabric, other):
    agent = join(fabric, capabilities=["network:open", "env"])
    fabric.submit(env={"pip": ["a"]})
    grant = agent.expect(link.Grant)
    agent.open(grant)
    lease = {"id": grant.lease, "generation": 1}
    fabric.submit(env={"pip": ["a"]}, lease=lease)
    assert "leave out `lease`" in fabric.submit(lease=lease, expect=422, **other)["detail"]


def test_a_node_that_isolates_nothing_takes_no_strangers_work(fabric):
    join(fabric, isolation="none")
    refusal = fabric.submit(expect=409)
    assert refusal["rejected"] == {"isolates nothing, so it takes its operator's own work only": 1}
    fabric.submit(expect=409, dry_run=True)


def test_a_node_that_isolates_nothing_takes_its_operators_own_work(fabric):
    agent = join(fabric, isolation="none")
    with fabric.plane.database.write() as session:
        own_account(session, "op-1", "alice")
        own_account(session, "op-1", "alice")
    agent.close()
    agent = join(fabric, isolation="none")
    fabric.submit(dry_run=True, expect=200)
    fabric.submit()
    assert agent.expect(link.Grant).node == "node-1"
    fabric.submit(who="bob", expect=409)


def test_offers_show_an_account_what_it_can_buy(fabric):
    join(fabric, isolation="none")
    with fabric.plane.database.write() as session:
        own_account(session, "op-1", "alice")
    shown = {who: fabric.call("GET", "/v1/offers", who=who)["offers"] for who in ("alice", "bob")}
    assert (len(shown["alice"]), shown["bob"]) == (1, [])
    assert len(fabric.client.get("/v1/offers").json()["offers"]) == 1  # of nobody it is not known what it can buy


def test_offers_are_of_nodes_that_run_the_python_that_is_asked_for(fabric):
    join(fabric)
    found = {minor: fabric.call("GET", f"/v1/offers?python={minor}")["offers"] for minor in ("3.11", "3.12")}
    assert (len(found["3.11"]), found["3.12"]) == (1, [])


def test_the_account_of_an_operators_wallet_is_its_own(fabric):
    wallet = {"name": "Op", "wallet": WALLET, "operator": "op-1", "payout": WALLET, "lifetime_s": 60}
    fabric.call("POST", "/v1/operators/join-tokens", wallet, who="admin", expect=201)
    with fabric.plane.database.write() as session:
        link_wallet(session, fabric.plane.ledger(session), WALLET, "bob", at_ms=1)
    join(fabric, isolation="none")
    fabric.submit(who="alice", expect=409)
    fabric.submit(who="bob")


def test_an_operators_own_nodes_do_not_hide_from_it_behind_those_of_another(fabric):
    join(fabric, isolation="none")
    with fabric.plane.database.write() as session:
        own_account(session, "op-2", "alice")
    fabric.submit(who="alice", expect=409)
