"""The program of the sandbox child: `python -P -m fabric.agent.child [module …] FD`. Runs the customer's functions.

The only process that unpickles them. It has one socket, to its node, and pipes for its output; it opens nothing else.
Tasks run one at a time, in order, in the main thread. A result leaves at once when no task waits, else within 5 ms.
"""

import fcntl
import importlib
import os
import pickle
import platform
import select
import site
import socket
import struct
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle

from fabric.agent.checkpoint_folder import CheckpointFolder
from fabric.agent.crowd import Crowd
from fabric.agent.dialect import ASSIGN, STAMP_BYTES
from fabric.agent.interruption import Interruption
from fabric.agent.page import Page
from fabric.wire import channel, coroutines, job
from fabric.wire.codec import NotTransportable, encode, encode_exception
from fabric.wire.frames import PREFIX, Buffer, pack, split, unpack_header, unpack_lengths
from fabric.wire.reasons import Reason

FLUSH_NS = 5_000_000
PROGRESS_NS = 50_000_000

_RECEIVE_BYTES = 256 << 10
_JOIN_BYTES = 64 << 10


def main(argv: Sequence[str]) -> None:
    """Serve the socket whose number is the last argument; the others are modules to import first."""
    sock = socket.socket(fileno=int(argv[-1]))
    stamp, fds, _, _ = socket.recv_fds(sock, STAMP_BYTES, 1)
    page = Page(fds[0])
    os.close(fds[0])
    for module in argv[:-1]:
        with suppress(ImportError):
            importlib.import_module(module)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    outbound = _Outbound(sock)
    outbound.send([channel.READY, {"python": python_minor(), "cloudpickle": cloudpickle.__version__}])
    worker = _Worker(page, _Output(stamp), outbound)
    inbound = _Inbound(sock)
    while (frame := inbound.receive()) is not None:
        worker.handle(*frame, more=inbound.waiting)
    os._exit(0)


def python_minor() -> str:
    """`3.11`, for example."""
    return ".".join(platform.python_version_tuple()[:2])


class _Inbound:
    """Reads frames from the blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = bytearray()

    def receive(self) -> tuple[list[Any], Buffer] | None:
        """The next frame; None when the node is gone."""
        if not self._fill(PREFIX.size):
            return None
        header_bytes, body_bytes = unpack_lengths(self._data[: PREFIX.size])
        if not self._fill(PREFIX.size + header_bytes):
            return None
        header = unpack_header(bytes(self._data[PREFIX.size : PREFIX.size + header_bytes]))
        del self._data[: PREFIX.size + header_bytes]
        body = self._body(body_bytes)
        return None if body is None else (header, body)

    def waiting(self) -> bool:
        """Whether another frame has begun to arrive."""
        return bool(self._data) or bool(select.select([self._sock], [], [], 0)[0])

    def _fill(self, size: int) -> bool:
        while len(self._data) < size:
            chunk = self._sock.recv(_RECEIVE_BYTES)
            if not chunk:
                return False
            self._data += chunk
        return True

    def _body(self, size: int) -> bytearray | None:
        """The body in a buffer of its own, so that arrays in it are writable."""
        body = bytearray(size)
        have = min(size, len(self._data))
        body[:have] = self._data[:have]
        del self._data[:have]
        view = memoryview(body)
        while have < size:
            received = self._sock.recv_into(view[have:])
            if not received:
                return None
            have += received
        return body


class _Outbound:
    """Sends frames; collects results of one run until they are flushed. Used by the main and the flusher thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._run = ""
        self._entries: list[list[Any]] = []
        self._pieces: list[Buffer] = []
        self._flushed_ns = time.monotonic_ns()
        self._waiting = threading.Event()
        threading.Thread(target=self._flush_late, name="fabric-flusher", daemon=True).start()

    def send(self, header: Sequence[Any], body: Sequence[Buffer] = ()) -> None:
        with self._lock:
            self._write(header, body)

    def add(self, run: str, entry: list[Any], pieces: Sequence[Buffer], *, now: bool) -> None:
        """Queue one task's result; `now` or 5 ms after the last flush it goes out with those before it."""
        with self._lock:
            if run != self._run:
                self._flush()
                self._run = run
            self._entries.append(entry)
            self._pieces.extend(pieces)
            if now or time.monotonic_ns() - self._flushed_ns >= FLUSH_NS:
                self._flush()
            else:
                self._waiting.set()

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._entries:
            self._write([channel.RESULT, self._run, self._entries], self._pieces)
            self._entries, self._pieces = [], []
        self._flushed_ns = time.monotonic_ns()
        self._waiting.clear()

    def _flush_late(self) -> None:
        while True:
            self._waiting.wait()
            time.sleep(FLUSH_NS / 1e9)
            self.flush()

    def _write(self, header: Sequence[Any], body: Sequence[Buffer]) -> None:
        parts = pack(header, *body)
        if sum(memoryview(part).nbytes for part in parts) <= _JOIN_BYTES:
            self._sock.sendall(b"".join(parts))
            return
        for part in parts:
            self._sock.sendall(part)


