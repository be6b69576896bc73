"""Starts control plane, Ray and agent, starts again what dies, ends all of them when nobody needs them any more.

It has one thread: children are bound to it by signals that follow the thread that started them.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fabric.local.config import agent_config, prepare_keys, simulated_gpus
from fabric.local.control_plane import ControlPlaneProbe
from fabric.local.home import Home, Status, gone_clients, write_private
from fabric.local.part import Part
from fabric.local.ports import free_ports, is_free
from fabric.local.processes import (
    adopt_orphans,
    end_descendants,
    find_descendant,
    is_alive,
    kill_orphans,
    kill_tree,
    reap,
)
from fabric.local.ray_head import ADDRESS, GIVES_UP_SAYING, RayHead
from fabric.local.settings import CONTROL_KEYS, LocalSettings
from fabric.wire.errors import Error, ServiceError

TICK_S = 0.1
READY_S = 150.0
GRACE_S = 5.0
LOOK_EVERY_S = 0.5
RAY_START_S = 60.0
"""By then `ray start` has started its raylet, or never will."""
RAY_PORTS = 8

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


def supervise(settings: LocalSettings, start: str) -> int:
    """Run until told to stop or nobody is left; the exit code.

    Args:
        settings: of the embedded fabric.
        start: the attempt to start that this answers; goes into the status file.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    adopt_orphans()
    home = Home(settings.home)
    folder = Path(tempfile.mkdtemp(prefix="fabric-", dir="/tmp"))
    try:
        _Supervisor(settings, home, start, folder).run()
    except Error as error:
        _write(home, Status("failed", start, error=str(error)))
        return error.exit_code
    finally:
        end_descendants(GRACE_S)
        shutil.rmtree(folder, ignore_errors=True)
    _write(home, Status("stopped", start))
    return 0


def _write(home: Home, status: Status) -> None:
    """Unless the folder was removed meanwhile."""
    with suppress(OSError):
        home.write_status(status)


