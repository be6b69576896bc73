"""What a child needs on its file system to run this very Python with this very package."""

import shutil
import sys
from pathlib import Path

from fabric.agent.sandbox.spec import Bind

_CHILD_PACKAGES = ("fabric", "workloads")
"""Of a checkout, what a customer's function may refer to; the control plane and the ledger are not among it."""

_MINORS = range(9, 30)

_PACKAGE = Path(__file__).resolve().parents[2]
"""The folder of the package `fabric`, named by its place: importing it would bring in the SDK's names."""


def others() -> dict[str, Path]:
    """Further interpreters on this node's PATH that a command may ask for: by minor, `3.12`."""
    own = sys.version_info.minor
    names = {f"3.{minor}": shutil.which(f"python3.{minor}") for minor in _MINORS if minor != own}
    return {minor: Path(found).resolve() for minor, found in names.items() if found is not None}


def prefix_of(interpreter: Path) -> tuple[Bind, ...]:
    """What another interpreter needs beside /usr."""
    prefix = interpreter.parent.parent
    return () if prefix.is_relative_to("/usr") else (Bind(prefix),)


def needs() -> tuple[tuple[Bind, ...], dict[str, str]]:
    """Read-only binds and environment: the virtual environment, its base, and the package when it lies elsewhere."""
    prefixes = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    prefixes |= {Path(sys.executable).resolve().parent.parent}
    outside_usr = sorted(prefix for prefix in prefixes if not prefix.is_relative_to("/usr"))
    if any(_PACKAGE.is_relative_to(prefix) for prefix in prefixes):
        return tuple(map(Bind, outside_usr)), {}
    beside = [place for name in _CHILD_PACKAGES if (place := _PACKAGE.parent / name).is_dir()]
    return tuple(map(Bind, (*outside_usr, *beside))), {"PYTHONPATH": str(_PACKAGE.parent)}
