"""Warm runs are told in batches, each with its newest state, and lost news loses nothing else."""

import asyncio

from fabric.client import registrar as registrars
from fabric.client.registrar import MAX_BATCH, Registrar
from fabric.wire.errors import ServiceError


class Heard:
    """Takes batches as a control plane does."""

    def __init__(self, fail=0):
        self.batches = []
        self.heard = asyncio.Event()
        self.fail = fail

    async def send(self, batch):
        if self.fail:
            self.fail -= 1
            raise ServiceError("down")
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


async def test_after_news_were_lost_the_next_are_still_sent():
    heard = Heard(fail=1)
    registrar = Registrar(heard.send)
    registrar.note({"id": "run_1"}, "RUNNING")
    await registrar.flush()
    registrar.note({"id": "run_2"}, "RUNNING")
    await registrar.flush()
    assert [entry["request"]["id"] for batch in heard.batches for entry in batch] == ["run_2"]
