"""An operator tries its GPUs against the fabric's own challenge."""

import itertools

from fabric.agent import selftest, simulated
from fabric.agent.examiner import ProverProcess
from fabric.wire.bands import plan_for
from fabric.wire.link import GpuCondition, GpuProcess

GPUS = simulated.inventory("L4:2", "n")


class Liar(ProverProcess):
    """Shows a block that it did not compute."""

    def ask(self, step, wish):
        answer = super().ask(step, wish)
        if step == "open":
            answer["openings"][0]["block"] = bytes(len(answer["openings"][0]["block"]))
        return answer


def test_gpus_that_do_what_they_should_pass():
    for one in selftest.examine(GPUS):
        assert one.problem == ""
        assert one.fill_ms is not None
        assert one.digest_ms is not None
        operations = plan_for("L4", GPUS[0].memory_bytes, simulated=True).operations
        assert one.tflops == round(operations / max(one.fill_ms, 1) / 1e9, 3)


def test_a_wrong_block_is_found():
    first, second = selftest.examine(GPUS, prover=lambda gpu: (Liar if gpu is GPUS[0] else ProverProcess)(gpu))
    assert "is not the product that was asked for" in first.problem
    assert second.problem == ""


def test_one_that_is_too_slow_is_told_how_long_it_may_take():
    hours = itertools.count(0, 3_600_000_000_000)
    (one,) = selftest.examine(GPUS[:1], now_ns=lambda: next(hours))
    assert one.problem == f"the product took 3600000 ms; a L4 needs at most {one.fill_limit_ms}"


def test_one_in_use_or_broken_or_without_a_prover_is_not_challenged_and_says_so():
    def none(gpu):
        raise OSError("cupy is missing here")

    busy = GpuCondition(uuid=GPUS[0].uuid, processes=[GpuProcess(pid=7, memory_bytes=None)])
    broken = GPUS[1].model_copy(update={"healthy": False, "problem": "GPU is lost"})
    first, second = selftest.examine([GPUS[0], broken], [busy], prover=none)
    assert "in use by process 7" in first.problem
    assert second.problem == "it does not answer: GPU is lost"
    (third,) = selftest.examine(GPUS[:1], prover=none)
    assert third.problem == "cupy is missing here"