class _Supervisor:
    def __init__(self, settings: LocalSettings, home: Home, start: str, folder: Path) -> None:
        self._settings = settings
        self._home = home
        self._start = start
        self._folder = folder
        self._state = "starting"
        self._started_ms = time.time_ns() // 1_000_000
        self._stopping = False
        self._needed_at = time.monotonic()
        self._looked_at = 0.0
        self._raylet: int | None = None
        self._lock_inode = home.alive_lock.stat().st_ino
        self._write_status()
        prepare_keys(home, test_balance=not os.environ.get("FABRIC_CHAIN_URL"))
        port = _control_port(settings.port)
        self._url = f"http://127.0.0.1:{port}"
        self._probe = ControlPlaneProbe(self._url, home.read_api_key())
        simulated = simulated_gpus(settings.simulated_gpus)
        gcs, *others = free_ports(1 + RAY_PORTS, ADDRESS)
        self._head = RayHead(gcs, tuple(others), folder, home.ray_token_file, _count(simulated))
        serving = free_ports(1)[0]
        self._control = self._part("control", ["-m", "api"], _control_environ(home, port, serving))
        self._serving = self._part("serving", ["-m", "api.serving"], _serving_environ(home, self._url, serving))
        self._ray = Part(
            "ray",
            self._head.command(),
            self._environ(self._head.environ()),
            home.root,
            home.logs / "ray.log",
            gives_up_saying=GIVES_UP_SAYING,
        )
        more = range(1, settings.nodes) if simulated else ()  # real GPUs are one node's
        self._further = tuple(
            Part(
                f"ray-{number}",
                self._head.join_command(number),
                self._environ(self._head.environ()),
                home.root,
                home.logs / f"ray-{number}.log",
            )
            for number in more
        )
        self._awaited = _count(simulated) * (1 + len(self._further)) if self._further else 1
        config = agent_config(
            home,
            url=self._url,
            ray_address=self._head.address,
            gateway_port=free_ports(1)[0],
            simulated=simulated,
            isolation=settings.isolation,
        )
        write_private(home.agent / "config.json", json.dumps(config, indent=1) + "\n")
        environ = self._head.environ() | {"FABRIC_AGENT_CONFIG": str(home.agent / "config.json")}
        self._agent = self._part("agent", ["-m", "fabric.agent"], environ)

    def run(self) -> None:
        """Start everything, then keep it until it is time to stop."""
        try:
            self._bring_up()
            while not self._stopping:
                self._wait()
                self._keep_parts()
                if self._is_time_to_look():
                    self._watch_ray()
                    self._watch_clients()
        finally:
            self._stop()

    def _bring_up(self) -> None:
        until = time.monotonic() + READY_S
        self._control.start()
        self._serving.start()
        self._ray.start()
        while not self._stopping:
            self._wait()
            if self._head.is_up():
                self._start_further()
            if self._agent.process is None and self._head.is_up() and self._probe.is_ready():
                self._agent.start()
            if self._agent.process is not None and self._probe.has_offers(self._awaited):
                break
            if time.monotonic() > until:
                raise ServiceError(f"the embedded fabric was not ready within {READY_S:.0f} s; see {self._home.logs}")
        self._state = "ready"
        self._needed_at = time.monotonic()
        self._write_status()

    def _start_further(self) -> None:
        for part in self._further:
            if part.process is None and time.monotonic() >= part.restart_at:
                part.start()

    def _wait(self) -> None:
        """Sleep until a child ends, somebody wants us to stop, or a tick has passed."""
        caught = signal.sigtimedwait(_SIGNALS, TICK_S if self._state == "starting" else LOOK_EVERY_S)
        if caught is not None and caught.si_signo != signal.SIGCHLD:
            self._stopping = True
        now = time.monotonic()
        for pid, code in reap().items():
            for part in self._parts:
                if part.pid == pid:
                    part.ended(code, now)
                    self._on_end(part, code)

    def _on_end(self, part: Part, code: int) -> None:
        if self._state == "starting" and not self._stopping and part not in self._further:
            if part.was_too_slow():
                self._start_ray_again()
                return
            raise ServiceError(
                f"the embedded fabric's {part.name} ended with {code} while it started: {part.last_words()} "
                f"(log: {part.log})"
            )
        if part is self._ray:
            kill_orphans([other.pid for other in self._parts if other.pid])
            self._agent.signal(signal.SIGTERM)
            for further in self._further:
                further.signal(signal.SIGTERM)

    def _start_ray_again(self) -> None:
        """From nothing: what is left of the attempt before would be taken for this one."""
        kill_orphans([other.pid for other in self._parts if other.pid])
        (self._head.folder / "session_latest").unlink(missing_ok=True)
        self._ray.start()

    def _keep_parts(self) -> None:
        now = time.monotonic()
        started = False
        for part in self._parts:
            due = part.process is None and now >= part.restart_at
            alone = part is not self._agent and part not in self._further
            if due and (alone or self._head.is_up()):
                if part is self._ray:
                    (self._head.folder / "session_latest").unlink(missing_ok=True)
                part.start()
                started = True
        if started:
            self._write_status()

    def _is_time_to_look(self) -> bool:
        """True about twice a second: for what is looked at by looking at every process or file."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = now
        return True

    def _watch_ray(self) -> None:
        """`ray start` stays when its raylet has ended; without one it is of no use, so Ray starts again as a whole."""
        if self._ray.pid is None:
            return
        if self._raylet is None:
            self._raylet = find_descendant(self._ray.pid, "raylet")
            gone = self._raylet is None and time.monotonic() - self._ray.started_at > RAY_START_S
        else:
            gone = not is_alive(self._raylet, "raylet")
        if gone:
            self._raylet = None
            kill_tree(self._ray.pid)

    def _watch_clients(self) -> None:
        """Tell the control plane of processes that are gone; stop when none has been there for `linger_s`."""
        now = time.monotonic()
        if not self._home_is_ours():
            self._stopping = True
            return
        gone, living = gone_clients(self._home)
        for session in gone:
            self._probe.end_session(session)
        if living or self._home.service_file.exists():
            self._needed_at = now
        elif now - self._needed_at >= self._settings.linger_s:
            if self._probe.serves():
                self._needed_at = now
            else:
                self._stopping = True

    def _home_is_ours(self) -> bool:
        """Whether the state folder is still the one it started in: removed or replaced, nobody could find it again."""
        try:
            return self._home.alive_lock.stat().st_ino == self._lock_inode
        except OSError:
            return False

    def _stop(self) -> None:
        """Agent first, so that its last receipts still reach the control plane."""
        self._stopping = True
        self._state = "stopping"
        self._write_status()
        for part in (self._serving, self._agent, *self._further, self._ray, self._control):
            part.signal(signal.SIGTERM)
            until = time.monotonic() + GRACE_S
            while part.process is not None and time.monotonic() < until:
                self._wait()

    @property
    def _parts(self) -> tuple[Part, ...]:
        return self._control, self._ray, self._agent, self._serving, *self._further

    def _part(self, name: str, arguments: list[str], environ: Mapping[str, str]) -> Part:
        command = [sys.executable, "-P", *arguments]
        return Part(name, command, self._environ(environ), self._home.root, self._home.logs / f"{name}.log")

    def _environ(self, more: Mapping[str, str]) -> dict[str, str]:
        """Ours without the keys of other parts, with what this part reads."""
        return {k: v for k, v in os.environ.items() if not k.startswith(("FABRIC_", "RAY_"))} | dict(more)

    def _write_status(self) -> None:
        parts = {part.name: part.pid for part in self._parts if part.pid} if self._state != "starting" else {}
        if not self._home_is_ours():
            return
        pids = {"guard": os.getppid(), "supervisor": os.getpid(), **parts}
        url = getattr(self, "_url", "")
        service = self._home.service_file.exists()
        self._home.write_status(
            Status(
                self._state,
                self._start,
                url,
                pids,
                service=service,
                started_ms=self._started_ms,
                ray_folder=str(self._folder),
            )
        )


def _control_port(wanted: int) -> int:
    if wanted and not is_free(wanted):
        raise ServiceError(f"port {wanted} is taken by another process; set FABRIC_PORT to a free one, or unset it")
    return wanted or free_ports(1)[0]


def _serving_environ(home: Home, url: str, port: int) -> dict[str, str]:
    passed = {k: v for k, v in os.environ.items() if k == "FABRIC_SERVING_IDLE_S"}
    return passed | {"FABRIC_URL": url, "FABRIC_PORT": str(port), "FABRIC_STATE_DIR": str(home.control)}


def _control_environ(home: Home, port: int, serving: int) -> dict[str, str]:
    passed = {k: v for k, v in os.environ.items() if k in CONTROL_KEYS}
    return passed | {
        "FABRIC_HOST": "127.0.0.1",
        "FABRIC_PORT": str(port),
        "FABRIC_STATE_DIR": str(home.control),
        "FABRIC_SERVING_URL": f"http://127.0.0.1:{serving}",
        "FABRIC_BOOTSTRAP": str(home.bootstrap_file),
        "FABRIC_ALLOW_SIMULATED": "1",
    }


def _count(simulated: str) -> int:
    return sum(int(part.rpartition(":")[2]) for part in simulated.split(",") if part)
