"""The state folder: where each thing lies, and the files by which processes of one machine know of each other.

A lock that is held says that its holder lives, whatever a file may claim; the kernel frees it with the process.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fabric.wire.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Status:
    """What the supervisor last wrote: `state` is starting, ready, stopping, stopped or failed.

    `start` names the attempt to start that it answers; `service` says that only `fabric down` ends it.
    """

    state: str
    start: str = ""
    url: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    service: bool = False
    error: str = ""
    started_ms: int = 0
    ray_folder: str = ""


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below one state folder."""

    root: Path

    @property
    def status_file(self) -> Path:
        return self.root / "fabric.json"

    @property
    def api_key_file(self) -> Path:
        return self.root / "api.key"

    @property
    def bootstrap_file(self) -> Path:
        return self.root / "bootstrap.json"

    @property
    def ray_token_file(self) -> Path:
        return self.root / "ray.token"

    @property
    def service_file(self) -> Path:
        """Exists while `fabric up` is in force."""
        return self.root / "service"

    @property
    def alive_lock(self) -> Path:
        """Held by guard and supervisor together: free means that nothing of it lives."""
        return self.root / "alive.lock"

    @property
    def start_lock(self) -> Path:
        """Held by whoever is starting it."""
        return self.root / "start.lock"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def agent(self) -> Path:
        return self.root / "agent"

    @property
    def clients(self) -> Path:
        return self.root / "clients"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def make(self) -> None:
        """Create the folders, for their owner alone.

        Raises:
            ServiceError: the folder cannot be made or written.
        """
        try:
            for folder in (self.root, self.control, self.agent, self.clients, self.logs):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ServiceError(
                f"the state folder {self.root} cannot be used: {error}; set FABRIC_HOME to a folder of yours"
            ) from None

    def read_status(self) -> Status:
        """What was last written; `stopped` when nothing readable is there (a live supervisor writes it anew)."""
        try:
            return Status(**json.loads(self.status_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Status("stopped")

    def write_status(self, status: Status) -> None:
        write_private(self.status_file, json.dumps(asdict(status), indent=1) + "\n")

    def read_api_key(self) -> str:
        """Raises ServiceError when it is missing or no key."""
        try:
            key = self.api_key_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            key = ""
        if not key.startswith("fk_") or len(key) < 40:
            raise damaged(self.api_key_file, "it holds no API key")
        return key


def damaged(path: Path, why: str) -> ServiceError:
    """The error of a state folder that something else wrote to."""
    return ServiceError(
        f"the embedded fabric's state is damaged: {path}: {why}. Move the folder {path.parent} away to start afresh "
        "(its test balance and history go with it)"
    )


def write_private(path: Path, text: str) -> None:
    """Replace a file's text atomically; readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def try_lock(path: Path) -> int | None:
    """An open descriptor that holds the exclusive lock of `path`, or None when another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock now."""
    descriptor = try_lock(path)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, waiting for it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def hold_client(home: Home, session: str) -> int:
    """Say that this process uses the fabric, until it ends or closes the descriptor.

    The file appears under its name only once it is locked: the supervisor takes a free lock for a process that is gone.
    """
    unnamed = home.clients / f".{session}"
    descriptor = try_lock(unnamed)
    assert descriptor is not None, "a session's id is random"
    unnamed.rename(home.clients / f"{session}.lock")
    return descriptor


def gone_clients(home: Home) -> tuple[list[str], int]:
    """Sessions whose process is gone (their files are removed), and how many live."""
    gone, living = [], 0
    for path in home.clients.glob("*.lock"):
        descriptor = try_lock(path)
        if descriptor is None:
            living += 1
            continue
        path.unlink(missing_ok=True)
        os.close(descriptor)
        gone.append(path.stem)
    return gone, living


def json_of(path: Path) -> Any:
    """A JSON file of ours.

    Raises:
        ServiceError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from None
