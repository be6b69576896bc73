"""Measuring before a run is posted: what the control plane asks for, and nothing where distance does not matter."""

import asyncio

import fabric
from fabric.client import session


def told(small_fabric):
    """What the SDK told of measurements, and whether a run was posted, in their order."""
    found = []
    for method, path, content in small_fabric.requests:
        if path.endswith("/rtts"):
            found.append([one["place"] for one in content["rtts"]])
        elif (method, path) == ("POST", "/v1/runs"):
            found.append("run")
    return found


def probe(*places, gateway):
    return [{"place": place, "gateway": gateway} for place in places]


def test_the_few_best_are_measured_before_the_run_is_posted(small_fabric):
    gateway = small_fabric.url.replace("http", "ws")
    small_fabric.probes = [probe("a", "b", gateway=gateway), probe("c", gateway=gateway)]
    assert fabric.run(lambda: 7, max_rtt_ms=1000) == 7
    assert told(small_fabric) == [[], ["a", "b", "control"], ["c", "control"], "run"]
    posted = next(content for method, path, content in small_fabric.requests if (method, path) == ("POST", "/v1/runs"))
    assert (posted["near"], posted["max_rtt_ms"]) == ("", 1000)


def test_a_control_plane_that_asks_for_ever_is_answered_three_times(small_fabric):
    small_fabric.probes = [probe("a", gateway=small_fabric.url)] * 9
    assert fabric.run(lambda: 7, objective="latency") == 7
    assert told(small_fabric) == [[], *[["a", "control"]] * 3, "run"]


def test_gateways_that_do_not_answer_are_left_out(small_fabric):
    small_fabric.probes = [probe("a", gateway="ws://127.0.0.1:1/v1/channel")]
    fabric.run(lambda: 7, objective="latency")
    assert told(small_fabric) == [[], ["control"], "run"]


def test_nobody_measures_where_distance_does_not_matter(small_fabric):
    assert fabric.run(lambda: 7) == 7
    assert fabric.run(lambda: 7, near="eu", max_rtt_ms=20) == 7
    assert told(small_fabric) == ["run", "run"]


def test_offers_with_a_limit_are_measured_too(small_fabric):
    small_fabric.probes = [probe("a", gateway=small_fabric.url)]
    assert fabric.offers(max_rtt_ms=50)[0].rtt_ms is None
    assert told(small_fabric) == [[], ["a", "control"]]


def test_a_session_does_not_end_before_the_ends_of_its_runs_are_told(small_fabric):
    current = session.current()
    heard = []

    async def slow():
        await asyncio.sleep(0.1)
        heard.append("finish")

    current.loop.post(lambda: current.office.tell(slow()))
    fabric.run(lambda: 7)
    session.end()
    assert heard == ["finish"]
    assert small_fabric.requests[-1][1].endswith("/end")
