"""Whether this machine and this Python have what the embedded fabric needs; nothing of it is imported."""

import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from fabric.wire.errors import InvalidRequest

LEAST_RAY = (2, 52)
"""The first Ray with token authentication."""

_MODULES = ("ray", "fastapi", "sqlmodel", "uvicorn", "alembic", "psutil")


def check_requirements() -> None:
    """Raises InvalidRequest that says what is missing and what to do instead."""
    elsewhere = "or set FABRIC_URL and FABRIC_API_KEY to use a fabric elsewhere"
    if not sys.platform.startswith("linux"):
        raise InvalidRequest(f"the embedded fabric needs Linux, this is {sys.platform}; {elsewhere[3:]}")
    missing = [module for module in _MODULES if find_spec(module) is None]
    if missing:
        raise InvalidRequest(
            f"no FABRIC_URL is set and the embedded fabric is not installed ({', '.join(missing)} missing): "
            f"pip install 'berkeley-compute[local]', {elsewhere}"
        )
    ray = _ray_version()
    if ray < LEAST_RAY:
        raise InvalidRequest(
            f"Ray {'.'.join(map(str, ray))} is too old for the embedded fabric, which needs "
            f"{'.'.join(map(str, LEAST_RAY))} or newer: pip install 'berkeley-compute[local]', {elsewhere}"
        )


def _ray_version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version("ray").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return (0, 0)
