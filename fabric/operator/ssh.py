"""One command on one host by ssh, as Ray's launcher would run it: with the cluster's key, never asking for anything."""

import subprocess
from pathlib import Path

_SETTINGS = (
    "BatchMode=yes",
    "ConnectTimeout=8",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "IdentitiesOnly=yes",
    "LogLevel=ERROR",
)


def run_on(
    address: str, user: str, key: Path, command: str, *, timeout_s: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run `command` in the user's shell on the host; never raises for what the host does or does not answer.

    Like Ray's launcher it does not check host keys. A host that does not answer in time has the exit status 255.
    """
    options = [word for setting in _SETTINGS for word in ("-o", setting)]
    ssh = ["ssh", "-n", "-i", str(key.expanduser()), *options, f"{user}@{address}", command]
    try:
        return subprocess.run(ssh, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(ssh, 255, "", f"no answer within {timeout_s:.0f} s")


def login_problem(address: str, user: str, key: Path) -> str:
    """Why one cannot log in there; empty when one can."""
    if not key.expanduser().exists():
        return f"{key} does not exist"
    done = run_on(address, user, key, "true", timeout_s=12)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["ssh failed"])[-1]
