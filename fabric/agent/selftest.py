"""`fabric operator selftest`: the fabric's own challenge, put to this machine's GPUs by itself, and what came of it.

The same prover, plan and judge as when the control plane asks (`fabric.wire.challenge`); the times are this machine's
own, so what passes here with room to spare passes there. Nothing of it is sent anywhere or counts for anything.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fabric.agent.examiner import ProverProcess
from fabric.wire.bands import plan_for
from fabric.wire.challenge import OPENED, Opening, Plan, Referee
from fabric.wire.link import GpuCondition, GpuInfo


class Prover(Protocol):
    """Answers the steps of a challenge; raises OSError with the reason when it cannot."""

    def ask(self, step: str, wish: dict[str, Any]) -> dict[str, Any]: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class Tested:
    """One GPU. `problem` is empty when it passed; times in ms, with the most that each may take.

    `tflops` is what it reached in the product: of an honest GPU four tenths of its band's `honest_tflops` and more.
    """

    uuid: str
    model: str
    simulated: bool
    fill_limit_ms: int
    digest_limit_ms: int
    fill_ms: int | None = None
    digest_ms: int | None = None
    tflops: float | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(
    gpus: Sequence[GpuInfo],
    conditions: Sequence[GpuCondition] = (),
    *,
    prover: Callable[[GpuInfo], Prover] = ProverProcess,
    now_ns: Callable[[], int] = time.monotonic_ns,
) -> list[Tested]:
    """Challenge all of them at once: none can lend the others its memory or speed.

    One that is unhealthy or used by a process is not challenged, and says so.
    """
    plans = [plan_for(gpu.model, gpu.memory_bytes, simulated=gpu.simulated) for gpu in gpus]
    used = {one.uuid: [process.pid for process in one.processes] for one in conditions}
    results = [_begin(gpu, plan, used.get(gpu.uuid, [])) for gpu, plan in zip(gpus, plans, strict=True)]
    exams = [
        _Exam(gpu, plan, result, prover, now_ns)
        for gpu, plan, result in zip(gpus, plans, results, strict=True)
        if not result.problem
    ]
    if exams:
        _run(exams)
    return results


def _begin(gpu: GpuInfo, plan: Plan, pids: list[int]) -> Tested:
    result = Tested(gpu.uuid, gpu.model, gpu.simulated, plan.fill_limit_ms, plan.digest_limit_ms)
    if not gpu.healthy:
        result.problem = f"it does not answer: {gpu.problem}"
    elif pids:
        which = ", ".join(map(str, pids[:5]))
        result.problem = f"in use by process {which}; drain this machine first: fabric operator drain NODE --wait"
    return result


def _run(exams: list["_Exam"]) -> None:
    shared, key = secrets.token_bytes(32), secrets.token_bytes(32)
    with ThreadPoolExecutor(len(exams)) as pool:
        try:
            for step in (_Exam.prepare, lambda one: one.fill(shared), lambda one: one.digest(key), _Exam.open):
                list(pool.map(step, exams))
            for exam in exams:
                exam.judge(shared, key)
        finally:
            list(pool.map(_Exam.end, exams))


class _Exam:
    """One GPU's challenge; a step after a problem does nothing."""

    def __init__(
        self,
        gpu: GpuInfo,
        plan: Plan,
        result: Tested,
        prover: Callable[[GpuInfo], Prover],
        now_ns: Callable[[], int],
    ) -> None:
        self._gpu, self._plan, self._result = gpu, plan, result
        self._make, self._now_ns = prover, now_ns
        self._prover: Prover | None = None
        self._seed = secrets.token_bytes(32)
        self._indices = [secrets.randbelow(plan.blocks) for _ in range(OPENED)]
        self._answers: dict[str, dict[str, Any]] = {}

    def prepare(self) -> None:
        try:
            self._prover = self._make(self._gpu)
        except OSError as error:
            self._result.problem = str(error)
            return
        self._ask("prepare", {"edge": self._plan.edge, "blocks": self._plan.blocks})

    def fill(self, shared: bytes) -> None:
        took = self._ask("fill", self._wish(seed=self._seed, shared=shared))
        if took is not None:
            self._result.fill_ms = took
            self._result.tflops = round(self._plan.operations / max(took, 1) / 1e9, 3)
            self._check("the product", took, self._plan.fill_limit_ms, self._plan.fill_least_ms)

    def digest(self, key: bytes) -> None:
        took = self._ask("digest", self._wish(key=key))
        if took is not None:
            self._result.digest_ms = took
            self._check("the digests of its memory", took, self._plan.digest_limit_ms, 0)

    def open(self) -> None:
        self._ask("open", self._wish(indices=self._indices))

    def judge(self, shared: bytes, key: bytes) -> None:
        if self._result.problem:
            return
        opened = [
            Opening(**{**one, "path": tuple(one["path"]), "keyed_path": tuple(one["keyed_path"])})
            for one in self._answers["open"]["openings"]
        ]
        referee = Referee(shared, self._plan.edge, secrets.token_bytes(32))
        roots = self._answers["fill"]["root"], self._answers["digest"]["root"]
        self._result.problem = referee.problem(self._plan, self._seed, key, *roots, self._indices, opened)

    def end(self) -> None:
        if self._prover is not None:
            self._prover.stop()
            self._prover.close()

    def _ask(self, step: str, wish: dict[str, Any]) -> int | None:
        """How many ms the answer took; None where there is none."""
        if self._result.problem or self._prover is None:
            return None
        begun = self._now_ns()
        try:
            self._answers[step] = self._prover.ask(step, wish)
        except OSError as error:
            self._result.problem = f"{step}: {error}"
            return None
        return (self._now_ns() - begun) // 1_000_000

    def _check(self, what: str, took_ms: int, limit_ms: int, least_ms: int) -> None:
        if took_ms > limit_ms:
            self._result.problem = f"{what} took {took_ms} ms; a {self._gpu.model} needs at most {limit_ms}"
        elif took_ms < least_ms:
            self._result.problem = f"{what} took {took_ms} ms; a {self._gpu.model} needs at least {least_ms}"

    @staticmethod
    def _wish(**members: Any) -> dict[str, Any]:
        return {"seed": b"", "shared": b"", "key": b"", "indices": [], **members}
