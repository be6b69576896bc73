"""Challenges on one node: a prover process per GPU, gone before a lease takes the GPU.

It knows neither seeds' meaning nor limits: the control plane judges. One challenge of a GPU replaces the one before.
"""

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from fabric.wire.frames import PREFIX, pack_bytes, unpack_header, unpack_lengths
from fabric.wire.link import GpuInfo

_log = structlog.get_logger(__name__)

KEPT_S = 180.0
"""A prover that is asked nothing more for so long gives its memory back."""
_NICENESS = 10

Tell = Callable[[dict[str, Any]], None]


class ProverProcess:
    """One prover. Calls block; they are made from a thread, one at a time. `stop` may come from anywhere."""

    def __init__(self, gpu: GpuInfo) -> None:
        """Raises OSError when no process can be started, or its GPU needs CuPy and there is none."""
        library = "numpy" if gpu.simulated else "cupy"
        if importlib.util.find_spec(library) is None:
            raise OSError(
                f"{library} is missing here; install 'berkeley-compute[cuda]' so that this GPU can be verified"
            )
        env = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "" if gpu.simulated else gpu.uuid, "CUPY_TF32": "1"}
        if gpu.simulated:
            env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        argv = [sys.executable, "-P", "-m", "fabric.agent.prover", library]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, close_fds=True)
        if gpu.simulated:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)

    def ask(self, step: str, wish: dict[str, Any]) -> dict[str, Any]:
        """The answer to one step.

        Raises:
            OSError: it could not be answered; says why.
        """
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        try:
            sink.write(pack_bytes([step, wish]))
            sink.flush()
            prefix = source.read(PREFIX.size)
            header = unpack_header(source.read(unpack_lengths(prefix)[0])) if len(prefix) == PREFIX.size else None
        except ValueError as error:
            raise OSError(f"the prover is gone: {error}") from None
        if header is None:
            raise OSError("the prover is gone")
        if header[0] != step:
            raise OSError(str(header[1]))
        return header[1]

    def stop(self) -> None:
        """Kill it; returns when it is gone, and its memory with it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """After `stop`, when nobody waits in `ask` any more."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Examiner:
    """`ask` begins a step and tells the answer later; `leave` ends what uses some GPUs."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._exams: dict[str, _Exam] = {}
        self._stopping: dict[str, asyncio.Future[None]] = {}

    def ask(self, wish: dict[str, Any], gpu: GpuInfo | None, *, busy: bool) -> None:
        """One step of `fabric.wire.link.Prove`."""
        uuid, name, step = wish["gpu"], wish["challenge"], wish["step"]
        exam = self._exams.get(uuid)
        if step == "prepare" and (exam is None or exam.name != name):
            problem = "this node has no such GPU" if gpu is None else "a lease has this GPU" if busy else ""
            if problem or gpu is None:
                self._tell({"challenge": name, "step": step, "error": problem})
                return
            self._end(uuid)
            exam = self._exams[uuid] = _Exam(name, gpu, self._stopping.get(uuid))
        if exam is None or exam.name != name:
            self._tell({"challenge": name, "step": step, "error": "this challenge is over here"})
            return
        exam.step(wish, self._tell, lambda: self._end_if(uuid, name))

    def uses(self, gpus: Collection[str]) -> bool:
        """Whether a challenge is on one of them."""
        return any(uuid in self._exams for uuid in gpus)

    async def leave(self, gpus: Collection[str]) -> None:
        """Return when no challenge uses any of them."""
        for uuid in gpus:
            self._end(uuid)
        waits = [self._stopping[uuid] for uuid in gpus if uuid in self._stopping]
        if waits:
            await asyncio.wait(waits)

    async def stop(self) -> None:
        await self.leave([*self._exams, *self._stopping])

    def _end(self, uuid: str) -> None:
        exam = self._exams.pop(uuid, None)
        if exam is not None:
            self._stopping[uuid] = asyncio.ensure_future(self._stop(uuid, exam, self._stopping.get(uuid)))

    async def _stop(self, uuid: str, exam: "_Exam", before: "asyncio.Future[None] | None") -> None:
        if before is not None:
            await asyncio.wait([before])
        await exam.stop()
        if self._stopping.get(uuid) is asyncio.current_task():
            del self._stopping[uuid]

    def _end_if(self, uuid: str, name: str) -> None:
        if (exam := self._exams.get(uuid)) is not None and exam.name == name:
            self._end(uuid)


class _Exam:
    """One challenge of one GPU: its process, the step that is being answered, the last answer."""

    def __init__(self, name: str, gpu: GpuInfo, before: "asyncio.Future[None] | None") -> None:
        self.name = name
        self._before = before
        self._gpu = gpu
        self._process: ProverProcess | None = None
        self._running: asyncio.Task[None] | None = None
        self._over = False
        self._answered: dict[str, dict[str, Any]] = {}
        self._thread = ThreadPoolExecutor(1, "examiner")
        self._timer: asyncio.TimerHandle | None = None

    def step(self, wish: dict[str, Any], tell: Tell, give_up: Callable[[], None]) -> None:
        """Begin a step; one that was answered is answered the same again, one under way is not begun twice."""
        step = wish["step"]
        if step in self._answered:
            tell(self._answered[step])
        elif self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._answer(wish, tell, give_up))

    async def stop(self) -> None:
        """Kill the process; the thread that waits for it ends with it."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)
        if self._running is not None:
            await asyncio.wait([self._running])
        if self._process is not None:
            self._process.close()
        self._thread.shutdown(wait=False)

    def _in_thread(self, call: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        """In a thread of this exam's own: the node's others are not for waiting."""
        return asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def _answer(self, wish: dict[str, Any], tell: Tell, give_up: Callable[[], None]) -> None:
        step = wish["step"]
        answer: dict[str, Any] = {"challenge": self.name, "step": step}
        if self._before is not None:
            await asyncio.wait([self._before])  # its memory
        try:
            process = self._process
            if process is None:
                process = self._process = await self._in_thread(ProverProcess, self._gpu)
                if self._over:
                    process.stop()
            inner = wish["plan"] if step == "prepare" else {k: wish[k] for k in ("seed", "shared", "key", "indices")}
            answer |= await self._in_thread(process.ask, step, inner)
        except OSError as error:
            answer["error"] = str(error)[:1000]
        if self._over:
            return
        self._answered[step] = answer
        tell(answer)
        if self._timer is not None:
            self._timer.cancel()
        ended = step == "open" or "error" in answer
        self._timer = asyncio.get_running_loop().call_later(0 if ended else KEPT_S, give_up)
