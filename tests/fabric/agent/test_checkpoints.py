"""Checkpoints on a node: what a job keeps in its folder is there again for the next attempt, whatever child runs it."""

import os
import sys
import time

import cloudpickle

import fabric
from fabric.agent import dialect
from fabric.wire import channel
from fabric.wire.reasons import Reason

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def saves(text):
    folder = fabric.checkpoint_dir()
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "step").write_text(text)
    (folder / "weights").write_bytes(b"w" * 9_000_000)
    fabric.checkpoint()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def reads():
    folder = fabric.checkpoint_dir()
    return {
        str(path.relative_to(folder)): path.read_bytes()[:20] for path in sorted(folder.rglob("*")) if path.is_file()
    }


async def test_the_next_attempt_finds_the_folder_as_it_was_stored(site):
    customer = await site.leased()
    customer.call(customer.function(saves), "7")
    assert (await customer.outcomes(1))[0] == ["deep/step", "weights"]
    customer.call(customer.function(lambda: os._exit(3)), task=1)
    await customer.outcomes(1)
    customer.call(customer.function(reads), task=0, attempt=2)
    assert (await customer.outcomes(1))[0] == {"deep/step": b"7", "weights": b"w" * 20}


async def test_another_task_and_a_first_attempt_find_nothing(site):
    customer = await site.leased()
    customer.call(customer.function(saves), "7")
    await customer.outcomes(1)
    customer.call(customer.function(reads), task=1, attempt=2)
    assert (await customer.outcomes(1))[1] == {}


async def test_only_what_changed_travels(site):
    def saves_twice():
        folder = fabric.checkpoint_dir()
        (folder / "large").write_bytes(os.urandom(9_000_000))
        fabric.checkpoint()
        (folder / "small").write_text("x")
        fabric.checkpoint()

    customer = await site.leased()
    customer.call(customer.function(saves_twice))
    assert (await customer.outcomes(1))[0] is None
    assert site.agent.uploads == 4


async def test_what_a_hook_saves_is_stored_before_the_lease_ends(site):
    def works():
        folder = fabric.checkpoint_dir()
        fabric.on_preempt(lambda _: (folder / "step").write_text("41"))
        print("ready", flush=True)  # noqa: T201
        time.sleep(60)

    customer = await site.leased()
    customer.call(customer.function(works))
    await customer.next(channel.LOG)
    site.agent.send([dialect.NOTICE, "lease_1", 1, str(Reason.PREEMPTED), 1500])
    await customer.next(channel.CLOSED)
    again = await site.leased("lease_2")
    again.call(again.function(reads), attempt=2)
    assert (await again.outcomes(1))[0] == {"step": b"41"}


async def test_a_checkpoint_that_is_refused_says_why_and_the_one_before_stays(site):
    def fails_once():
        folder = fabric.checkpoint_dir()
        (folder / "step").write_text("2")
        fabric.checkpoint()

    customer = await site.leased()
    customer.call(customer.function(saves), "1")
    await customer.outcomes(1)
    site.agent.refuses = "beyond the quota of 1 GiB"
    customer.call(customer.function(fails_once), task=0, attempt=2)
    error = (await customer.outcomes(1))[0]
    assert isinstance(error, OSError)
    assert "beyond the quota of 1 GiB" in str(error)
    site.agent.refuses = ""
    customer.call(customer.function(reads), task=0, attempt=3)
    assert (await customer.outcomes(1))[0]["deep/step"] == b"1"


async def test_a_job_in_a_sandbox_keeps_its_folder_too(make_site):
    site = make_site(isolation="bubblewrap")
    await site.start()
    try:
        customer = await site.leased()
        customer.call(customer.function(saves), "9")
        await customer.outcomes(1)
        again = await site.leased("lease_2", gpus=[[site.gpus[1], 1000]])
        again.call(again.function(reads), attempt=2)
        assert (await again.outcomes(1))[0]["deep/step"] == b"9"
    finally:
        await site.stop()


def test_outside_a_job_the_folder_is_below_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fabric.checkpoint_dir() == tmp_path / "fabric-checkpoint"
    fabric.checkpoint()
    assert fabric.preempting() is False


async def test_an_agent_that_is_started_anew_is_asked_anew_and_a_job_that_was_saving_hears_of_it(site):
    def saves_and_tells():
        (fabric.checkpoint_dir() / "step").write_text("1")
        try:
            fabric.checkpoint()
        except OSError as error:
            return str(error)
        return "stored"

    customer = await site.leased()
    mute = site.agent
    mute.send = lambda *_: None
    customer.call(customer.function(saves_and_tells))
    while not any(header[0] == dialect.CHECKPOINT for header, _ in mute.frames):
        await mute.next()
    site.agent = type(mute)()
    await site.agent.connect(site.address)
    site.agent.send([dialect.CONTROL, site.token])
    assert "started anew" in (await customer.outcomes(1))[0]

    site.agent.send = lambda *_: None
    customer.call(customer.function(lambda: "begun"), task=5, attempt=2)
    await site.agent.next(dialect.WANTED)
    site.agent = type(mute)()
    await site.agent.connect(site.address)
    site.agent.send([dialect.CONTROL, site.token])
    assert (await customer.outcomes(1))[5] == "begun"
