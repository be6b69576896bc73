"""Detached runs: fetches code and arguments, is the customer of its own node, stores the result.

The node runs a task of one attempt once, however often it is told, so work may be given again after any break.
"""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import httpx
import structlog

from fabric.agent.dialect import CHANNEL
from fabric.agent.gateway import Refusal
from fabric.agent.stream import FrameStream, connect
from fabric.agent.tasks import parse_call
from fabric.wire import channel
from fabric.wire.frames import Buffer, FrameError, pack_bytes, unpack
from fabric.wire.link import Work, WorkDone
from fabric.wire.reasons import Reason
from fabric.wire.tokens import LeaseToken

_log = structlog.get_logger(__name__)

ATTEMPTS = 5
BACKOFF_S = 0.5

_Key = tuple[str, int, int]


class BlobError(RuntimeError):
    """A blob could not be fetched or stored."""


class Blobs:
    """The control plane's blobs, as an agent may use them."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url.rstrip("/"), timeout=60)
        self.token = ""

    async def get(self, digest: str) -> bytes:
        """Raises BlobError when it cannot be had or is not what its name says."""
        response = await self._ask("GET", f"/v1/agent/blobs/{digest}")
        if hashlib.sha256(response.content).hexdigest() != digest:
            raise BlobError(f"blob {digest} is not what its name says")
        return response.content

    async def put(self, data: bytes, run: str) -> str:
        """Store it for the run's owner; returns its name. Raises BlobError when that cannot be done."""
        digest = hashlib.sha256(data).hexdigest()
        await self._ask("PUT", f"/v1/agent/blobs/{digest}", params={"run": run}, content=data)
        return digest

    async def put_piece(self, run: str, task: int, data: bytes) -> None:
        """Store a piece of a checkpoint. Raises BlobError."""
        digest = hashlib.sha256(data).hexdigest()
        await self._ask("PUT", f"/v1/agent/checkpoints/{run}/{task}/pieces/{digest}", content=data)

    async def put_checkpoint(self, run: str, task: int, manifest: str, pieces: list[str]) -> None:
        """Make what is stored the task's newest checkpoint. Raises BlobError."""
        await self._ask("PUT", f"/v1/agent/checkpoints/{run}/{task}", json={"manifest": manifest, "pieces": pieces})

    async def checkpoint(self, run: str, task: int) -> str:
        """The manifest of the newest checkpoint, or "". Raises BlobError."""
        return str((await self._ask("GET", f"/v1/agent/checkpoints/{run}/{task}")).json()["manifest"])

    async def piece(self, run: str, task: int, digest: str) -> bytes:
        """Raises BlobError when it cannot be had or is not what its name says."""
        data = (await self._ask("GET", f"/v1/agent/checkpoints/{run}/{task}/pieces/{digest}")).content
        if hashlib.sha256(data).hexdigest() != digest:
            raise BlobError(f"piece {digest} is not what its name says")
        return data

    async def close(self) -> None:
        await self._http.aclose()

    async def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """With a few retries where the fault is not ours."""
        problem = ""
        for attempt in range(ATTEMPTS):
            try:
                headers = {"Authorization": f"Bearer {self.token}"}
                response = await self._http.request(method, path, headers=headers, **more)
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
            else:
                if response.is_success:
                    return response
                problem = f"{response.status_code} {response.text[:200]}"
                if response.status_code < 500 and response.status_code not in (401, 408, 429):
                    break
            await asyncio.sleep(BACKOFF_S * 2**attempt)
        raise BlobError(f"{method} {path}: {problem}")


