"""A control plane that cannot be reached while a run goes on: said at once, waited for, named at the end."""

import asyncio
import threading
import time

import pytest

import fabric
from fabric import local
from fabric.client.http import ControlPlane
from fabric.client.office import in_time


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("fabric.client.channel.RECONNECT_S", 0.2)
    monkeypatch.setattr("fabric.client.http.RETRY_DELAYS_S", (0.01,))
    monkeypatch.setattr("fabric.client.http.AWAY_DELAYS_S", (0.05,))
    monkeypatch.setattr("fabric.client.crew.TICK_S", 0.05)


def at_work(small_fabric):
    return bool(small_fabric.nodes) and bool(small_fabric.node().ran)


def queued(small_fabric):
    return bool(small_fabric.runs)


def outage(small_fabric, begins, ends=lambda: False):
    """Goes away as soon as `begins(small_fabric)`, and comes back as soon as `ends()`."""

    def act():
        for condition in (lambda: begins(small_fabric), ends):
            until = time.monotonic() + 10
            while not condition():
                if time.monotonic() > until:
                    return
                time.sleep(0.01)
            small_fabric.go_away() if condition is not ends else small_fabric.come_back()

    threading.Thread(target=act, daemon=True).start()


def eventually(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(("gpus", "begins"), [(1, at_work), (0, queued)])
def test_a_run_without_a_gpu_waits_for_an_answer_and_then_says_whose_is_missing(small_fabric, capsys, gpus, begins):
    small_fabric.gpus = gpus
    outage(small_fabric, begins)
    with pytest.raises(fabric.ServiceError, match=r"queue_timeout=0.5 s without .* cannot be reached") as caught:
        fabric.run(lambda: time.sleep(0.3), queue_timeout=0.5)
    assert caught.value.retryable
    assert capsys.readouterr().err.count("trying again") >= 1


@pytest.mark.parametrize(("gpus", "begins"), [(1, at_work), (0, queued)])
def test_a_run_goes_on_when_the_control_plane_answers_again(small_fabric, capsys, gpus, begins):
    small_fabric.gpus = gpus
    said = []

    def ends():
        said.append(capsys.readouterr().err)
        return "cannot be reached" in "".join(said) and "trying again" in "".join(said)

    outage(small_fabric, begins, ends)
    assert fabric.run(lambda: time.sleep(0.3) or 7) == 7
    assert "the control plane answers again" in "".join([*said, capsys.readouterr().err])


def test_the_result_of_a_detached_run_waits_for_a_control_plane_that_is_away(small_fabric, capsys):
    run = fabric.submit(lambda: 7)
    small_fabric.go_away()
    outage(small_fabric, lambda _: True, lambda: "trying again" in capsys.readouterr().err)
    assert run.result() == 7


def test_a_result_that_the_control_plane_does_not_tell_in_time_is_a_timeout_that_names_it(small_fabric):
    run = fabric.submit(lambda: 7)
    small_fabric.go_away()
    with pytest.raises(fabric.Timeout, match=r"may go on, but the control plane .* cannot be reached"):
        run.result(timeout=0.2)
    small_fabric.come_back()
    assert run.result(timeout=0) == 7


@pytest.mark.parametrize("timeout", ["5", True, float("nan")])
def test_a_time_to_wait_that_is_none_is_refused(small_fabric, timeout):
    run = fabric.submit(lambda: 7)
    with pytest.raises(fabric.InvalidRequest, match="is not a time in seconds"):
        run.result(timeout=timeout)


def test_what_ended_while_the_control_plane_was_away_is_told_when_it_is_back(small_fabric):
    threading.Thread(target=lambda: setattr(small_fabric, "away", eventually(lambda: at_work(small_fabric)))).start()
    assert fabric.run(lambda: time.sleep(0.3) or 7, linger=0) == 7
    assert eventually(lambda: all(small_fabric.unanswered.count(said) >= 2 for said in ("finish", "release")))
    (run,), (lease,) = small_fabric.runs.values(), small_fabric.leases.values()
    assert (run["state"], lease["released"]) == ("RUNNING", "")
    small_fabric.away = False
    assert eventually(lambda: (run["state"], lease["released"]) == ("SUCCEEDED", "done"))


def test_a_warm_run_is_told_of_when_the_control_plane_is_back(small_fabric):
    fabric.run(lambda: 7, linger=60)
    small_fabric.away = True
    assert fabric.run(lambda: 8, linger=60) == 8
    assert eventually(lambda: small_fabric.unanswered.count("runs") >= 2)
    small_fabric.away = False
    assert eventually(lambda: [run["state"] for run in small_fabric.runs.values()] == ["SUCCEEDED"] * 2)


@pytest.mark.parametrize("last_words", [None, (500, {})])
def test_who_stops_the_embedded_fabric_is_told_at_once_and_the_next_call_starts_it_again(
    small_fabric, monkeypatch, last_words
):
    starts = []

    class Embedded:
        url, api_key = small_fabric.url, "fk"

        def is_over(self):
            return small_fabric.away

    small_fabric.last_words = last_words

    def ensure(session_id, _say):
        starts.append(session_id)
        small_fabric.come_back()
        return Embedded()

    monkeypatch.delenv("FABRIC_URL")
    monkeypatch.delenv("FABRIC_API_KEY")
    monkeypatch.setattr(local, "ensure", ensure)
    outage(small_fabric, at_work)
    with pytest.raises(fabric.ServiceError, match="was stopped; the next call starts it again"):
        fabric.run(lambda: time.sleep(0.3))
    assert fabric.run(lambda: 7) == 7
    assert len(set(starts)) == 2


async def test_a_request_that_hangs_is_given_up_soon_after_it_is_time(monkeypatch):
    monkeypatch.setattr("fabric.client.office.GRACE_S", 0.05)
    hangs = asyncio.Event()

    async def ask():
        await hangs.wait()
        return "late"

    with pytest.raises(fabric.ServiceError, match="has not answered yet") as given_up:
        await in_time(ask, time.monotonic() + 0.05)()
    assert given_up.value.retryable
    hangs.set()
    assert await in_time(ask, None)() == "late"


async def test_what_asks_again_when_its_session_is_over_is_told_so():
    plane = ControlPlane("http://127.0.0.1:1", None)
    with pytest.raises(fabric.ServiceError, match="cannot be reached"):
        await plane.run("run_1")
    await plane.close()
    with pytest.raises(fabric.ServiceError, match="is over") as over:
        await plane.run("run_1")
    assert not over.value.retryable
