"""Where customers want to be near: what is measured, asked for, estimated, shown and refused."""

import math

import pytest
from scripted import Agent, gpu, nodes
from sqlmodel import select

from api.placement_tables import RttRow
from fabric.wire import link

PLACES = {name: (37.0 * (at % 4) + at, 29.0 * (at // 4) + 3 * at) for at, name in enumerate("abcdefghijkl")}
HERE = (40.0, 31.0)


def rtt_us(one, other):
    """A world that is flat, where every place is 2 ms from its own network."""
    return round(1000 * (math.dist(one, other) + 4))


def connect(fabric, names, **options):
    """One cluster of op-1 for each name, with one H100, in a region of its name."""
    agents = {}
    for at, name in enumerate(names):
        agent = Agent(
            fabric,
            cluster=name,
            nodes=nodes(gpu(100 + at), region=f"region-{name}"),
            gateway=f"ws://{name}.example:8970/v1/channel",
            **options,
        )
        assert isinstance(agent.connect(), link.Welcome)
        agents[name] = agent
    return agents


def beat_all(fabric, agents, ms):
    """Time passes, and all agents answer; what they said before is written when this returns."""
    fabric.tick(ms)
    for agent in agents.values():
        agent.send(link.Heartbeat(nonce_seq=agent.expect(link.Nonce).seq))
        agent.beat()


def measured(fabric, agents):
    """Let every agent measure what it is told to, and the map be fitted."""
    fabric.tick()
    for name, agent in agents.items():
        wanted = agent.expect(link.Measure)
        rtts = [
            link.Rtt(place=target.place, rtt_us=rtt_us(PLACES[name], PLACES[target.place.split("/")[1]]))
            for target in wanted.targets
        ]
        agent.send(link.Rtts(rtts=rtts))
    for _ in range(3):
        beat_all(fabric, agents, 20_000)
    fabric.tick()


def caller_measures(fabric, session="ses-alice", rounds=4, **wishes):
    """What the SDK does: measure what it is told to measure, until there is no more; the places in their order."""
    request = {"id": "run_x", "session": session, "python": "3.11", **wishes}
    rtts, probed = [], []
    for _ in range(rounds):
        body = {"rtts": rtts, "request": request}
        probe = fabric.call("POST", f"/v1/sessions/{session}/rtts", body)["probe"]
        if not probe:
            return probed
        rtts = [{"place": p["place"], "rtt_us": rtt_us(HERE, PLACES[p["place"].split("/")[1]])} for p in probe]
        probed += [p["place"] for p in probe]
    return probed


def nearest():
    return min(PLACES, key=lambda name: math.dist(PLACES[name], HERE))


def test_agents_measure_the_others_and_the_control_plane_once_in_ten_minutes(fabric):
    agents = connect(fabric, "ab")
    fabric.tick()
    wanted = agents["a"].expect(link.Measure)
    assert [(one.place, one.gateway) for one in wanted.targets] == [("op-1/b", "ws://b.example:8970/v1/channel")]
    fabric.tick(1000)
    fabric.tick(598_000)
    agents["a"].expect(link.Nonce)
    assert not any(isinstance(message, link.Measure) for message in agents["a"].unread)
    fabric.tick(1000)
    assert agents["a"].expect(link.Measure).targets == wanted.targets


def test_only_round_trips_to_known_places_are_kept(fabric):
    agent = connect(fabric, "ab")["a"]
    told = [("op-1/b", 7000), (link.CONTROL, 3000), ("op-1/a", 5), ("op-9/unknown", 5)]
    agent.send(link.Rtts(rtts=[link.Rtt(place=place, rtt_us=rtt) for place, rtt in told]))
    agent.beat()
    agent.beat()
    with fabric.plane.database.read() as session:
        rows = {(row.place, row.other): row.rtt_us for row in session.scalars(select(RttRow))}
    assert rows == {("op-1/a", "op-1/b"): 7000, ("op-1/a", link.CONTROL): 3000}


def test_with_few_places_all_are_measured_and_the_nearest_is_taken(fabric):
    connect(fabric, "abf")
    assert sorted(caller_measures(fabric, objective="latency")) == ["op-1/a", "op-1/b", "op-1/f"]
    chosen = fabric.submit(objective="latency")["explain"]["chosen"]
    assert (chosen["cluster"], chosen["rtt_ms"]) == ("op-1/f", rtt_us(HERE, PLACES["f"]) / 1000)
    assert "ms away" in fabric.submit(dry_run=True, expect=200, objective="latency")["explain"]["text"]


def test_whoever_does_not_care_for_distance_measures_nothing(fabric):
    connect(fabric, "ab")
    assert caller_measures(fabric) == []
    assert caller_measures(fabric, max_rtt_ms=50, near="region-a") == []


def test_among_many_places_few_are_measured_and_the_best_is_found(fabric):
    agents = connect(fabric, PLACES)
    measured(fabric, agents)
    probed = caller_measures(fabric, objective="latency")
    assert len(probed) == len(set(probed)) < len(PLACES)
    chosen = fabric.submit(objective="latency")["explain"]["chosen"]
    assert chosen["cluster"] == f"op-1/{nearest()}"
    assert f"op-1/{nearest()}" in probed


def test_a_limit_is_kept_and_a_refusal_names_the_nearest(fabric):
    connect(fabric, "ab")
    caller_measures(fabric, max_rtt_ms=1000)
    limit = rtt_us(HERE, PLACES["b"]) / 1000
    assert fabric.submit(max_rtt_ms=limit)["explain"]["chosen"]["cluster"] == "op-1/b"
    answer = fabric.submit(max_rtt_ms=5, queue_timeout_ms=0, expect=409)
    assert answer["type"].endswith("no-capacity")
    assert answer["next_best"]["change"] == "max_rtt_ms"
    assert f"{rtt_us(HERE, PLACES['a']) / 1000:.0f} ms, above your 5 ms" in answer["detail"]


def test_a_limit_is_never_met_by_a_place_of_unknown_distance(fabric):
    connect(fabric, "ab")
    answer = fabric.submit(max_rtt_ms=1000, expect=409)
    assert "at an unknown distance" in answer["detail"]


def test_near_a_region_or_a_host_is_estimated_from_there(fabric):
    agents = connect(fabric, "abcdef")
    measured(fabric, agents)
    for near in ("region-c", "c.example"):
        run = fabric.submit(objective="latency", near=near, dry_run=True, expect=200)
        assert (run["explain"]["chosen"]["cluster"], run["explain"]["chosen"]["rtt_ms"]) == ("op-1/c", 0)
    away = rtt_us(PLACES["a"], PLACES["c"]) / 1000
    offers = fabric.call("GET", "/v1/offers?near=region-a")["offers"]
    assert {one["region"]: one["rtt_ms"] for one in offers}["region-c"] == pytest.approx(away, rel=0.01)
    fitting = fabric.call("GET", f"/v1/offers?near=region-a&max_rtt_ms={away + 1}")["offers"]
    expected = {f"region-{name}" for name in "abcdef" if rtt_us(PLACES["a"], PLACES[name]) / 1000 <= away + 1}
    assert {one["region"] for one in fitting} == expected | {"region-a"}


def test_near_a_place_on_earth_goes_by_where_clusters_stand(fabric):
    connect(fabric, "ab", location="52.5,13.4")
    chosen = fabric.submit(objective="latency", near="48.1,11.6", dry_run=True, expect=200)["explain"]["chosen"]
    assert chosen["rtt_ms"] == pytest.approx(5.06, abs=0.05)


def test_near_nothing_known_is_refused(fabric):
    connect(fabric, "ab")
    answer = fabric.submit(near="region-aa", expect=422)
    assert "did you mean region-a?" in answer["detail"]
    assert "no operator here says where" in fabric.submit(near="48.1,11.6", expect=422)["detail"]
    assert "degrees" in fabric.submit(near="98.1,11.6", expect=422)["detail"]


def test_an_agent_that_stands_nowhere_on_earth_is_refused(fabric):
    assert isinstance(Agent(fabric, location="91.0,0.0").connect(), link.Refuse)


def near(fabric):
    """The offers near region a; an operator that was there earns a reputation meanwhile, which is another matter."""
    offers = fabric.call("GET", "/v1/offers?near=region-a")["offers"]
    return [{**offer, "reputation": None} for offer in offers]


def test_what_a_customer_measured_moves_nobody_else(fabric):
    agents = connect(fabric, "abcd")
    measured(fabric, agents)
    before = near(fabric)
    lies = [{"place": f"op-1/{name}", "rtt_us": 1} for name in "abcd"]
    body = {"rtts": lies, "request": {"id": "run_x", "session": "ses-alice"}}
    fabric.call("POST", "/v1/sessions/ses-alice/rtts", body)
    for _ in range(3):
        beat_all(fabric, agents, 20_000)
    fabric.tick()
    assert near(fabric) == before


def test_old_measurements_of_a_customer_count_no_more_and_are_forgotten(fabric):
    agent = connect(fabric, "a")["a"]
    caller_measures(fabric, max_rtt_ms=1000)
    assert fabric.call("GET", "/v1/offers?caller=ses-alice")["offers"][0]["rtt_ms"] is not None
    for _ in range(20):
        agent.beat(30_000)
    assert fabric.call("GET", "/v1/offers?caller=ses-alice")["offers"][0]["rtt_ms"] is None
    for _ in range(45):
        agent.beat(30_000)
    with fabric.plane.database.read() as session:
        assert session.scalars(select(RttRow)).all() == []


def test_a_session_is_its_customers_alone(fabric):
    connect(fabric, "a")
    caller_measures(fabric)
    body = {"request": {"id": "run_x", "session": "ses-alice"}}
    fabric.call("POST", "/v1/sessions/ses-alice/rtts", body, who="bob", expect=404)