class Works:
    """All tasks at work that the control plane carries. `node_of` is the gateway's; `report` takes each `WorkDone`.

    `environment_of` says what a gang's rank finds in its environment.
    """

    def __init__(
        self,
        blobs: Blobs,
        node_of: Any,
        report: Callable[[WorkDone], None],
        environment_of: Callable[[Work], dict[str, str]] = lambda _: {},
    ) -> None:
        self._blobs = blobs
        self._node_of = node_of
        self._report = report
        self._environment_of = environment_of
        self._tasks: dict[_Key, tuple[Work, asyncio.Task[None]]] = {}
        self._errands: dict[_Key, _Errand] = {}

    def begin(self, work: Work) -> None:
        """Do it; given twice while it is at work, it is done once. An older attempt of its task or lease ends first."""
        key = (work.run, work.task, work.attempt)
        if key not in self._tasks:
            older: list[asyncio.Task[None]] = []
            for other, task in self._tasks.values():
                same = other.run == work.run and (other.task == work.task or other.lease == work.lease)
                if same and other.attempt < work.attempt:
                    self.stop_work(other.run, other.task, other.attempt)
                    older.append(task)
            task = asyncio.ensure_future(self._do_after(older, work))
            self._tasks[key] = work, task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def stop_work(self, run: str, task: int, attempt: int) -> None:
        """End attempts of a task up to this one, if they are at work: what runs is killed."""
        for key, errand in self._errands.items():
            if key[:2] == (run, task) and key[2] <= attempt:
                errand.stop()

    async def stop(self) -> None:
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _do_after(self, older: list[asyncio.Task[None]], work: Work) -> None:
        if older:
            await asyncio.wait(older)
        await self._do(work)

    async def _do(self, work: Work) -> None:
        try:
            code, call = await asyncio.gather(self._blobs.get(work.code), self._blobs.get(work.args))
            done = await self._run(work, code, call)
        except Refusal as refusal:
            done = _done(work, refusal.reason, refusal.message)
        except (BlobError, FrameError) as error:
            done = _done(work, Reason.INTERNAL_ERROR, str(error))
        _log.info("detached task is over", run=work.run, task=work.task, reason=done.reason)
        self._report(done)

    async def _run(self, work: Work, code: bytes, call: bytes) -> WorkDone:
        frame, body, begun_with = _frame_of(work, call)
        if environment := begun_with | self._environment_of(work):
            frame.append(environment)
        key = (work.run, work.task, work.attempt)
        while True:
            address, token = await self._node_of(LeaseToken("", work.lease, work.generation, "", 0))
            errand = self._errands[key] = _Errand(work)
            try:
                answer = await errand.run(address, token, code, frame, body)
            except OSError as error:
                _log.info("a node's channel broke", run=work.run, error=str(error))
                await asyncio.sleep(BACKOFF_S)
                continue
            finally:
                del self._errands[key]
            return await self._settle(work, *answer)

    async def _settle(self, work: Work, header: list[Any], body: Buffer) -> WorkDone:
        if header[0] == channel.CLOSED:
            return _done(work, header[1], header[2])
        if header[0] == channel.FAILED:
            _, _, reason, message, exit_code = header[2][0]
            return _done(work, reason, message, exit_code)
        status = header[2][0][2]
        result = await self._blobs.put(pack_bytes(header, body), work.run)
        if status == channel.STATUS_VALUE:
            return _done(work, Reason.DONE, result=result)
        if status == channel.STATUS_EXCEPTION:
            return _done(work, Reason.USER_ERROR, result=result)
        return _done(work, Reason.RESULT_NOT_TRANSPORTABLE, bytes(body).decode(errors="replace"), result=result)


class _Errand:
    """One connection to the node for one task."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._answer: asyncio.Future[tuple[list[Any], Buffer]] = asyncio.get_running_loop().create_future()
        self._stream: FrameStream | None = None

    async def run(
        self, address: str, token: str, code: bytes, frame: list[Any], body: Buffer
    ) -> tuple[list[Any], Buffer]:
        """The frame that ends the task: RESULT, FAILED or CLOSED.

        Raises:
            OSError: the connection broke before that.
        """
        stream = self._stream = await connect(address, self._on_frame, self._on_closed)
        try:
            stream.send([CHANNEL, token, self._work.lease, self._work.generation])
            stream.send([channel.FN, frame[2]], code)
            stream.send(frame, body)
            answer = await self._answer
            stream.send([channel.ACK, self._work.run, [self._work.task]])
            return answer
        finally:
            stream.close()

    def stop(self) -> None:
        """Cancel the task on its node, which answers that it failed."""
        if self._stream is not None:
            self._stream.send([channel.CANCEL, self._work.run, [self._work.task]])

    def _on_frame(self, header: list[Any], body: Buffer) -> None:
        mine = header[0] == channel.CLOSED or (
            header[0] in (channel.RESULT, channel.FAILED)
            and header[1] == self._work.run
            and header[2][0][:2] == [self._work.task, self._work.attempt]
        )
        if mine and not self._answer.done():
            self._answer.set_result((header, body))

    def _on_closed(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(error if isinstance(error, OSError) else ConnectionError("the node hung up"))


def _frame_of(work: Work, call: bytes) -> tuple[list[Any], memoryview, dict[str, str]]:
    """The call that the blob of a run's arguments holds, as this attempt, and the run whose checkpoints it begins with.

    Raises:
        FrameError: its customer stored something else there.
    """
    header, body = unpack(call)
    try:
        sizes = header[3][0][2]
        frame = [channel.CALL, work.run, bytes.fromhex(work.code), [[work.task, work.attempt, sizes]], work.timeout_ms]
    except (TypeError, IndexError, KeyError) as error:
        raise FrameError(f"the blob of its arguments is not a call: {error}") from None
    parse_call(frame, body)
    begun_with = {
        name: value for name, value in parse_call(header, body).environment.items() if name == channel.CHECKPOINT_OF
    }
    return frame, body, begun_with


def _done(work: Work, reason: str, message: str = "", exit_code: int | None = None, result: str = "") -> WorkDone:
    return WorkDone(
        lease=work.lease,
        generation=work.generation,
        run=work.run,
        task=work.task,
        attempt=work.attempt,
        reason=str(reason),
        message=message,
        exit_code=exit_code,
        result=result,
    )
