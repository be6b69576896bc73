"""What the control plane granted with a lease. Values only."""

from dataclasses import dataclass
from pathlib import Path

from fabric.agent.surroundings import Wish


@dataclass(frozen=True, slots=True)
class LeaseSpec:
    """`gpus` are (UUID, share in milli-GPU); `devices` their device nodes."""

    lease: str
    generation: int
    session: str
    run: str
    gpus: tuple[tuple[str, int], ...]
    cpu_milli: int
    memory_bytes: int
    startup_timeout_ms: int
    simulated: bool
    devices: tuple[Path, ...] = ()
    wish: Wish = Wish()  # noqa: RUF009 - frozen
    notice_ms: int = 30_000