class _Output:
    """Marks in the output pipes where a task's output ends, so that the node knows whose line is whose."""

    def __init__(self, stamp: bytes) -> None:
        self._stamp = stamp
        self._fds = [os.dup(1), os.dup(2)]

    def flush(self) -> None:
        """Of an actor, whose tasks' lines are not told apart."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()

    def end_task(self, number: int) -> bool:
        """Flush; mark what the node has not read yet as this task's. Returns whether there was any."""
        marked = False
        for stream, fd in zip((sys.stdout, sys.stderr), self._fds, strict=True):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
            if _unread(fd):
                os.write(fd, b"\x1e%s %d\x1e" % (self._stamp, number))
                marked = True
        return marked


def _unread(fd: int) -> int:
    try:
        return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0]
    except OSError:
        return 0


class _Worker:
    """Functions by digest, and the running of tasks."""

    def __init__(self, page: Page, output: _Output, outbound: _Outbound) -> None:
        self._page = page
        self._output = output
        self._outbound = outbound
        self._functions: dict[bytes, Callable[..., Any] | BaseException] = {}
        self._crowds: dict[bytes, Crowd] = {}
        self._number = 0
        self._reported_ns = 0
        self._counters: dict[str, int] = {}
        self._attempt = 1
        self._at = ("", 0)
        self._folder = CheckpointFolder(page, outbound.send)
        self._interruption = Interruption(page, self._keep)
        job.checkpoint_dir, job.checkpoint = self._checkpoint_dir, self._checkpoint
        job.on_preempt, job.notice_left_s = self._interruption.register, self._interruption.left_s
        job.ask_for_notice = self._ask_for_notice

    def handle(self, header: list[Any], body: Buffer, *, more: Callable[[], bool]) -> None:
        match header[0]:
            case channel.CALL if header[2] in self._crowds:
                self._begin(header, memoryview(body))
            case channel.CALL:
                self._call(header, memoryview(body), more)
            case channel.FN if len(header) > 2:
                self._crowds[header[1]] = self._crowd(body, header[2])
            case channel.FN:
                self._functions[header[1]] = _load_function(body)
            case channel.CANCEL | channel.TAKEN as kind:
                for crowd in self._crowds.values():
                    (crowd.cancel if kind == channel.CANCEL else crowd.taken)(*header[1:])
            case channel.PIECE:
                self._folder.take_piece(header[1], body)
            case channel.CHECKPOINT:
                self._folder.restore(header[1], header[2], body)
            case kind if kind == ASSIGN:
                _settle_in(*header[1:])

    def _crowd(self, body: Buffer, at_once: int) -> Crowd:
        def make() -> Any:
            return pickle.loads(body)()  # noqa: S301 - the sandbox is where this happens

        return Crowd(make, at_once, self._outbound, _encode_failure, self._output.flush)

    def _begin(self, header: list[Any], body: memoryview) -> None:
        """An actor's task: it starts beside those at work."""
        _, run, digest, ((task, attempt, sizes),), timeout_ms = header
        self._number += 1
        self._page.begin(self._number, time.monotonic_ns())
        self._crowds[digest].begin(run, task, attempt, list(split(body, sizes)), timeout_ms)

    def _call(self, header: list[Any], body: memoryview, more: Callable[[], bool]) -> None:
        _, run, digest, tasks, _, *environment = header
        os.environ.update(*environment)
        at = 0
        for position, (task, attempt, sizes) in enumerate(tasks):
            pieces = list(split(body[at : at + sum(sizes)], sizes))
            at += sum(sizes)
            self._number += 1
            started_ns = time.monotonic_ns()
            self._page.begin(self._number, started_ns)
            job.report_progress, job.report_counts = self._reporter(run, task), self._count
            self._counters, self._attempt = {}, attempt
            self._at = (run, task)
            self._interruption.begin()
            status, parts = self._run(self._functions[digest], pieces)
            spoke = self._output.end_task(self._number)
            self._page.end(self._number)
            ended_ns = time.monotonic_ns()
            last = position + 1 == len(tasks) and not more()
            if status is None:
                self._outbound.flush()
                self._outbound.send([channel.FAILED, run, [[task, attempt, *parts]]])
                continue
            entry = [task, attempt, status, started_ns, ended_ns, 0, [memoryview(part).nbytes for part in parts]]
            if self._counters:
                entry.append([list(pair) for pair in sorted(self._counters.items())])
            self._outbound.add(run, entry, parts, now=last or spoke)

    def _run(self, function: Callable[..., Any] | BaseException, pieces: list[memoryview]) -> tuple[int | None, list]:
        """(status, pieces) of one task; without a result status None and (reason, words, exit code)."""
        if isinstance(function, BaseException):
            return _encode_failure(function)
        try:
            args, kwargs = pickle.loads(pieces[0], buffers=pieces[1:])  # noqa: S301 - the sandbox is where this happens
            encoded = encode(coroutines.settled(function(*args, **kwargs)))
        except NotTransportable as error:
            return channel.STATUS_NOT_TRANSPORTABLE, [str(error).encode(errors="replace")]
        except MemoryError as error:
            return None, [Reason.OOM, f"MemoryError: {error}\n{_traceback(error)}", None]
        except job.ProgramFailed as error:
            return None, [Reason.USER_ERROR, f"the program ended with exit code {error.exit_code}", error.exit_code]
        except BaseException as error:  # noqa: BLE001 - whatever the customer's function raises is its result
            return _encode_failure(error)
        return channel.STATUS_VALUE, [encoded.header, *encoded.buffers]

    def _checkpoint_dir(self) -> Path:
        """What stands there at a notice is kept, whether or not a hook was registered."""
        if not self._folder.is_used(*self._at):
            self._interruption.watch()
        return self._folder.of(*self._at)

    def _checkpoint(self) -> None:
        self._folder.store(*self._at, self._attempt)

    def _keep(self) -> None:
        """After the hooks of a notice."""
        if self._folder.is_used(*self._at):
            try:
                self._checkpoint()
            except OSError as error:
                print(error, file=sys.stderr)  # noqa: T201 - the job's own log is where its owner looks

    def _ask_for_notice(self, after_s: float) -> None:
        """Once is enough to see that a job comes back from it: later attempts are left alone."""
        if self._attempt == 1:
            self._outbound.send([channel.ASK_NOTICE, round(after_s * 1000)])

    def _count(self, counts: dict[str, int]) -> None:
        job.add_counts(self._counters, counts)

    def _reporter(self, run: str, task: int) -> Callable[[int, int | None], None]:
        self._reported_ns = 0

        def report(done: int, total: int | None = None) -> None:
            now = time.monotonic_ns()
            if now - self._reported_ns >= PROGRESS_NS or done == total:
                self._reported_ns = now
                self._outbound.send([channel.PROGRESS, run, task, int(done), None if total is None else int(total)])

        return report


