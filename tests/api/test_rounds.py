"""A round of challenges from the sweep that begins it to the level that it gives."""

from dataclasses import asdict

import pytest
from scripted import Agent, gpu, nodes

from fabric.wire import link
from fabric.wire.challenge import Plan, Prover
from ledger.leaves import gpu_id_hex

H100S = ("GPU-1", "GPU-2")


@pytest.fixture
def fabric(start):
    return start(challenges=True)


@pytest.fixture
def agent(fabric):
    agent = Agent(fabric, nodes=nodes(gpu(1), gpu(2)))
    assert isinstance(agent.connect(), link.Welcome)
    return agent


class Operator:
    """Answers challenges with real provers, one per GPU; a liar overrides a step."""

    def __init__(self, agent, gpus=H100S) -> None:
        self.agent, self.gpus = agent, gpus
        self.provers: dict[str, Prover] = {}

    def wait(self) -> None:
        """Until a round is due."""
        for _ in range(4):
            self.agent.beat(20_000)

    def round(self) -> None:
        """One whole round, as far as it goes."""
        self.wait()
        self.answer_all("prepare")
        self.answer_all("fill")
        self.answer_all("digest")
        self.answer_all("open")

    def answer_all(self, step: str) -> list[link.Prove]:
        wishes = [self.agent.expect(link.Prove) for _ in self.gpus]
        assert [wish.step for wish in wishes] == [step] * len(self.gpus)
        for wish in wishes:
            self.send(wish, **getattr(self, step)(wish))
        return wishes

    def send(self, wish: link.Prove, **answer) -> None:
        self.agent.send(link.Proved(challenge=wish.challenge, step=wish.step, **answer))

    def prepare(self, wish):
        self.provers[wish.gpu] = Prover(Plan(wish.plan.edge, wish.plan.blocks, 1, 1, 1))
        return {}

    def fill(self, wish):
        return {"root": self.provers[wish.gpu].fill(wish.seed, wish.shared)}

    def digest(self, wish):
        return {"root": self.provers[wish.gpu].digest(wish.key)}

    def open(self, wish):
        shown = [asdict(one) for one in self.provers[wish.gpu].open(wish.indices)]
        return {
            "openings": [
                link.BlockOpening(**{**one, "path": list(one["path"]), "keyed_path": list(one["keyed_path"])})
                for one in shown
            ]
        }


def verification(fabric, uuid: str):
    return fabric.call("GET", f"/v1/gpus/{gpu_id_hex(uuid)}")["verification"]


def until(agent, uuid: str, check) -> None:
    for _ in range(100):
        agent.beat()
        if check(verification(agent.fabric, uuid)):
            return
    raise AssertionError(verification(agent.fabric, uuid))


def test_an_honest_operator_is_verified_soon_after_it_came(fabric, agent):
    Operator(agent).round()
    for uuid in H100S:
        until(agent, uuid, lambda found: found["level"] == 2)
    assert fabric.submit(gpu=["H100:2"], min_verification=2)["state"] == "STARTING"
