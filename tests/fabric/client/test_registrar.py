"""Warm runs are told in batches, each with its newest state; what did not get through is told again."""

import asyncio

import pytest

from fabric.client import registrar as registrars
from fabric.client.registrar import MAX_BATCH, Registrar
from fabric.wire.errors import InvalidRequest, ServiceError

AWAY = ServiceError("down", retryable=True)


class Heard:
    """Takes batches as a control plane does."""

    def __init__(self, failures=()):
        self.batches = []
        self.heard = asyncio.Event()
        self.failures = list(failures)

    @property
    def told(self):
        return [(entry["request"]["id"], entry["state"]) for batch in self.batches for entry in batch]

    async def send(self, batch):
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(batch)
        self.heard.set()


async def test_a_run_that_is_over_before_it_was_told_of_is_told_once():
    heard = Heard()
    registrar = Registrar(heard.send)
    registrar.note({"id": "run_1"}, "RUNNING")
    registrar.note({"id": "run_1"}, "SUCCEEDED", "done")
    await registrar.flush()
    (((entry),),) = heard.batches
    assert (entry["request"], entry["state"], entry["reason"]) == ({"id": "run_1"}, "SUCCEEDED", "done")


async def test_many_runs_go_in_batches_in_their_order():
    heard = Heard()
    registrar = Registrar(heard.send)
    for number in range(2 * MAX_BATCH + 1):
        registrar.note({"id": number}, "SUCCEEDED")
    await registrar.flush()
    assert [len(batch) for batch in heard.batches] == [MAX_BATCH, MAX_BATCH, 1]
    assert [entry["request"]["id"] for batch in heard.batches for entry in batch] == list(range(2 * MAX_BATCH + 1))


async def test_news_are_sent_by_themselves(monkeypatch):
    monkeypatch.setattr(registrars, "FLUSH_S", 0.0)
    heard = Heard()
    Registrar(heard.send).note({"id": "run_1"}, "RUNNING")
    async with asyncio.timeout(5):
        await heard.heard.wait()


async def test_what_could_not_be_sent_is_kept_in_its_order_and_sent_with_its_newest_state():
    heard = Heard([AWAY])
    registrar = Registrar(heard.send)
    registrar.note({"id": "run_1"}, "RUNNING")
    registrar.note({"id": "run_2"}, "RUNNING")
    with pytest.raises(ServiceError):
        await registrar.flush()
    registrar.note({"id": "run_3"}, "RUNNING")
    registrar.note({"id": "run_1"}, "SUCCEEDED", "done")
    await registrar.flush()
    assert heard.told == [("run_1", "SUCCEEDED"), ("run_2", "RUNNING"), ("run_3", "RUNNING")]


async def test_what_could_not_be_sent_is_sent_again_by_itself(monkeypatch):
    monkeypatch.setattr(registrars, "FLUSH_S", 0.0)
    monkeypatch.setattr("fabric.client.http.AWAY_DELAYS_S", (0.0,))
    heard = Heard([AWAY, AWAY, AWAY])
    Registrar(heard.send).note({"id": "run_1"}, "RUNNING")
    async with asyncio.timeout(5):
        await heard.heard.wait()
    assert heard.told == [("run_1", "RUNNING")]


async def test_what_is_refused_is_given_up_and_what_comes_after_it_is_sent():
    heard = Heard([InvalidRequest("no such lease"), ServiceError("over for good")])
    registrar = Registrar(heard.send)
    for name in ("run_1", "run_2", "run_3"):
        registrar.note({"id": name}, "RUNNING")
        await registrar.flush()
    assert heard.told == [("run_3", "RUNNING")]


async def test_of_more_than_can_be_kept_the_oldest_is_given_up(monkeypatch):
    monkeypatch.setattr(registrars, "MAX_KEPT", 10)
    heard = Heard([AWAY])
    registrar = Registrar(heard.send)
    for number in range(9):
        registrar.note({"id": f"run_{number}"}, "RUNNING")
    with pytest.raises(ServiceError):
        await registrar.flush()
    for number in range(9, 12):
        registrar.note({"id": f"run_{number}"}, "RUNNING")
    await registrar.flush()
    assert heard.told == [(f"run_{number}", "RUNNING") for number in range(2, 12)]


async def test_a_flush_that_is_interrupted_loses_nothing():
    heard, hangs = Heard(), asyncio.Event()

    async def send(batch):
        if not hangs.is_set():
            hangs.set()
            await asyncio.sleep(60)
        await heard.send(batch)

    registrar = Registrar(send)
    for name in ("run_1", "run_2"):
        registrar.note({"id": name}, "RUNNING")
    flushing = asyncio.create_task(registrar.flush())
    await hangs.wait()
    registrar.note({"id": "run_2"}, "SUCCEEDED", "done")
    flushing.cancel()
    await asyncio.wait([flushing])
    await registrar.flush()
    assert heard.told == [("run_1", "RUNNING"), ("run_2", "SUCCEEDED")]
