"""Challenges on a node, with a real prover process."""

import asyncio
import secrets
from typing import Any

import pytest

from fabric.agent import dialect
from fabric.agent.examiner import Examiner, ProverProcess
from fabric.agent.prover import plan_of
from fabric.agent.simulated import inventory
from fabric.wire.challenge import Opening, Plan, Referee

GPU = inventory("H100:2", "node-1")[0]
PLAN = Plan(edge=64, blocks=40, fill_limit_ms=1, digest_limit_ms=1, open_limit_ms=1)
INDICES = [3, 39]


def wish(step: str, name: str = "c1", gpu: str = GPU.uuid) -> dict[str, Any]:
    plan = {"edge": PLAN.edge, "blocks": PLAN.blocks}
    values = {"seed": b"s", "shared": b"b", "key": b"k", "indices": INDICES}
    return {"challenge": name, "gpu": gpu, "step": step, "plan": plan, **values}


class Heard:
    """What the examiner told, in order."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.examiner = Examiner(self.answers.put_nowait)

    async def ask(self, step: str, name: str = "c1", *, busy: bool = False, gpu: Any = GPU) -> dict[str, Any]:
        self.examiner.ask(wish(step, name), gpu, busy=busy)
        async with asyncio.timeout(20):
            return await self.answers.get()


@pytest.fixture
async def heard():
    heard = Heard()
    yield heard
    await heard.examiner.stop()


async def test_a_challenge_is_answered_step_by_step(heard):
    assert await heard.ask("prepare") == {"challenge": "c1", "step": "prepare"}
    root = (await heard.ask("fill"))["root"]
    keyed = (await heard.ask("digest"))["root"]
    shown = [Opening(**{**one, "path": tuple(one["path"]), "keyed_path": tuple(one["keyed_path"])})
             for one in (await heard.ask("open"))["openings"]]  # fmt: skip
    referee = Referee(b"b", PLAN.edge, secrets.token_bytes(32))
    assert referee.problem(PLAN, b"s", b"k", root, keyed, INDICES, shown) == ""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not heard.examiner.uses([GPU.uuid])


async def test_a_step_asked_again_is_answered_the_same(heard):
    await heard.ask("prepare")
    assert await heard.ask("fill") == await heard.ask("fill")


async def test_a_lease_finds_the_gpu_free_and_the_rest_of_the_challenge_over(heard):
    await heard.ask("prepare")
    process = heard.examiner._exams[GPU.uuid]._process._process
    await heard.examiner.leave([GPU.uuid])
    assert process.poll() is not None
    assert "over here" in (await heard.ask("fill"))["error"]


async def test_a_gpu_that_is_leased_or_unknown_is_not_challenged(heard):
    assert "a lease" in (await heard.ask("prepare", busy=True))["error"]
    assert "no such GPU" in (await heard.ask("prepare", gpu=None))["error"]
    assert not heard.examiner.uses([GPU.uuid])


async def test_a_newer_challenge_replaces_the_older(heard):
    await heard.ask("prepare")
    assert await heard.ask("prepare", "c2") == {"challenge": "c2", "step": "prepare"}
    assert "over here" in (await heard.ask("fill", "c1"))["error"]


async def test_what_the_prover_cannot_do_is_said(heard):
    heard.examiner.ask(wish("prepare") | {"plan": {"edge": 64, "blocks": 1 << 50}}, GPU, busy=False)
    answer = await heard.answers.get()
    assert "error" in answer
    assert "Memory" in answer["error"] or "memory" in answer["error"] or "allocate" in answer["error"]


def test_a_real_gpu_without_its_library_says_what_to_install():
    with pytest.raises(OSError, match=r"cuda"):
        ProverProcess(GPU.model_copy(update={"simulated": False}))


def test_the_prover_is_not_told_the_limits():
    assert plan_of({"edge": 64, "blocks": 2}).filled_bytes == 2 * 4 * 64


async def test_a_node_frees_the_gpu_of_a_challenge_for_a_lease(site):
    uuid = site.gpus[0]
    site.agent.send([dialect.PROVE, wish("prepare", gpu=uuid)])
    header, _ = await site.agent.next(dialect.PROVED)
    assert header[1] == {"challenge": "c1", "step": "prepare"}
    await site.open()
    await site.agent.next(dialect.OPENED)
    site.agent.send([dialect.PROVE, wish("fill", gpu=uuid)])
    header, _ = await site.agent.next(dialect.PROVED)
    assert "over here" in header[1]["error"]