def _load_function(body: Buffer) -> Callable[..., Any] | BaseException:
    """The function, or what its unpickling raised: then each of its tasks raises that."""
    try:
        return pickle.loads(body)  # noqa: S301 - the sandbox is where this happens
    except BaseException as error:  # noqa: BLE001 - a customer's module may raise anything when it is rebuilt
        return error


def _encode_failure(error: BaseException) -> tuple[int, list[Buffer]]:
    encoded = encode_exception(error, _traceback(error))
    return channel.STATUS_EXCEPTION, [encoded.header, *encoded.buffers]


def _traceback(error: BaseException) -> str:
    """The traceback as text, without the frames of the fabric that come first."""
    step = error.__traceback__
    while step is not None and step.tb_frame.f_code.co_filename in (__file__, coroutines.__file__):
        step = step.tb_next
    return "".join(traceback.format_exception(type(error), error, step))


def _settle_in(environment: dict[str, str], folder: str, network: str) -> None:
    """Become a lease's: its variables, its packages before all others, its way to the network."""
    os.environ.update(environment)
    programs = (str(Path(folder) / "bin") if folder else "", str(Path(sys.executable).parent))
    os.environ["PATH"] = os.pathsep.join(filter(None, (*programs, os.environ.get("PATH", os.defpath))))
    if network:
        from fabric.agent.sandbox import forwarder  # asyncio comes with it, which most children never need

        os.environ.update(forwarder.start(network))
    if folder:
        before = list(sys.path)
        site.addsitedir(folder)
        sys.path[:] = [path for path in sys.path if path not in before] + before
        paths = (folder, os.environ.get("PYTHONPATH", ""))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    _limit_threads()


def _limit_threads() -> None:
    """Tell libraries that were imported before the lease was known how many threads it has."""
    threads, torch = os.environ.get("OMP_NUM_THREADS"), sys.modules.get("torch")
    if threads and torch is not None:
        torch.set_num_threads(int(threads))


if __name__ == "__main__":
    main(sys.argv[1:])
