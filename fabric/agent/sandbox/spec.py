"""What a sandbox child is given: program, files, devices and limits. Values only; who isolates is in the neighbours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


class SandboxError(RuntimeError):
    """A child could not be started; says what failed and what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on one child and everything it starts.

    Attributes:
        memory_bytes: private writable memory of each process; address space is not bounded, CUDA reserves terabytes.
            All processes together are the owner's to watch, by `Child.memory_bytes`.
        processes: processes and threads together.
        open_files: file descriptors of each process.
        tmp_bytes: size of its private /tmp (memory-backed).
        shm_bytes: size of its private /dev/shm. A PyTorch DataLoader needs more than 64 MiB.
    """

    memory_bytes: int = 16_384 * MIB
    processes: int = 4_096
    open_files: int = 65_536
    tmp_bytes: int = 4_096 * MIB
    shm_bytes: int = 4_096 * MIB

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a limit is 1 or more")


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the node at the same path in the sandbox, read-only unless ``writable``."""

    path: Path
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One child.

    Attributes:
        argv: program and arguments; the number of the child's end of the socket is appended as the last argument.
        binds: what the program needs beside /usr; `interpreter.needs` lists a Python's.
        env: added to the few variables that every child has. Secrets do not belong here but into the socket.
        devices: device nodes of the lease, for example ``/dev/nvidia0``, ``/dev/nvidiactl``, ``/dev/nvidia-uvm``.
        gpu_uuids: become CUDA_VISIBLE_DEVICES, in this order; none hides every GPU.
        names: further lines of its /etc/hosts, (address, name).
        address: IPv4 address of its interface `fab0`, whose other end is `Child.wire_fd`; "" for no such interface.
        uid: the child's user when the node's process is root, else ignored; left out, each child gets one of its own.
        limits: see `Limits`.
    """

    argv: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[Path, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    address: str = ""
    uid: int | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.argv:
            raise ValueError("a child needs a program: argv is empty")
        if self.uid is not None and self.uid <= 0:
            raise ValueError(f"uid {self.uid}; a child never runs as root")
        for path in (*self.devices, *(bind.path for bind in self.binds)):
            if not path.is_absolute():
                raise ValueError(f"{path} is not an absolute path")


def environment(spec: ChildSpec) -> dict[str, str]:
    """The whole environment of a child: nothing of the node's own."""
    return {
        "HOME": "/tmp",  # noqa: S108 - private to the child
        "LANG": "C.UTF-8",
        "LOGNAME": "fabric",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": "/tmp",  # noqa: S108
        "USER": "fabric",
        **spec.env,
        "CUDA_VISIBLE_DEVICES": ",".join(spec.gpu_uuids),
    }
