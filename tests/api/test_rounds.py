"""Rounds of challenges: honest GPUs rise, liars are found, leases come first."""

import json
from dataclasses import asdict

import pytest
from scripted import OTHER_KEY, Agent, gpu, nodes
from sqlalchemy import select

from api import rounds
from api.verification_tables import ChallengeRow, StandingRow, VerifyPlanRow
from fabric.wire import link
from fabric.wire.bands import plan_for, read_bands
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
        """Until a round is due, which is brought forward."""
        self.agent.beat()
        with self.agent.fabric.plane.database.write() as session:
            for plan in session.scalars(select(VerifyPlanRow)):
                plan.due_ms = self.agent.fabric.plane.now_ms()
        self.agent.beat()

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


def settle(agent) -> None:
    """Until the control plane has taken what the agent sent: it answers in order."""
    agent.beat()
    agent.send(link.Ended(lease="none", generation=1, reason="done"))
    agent.beat()


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


def test_all_idle_gpus_begin_in_the_same_moment_and_nothing_is_told_early(fabric, agent):
    operator = Operator(agent)
    operator.wait()
    wishes = operator.answer_all("prepare")
    assert all(wish.seed == wish.shared == wish.key == b"" and not wish.indices for wish in wishes)
    one, two = (agent.expect(link.Prove) for _ in H100S)
    assert one.seed != two.seed
    assert one.shared == two.shared
    with fabric.plane.database.read() as session:
        rows = [session.get_one(ChallengeRow, wish.challenge) for wish in (one, two)]
        assert rows[0].begun_ms == rows[1].begun_ms
        assert rows[0].round == rows[1].round


class OtherModel(Operator):
    """Computes right, and takes longer than the claimed model would."""

    def fill(self, wish):
        self.agent.fabric.clock.advance(50_000)
        return super().fill(wish)


def test_a_slower_model_than_claimed_is_barred_when_it_is_late_again(fabric, agent):
    liar = OtherModel(agent)
    for strikes in (1, 2):
        liar.wait()
        liar.answer_all("prepare")
        liar.answer_all("fill")
        for uuid in H100S:
            until(agent, uuid, lambda found, strikes=strikes: found["strikes"] == strikes)
    found = verification(fabric, "GPU-1")
    assert (found["level"], "the model needs at most" in found["reason"] or "no answer" in found["reason"]) == (0, True)
    fabric.submit(gpu=["H100"], queue_timeout_ms=0, expect=409)


class HalfTheMemory(Operator):
    def digest(self, wish):
        self.provers[wish.gpu]._filled[1::2] = 0
        return super().digest(wish)


class Precomputed(Operator):
    def fill(self, wish):
        return {"root": self.provers[wish.gpu].fill(b"an older seed", wish.shared)}


class OneGpuForAll(Operator):
    """There is one memory, whatever is claimed: who is filled last is all that it holds."""

    def prepare(self, wish):
        answer = super().prepare(wish)
        self.provers = dict.fromkeys(self.gpus, self.provers[wish.gpu])
        return answer


@pytest.mark.parametrize(
    ("liar", "gpus", "caught"), [(HalfTheMemory, 2, 2), (Precomputed, 2, 2), (OneGpuForAll, 2, 1), (OneGpuForAll, 4, 3)]
)
def test_a_liar_is_barred_at_once(fabric, liar, gpus, caught):
    claimed = [f"GPU-{number}" for number in range(1, gpus + 1)]
    agent = Agent(fabric, nodes=nodes(*(gpu(number) for number in range(1, gpus + 1))))
    agent.connect()
    liar(agent, claimed).round()
    for uuid in claimed:
        until(agent, uuid, lambda found: found["passed_at_ms"] or found["failed_at_ms"])
    found = [verification(fabric, uuid) for uuid in claimed]
    assert sum(one["strikes"] >= 2 and one["level"] == 0 for one in found) == caught
    assert all(one["reason"] for one in found if one["strikes"])
    fabric.submit(gpu=["H100:2"], queue_timeout_ms=0, expect=409)


def test_an_answer_faster_than_the_model_can_be_is_wrong(fabric, agent):
    operator = Operator(agent)
    operator.wait()
    operator.answer_all("prepare")
    with fabric.plane.database.write() as session:
        for row in session.scalars(select(ChallengeRow)):
            row.plan = {**row.plan, "fill_least_ms": 1000}
    operator.answer_all("fill")
    until(agent, "GPU-1", lambda found: found["strikes"] == 2 and "at least 1000" in found["reason"])


def test_a_real_gpu_is_timed_against_the_band_that_was_measured_here(start, tmp_path):
    path = tmp_path / "bands.json"
    band = {"edge": 16384, "honest_tflops": 1, "int8_tops": 0, "bandwidth_gb_s": 1, "source": "measured here"}
    path.write_text(json.dumps({"H100": band}))
    agent = Agent(start(challenges=True, gpu_bands=path), nodes=nodes(gpu(1, simulated=False)))
    agent.connect()
    Operator(agent, ("GPU-1",)).wait()
    agent.expect(link.Prove)
    with agent.fabric.plane.database.read() as session:
        (row,) = session.scalars(select(ChallengeRow))
    memory = gpu(1).memory_bytes
    expected = plan_for("H100", memory, measured=read_bands(path.read_text()))
    assert row.plan["fill_limit_ms"] == expected.fill_limit_ms > plan_for("H100", memory).fill_limit_ms


def test_measured_bands_that_cannot_be_used_are_refused_at_the_start(start, tmp_path):
    path = tmp_path / "bands.json"
    with pytest.raises(ValueError, match="cannot be read"):
        start(gpu_bands=path)
    path.write_text('{"H100": {"edge": 3}}')
    with pytest.raises(ValueError, match="the band of H100 needs exactly"):
        start(gpu_bands=path)


def test_who_does_not_answer_is_late(fabric, agent):
    operator = Operator(agent)
    operator.wait()
    for _ in range(4):
        agent.beat(20_000)
    assert verification(fabric, "GPU-1")["reason"] == "no answer to 'prepare' within 60000 ms"
    assert fabric.submit(gpu=["H100"])["state"] == "STARTING"


def test_a_lease_that_comes_meanwhile_ends_the_challenge_and_is_held_against_nobody(fabric, agent):
    operator = Operator(agent)
    operator.wait()
    operator.answer_all("prepare")
    fabric.submit(gpu=["H100:2"])
    fabric.tick()
    with fabric.plane.database.read() as session:
        assert {row.stage for row in session.scalars(select(ChallengeRow))} == {"cancelled"}
    assert verification(fabric, "GPU-1")["strikes"] == 0


def test_a_lease_that_came_and_went_is_held_against_nobody_either(fabric, agent):
    operator = Operator(agent)
    operator.wait()
    operator.answer_all("prepare")
    wishes = [agent.expect(link.Prove) for _ in H100S]
    run = fabric.submit(gpu=["H100:2"])
    fabric.call("POST", f"/v1/runs/{run['id']}/cancel")
    for wish in wishes:
        operator.send(wish, error="this challenge is over here")
    settle(agent)
    assert verification(fabric, "GPU-1")["strikes"] == 0
    with fabric.plane.database.read() as session:
        assert {row.stage for row in session.scalars(select(ChallengeRow))} == {"cancelled"}


def test_an_answer_of_another_cluster_or_step_changes_nothing(fabric, agent):
    operator = Operator(agent)
    operator.wait()
    wish = agent.expect(link.Prove)
    stranger = Agent(fabric, "op-2", OTHER_KEY, nodes=nodes(gpu(7)))
    stranger.connect()
    stranger.send(link.Proved(challenge=wish.challenge, step="prepare", error="no"))
    agent.send(link.Proved(challenge=wish.challenge, step="fill", root=bytes(32)))
    settle(agent)
    assert verification(fabric, wish.gpu)["strikes"] == 0


def test_both_who_claim_one_gpu_are_challenged_soon(fabric, agent):
    with fabric.plane.database.write() as session:
        for operator in ("op-1", "op-2"):
            session.merge(VerifyPlanRow(operator=operator, due_ms=2**60))
    second = Agent(fabric, "op-2", OTHER_KEY, nodes=nodes(gpu(1), gpu(9)))
    second.connect()
    limit = fabric.plane.now_ms() + rounds.FIRST_MS[1]
    with fabric.plane.database.read() as session:
        assert all(session.get_one(VerifyPlanRow, name).due_ms <= limit for name in ("op-1", "op-2"))
    assert fabric.call("GET", f"/v1/gpus/{gpu_id_hex('GPU-1')}")["operator"] == "op-1"


def test_every_epoch_has_its_round_at_a_time_nobody_knows(fabric, agent):
    Operator(agent).round()
    until(agent, "GPU-1", lambda found: found["level"] == 2)
    with fabric.plane.database.read() as session:
        due = session.get_one(VerifyPlanRow, "op-1").due_ms
    length = fabric.plane.ledger_settings.epoch_ms
    genesis = fabric.plane.ledger_settings.genesis_ms
    epoch = (fabric.plane.now_ms() - genesis) // length
    assert genesis + (epoch + 1) * length < due < genesis + (epoch + 2) * length


def test_a_gpu_that_was_not_idle_gets_another_round_in_the_same_epoch(fabric, agent):
    length = fabric.plane.ledger_settings.epoch_ms
    fabric.clock.advance(length - (fabric.clock.now_ms() - fabric.plane.ledger_settings.genesis_ms) % length)
    agent.beat()  # early in an epoch, so that there is time for another
    agent.beat()
    agent.beat()
    run = fabric.submit(gpu=["H100"])
    busy = run["leases"][0]["gpus"][0]["uuid"]
    idle = next(uuid for uuid in H100S if uuid != busy)
    operator = Operator(agent, (idle,))
    operator.round()
    until(agent, idle, lambda found: found["level"] == 2)
    fabric.call("POST", f"/v1/runs/{run['id']}/cancel")
    agent.send(link.Ended(lease=agent.expect(link.Grant).lease, generation=1, reason="cancelled_by_user"))
    settle(agent)
    with fabric.plane.database.read() as session:
        due = session.get_one(VerifyPlanRow, "op-1").due_ms
    assert due - fabric.plane.now_ms() <= fabric.plane.ledger_settings.epoch_ms // 10


def test_a_level_falls_when_it_is_not_confirmed(fabric, agent):
    with fabric.plane.database.write() as session:
        session.add(StandingRow(gpu="GPU-1", level=2, strikes=0, in_a_row=1, passed_ms=fabric.plane.now_ms()))
    fabric.tick(3 * fabric.plane.ledger_settings.epoch_ms)
    assert verification(fabric, "GPU-1")["level"] == 1


def test_without_challenges_nobody_is_challenged(start):
    fabric = start(challenges=False)
    agent = Agent(fabric)
    agent.connect()
    for _ in range(4):
        agent.beat(20_000)
    with fabric.plane.database.read() as session:
        assert session.scalars(select(ChallengeRow)).all() == []
