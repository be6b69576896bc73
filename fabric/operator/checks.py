"""The rules of a sound host, as pure functions from what was seen to a finding.

`start_refusals` are the three that the agent itself will not start without: a Ray that authenticates, with its token
switched on, and none of its ports at an address outside the allow-list. Everything else is advice of the doctor.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fabric.operator.findings import Finding, Verdict, bad, good, warning
from fabric.operator.listeners import Address, Listener, outside, reachable_at

RAY_VERSION = "2.60.0"
"""The version that the launcher, the scripts and the tests of this release were made for."""

OLDEST_RAY = (2, 52)
"""The first version with token authentication."""

MIN_FREE_BYTES = 10 << 30
MAX_CLOCK_SKEW_MS = 5_000
_OWNER_ONLY = 0o077


@dataclass(frozen=True, slots=True)
class RayFacts:
    """What decides whether Ray on this host is safe to work with.

    `token_set` is whether the token stands in RAY_AUTH_TOKEN, which Ray prefers to a file; `token_mode` are the
    permission bits of the token's file, None when there is none; `listeners` are the listening
    sockets of Ray's own processes; `addresses` all addresses of this host.
    """

    version: str | None
    auth_mode: str
    token_set: bool
    token_mode: int | None
    listeners: tuple[Listener, ...]
    addresses: tuple[Address, ...]


def start_refusals(facts: RayFacts, allow: Collection[str] = ()) -> list[Finding]:
    """Why the agent must not start here; empty when it may. `allow` are the operator's further addresses."""
    findings = [check_ray_version(facts.version), check_token(facts), check_ray_ports(facts, allow)]
    return [finding for finding in findings if finding.verdict is Verdict.BAD]


def check_ray_version(version: str | None) -> Finding:
    """Bad without Ray or before token authentication; a warning for another version than the one tested."""
    mend = f"pip install 'ray[default]=={RAY_VERSION}', or run `ray up` again: it installs the pinned version"
    if version is None:
        return bad("ray-version", "Ray is not installed in this Python", mend)
    if _minor(version) < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        return bad("ray-version", f"Ray {version} is too old: token authentication came with {oldest}", mend)
    if version != RAY_VERSION:
        return warning("ray-version", f"Ray {version}; this release was tested with {RAY_VERSION}", mend)
    return good("ray-version", f"Ray {version}")


def check_token(facts: RayFacts) -> Finding:
    """Token authentication must be on, and the token's file, if it is in one, readable by its owner alone."""
    if facts.auth_mode != "token":
        seen = f"RAY_AUTH_MODE is {facts.auth_mode!r}" if facts.auth_mode else "RAY_AUTH_MODE is not set"
        mend = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH for Ray and the agent (host/env.sh does), then restart"
        return bad("ray-token", f"{seen}: whoever reaches Ray's ports commands this cluster", mend)
    if facts.token_set:
        return good("ray-token", "token authentication is on, by RAY_AUTH_TOKEN")
    if facts.token_mode is None:
        mend = "put the token of the cluster where RAY_AUTH_TOKEN_PATH points; `fabric operator init` makes one"
        return bad("ray-token", "the file of RAY_AUTH_TOKEN_PATH does not exist", mend)
    if facts.token_mode & _OWNER_ONLY:
        return bad("ray-token", f"the token's file has mode {facts.token_mode:04o}", "chmod 600 it")
    return good("ray-token", "token authentication is on")


def check_ray_ports(facts: RayFacts, allow: Collection[str] = ()) -> Finding:
    """No port of Ray may answer at an address that is neither private nor in `allow`."""
    exposed = [
        f"{listener.process or 'Ray'} on {_at(address, listener.port)}"
        for listener in sorted(facts.listeners, key=lambda listener: listener.port)
        for address in outside(reachable_at(listener, facts.addresses), allow)
    ]
    if not exposed:
        return good("ray-ports", f"{len(facts.listeners)} Ray ports, all at allowed addresses")
    mend = (
        "close these ports to everyone but this cluster's nodes (docs/operators.md has a firewall to copy), then add "
        "the address to provider.fabric.allow in cluster.yaml; or take the public address off this host"
    )
    more = f" and {len(exposed) - 4} more" if len(exposed) > 4 else ""
    return bad("ray-ports", f"reachable from outside: {', '.join(exposed[:4])}{more}", mend)


def check_gpus(names: Iterable[str], driver: str, problem: str, *, expected: int | None = None) -> Finding:
    """`problem` is why NVML did not answer, empty when it did; `expected` is what cluster.yaml says, if it does."""
    names = list(names)
    if problem and expected == 0:
        return good("gpus", "no GPUs, as cluster.yaml says")
    if problem:
        mend = (
            "install NVIDIA's driver and see `nvidia-smi` work; in a container, pass the devices and libnvidia-ml.so.1"
        )
        return bad("gpus", f"NVML does not answer: {problem}", mend)
    if expected is not None and expected > len(names):
        return bad("gpus", f"NVML shows {len(names)} GPUs, cluster.yaml offers {expected}", "correct num_gpus there")
    if not names and expected != 0:
        return bad("gpus", "NVML shows no GPU", "see `nvidia-smi -L`; a host without GPUs wants `num_gpus: 0`")
    return good("gpus", f"{len(names)} GPUs ({', '.join(sorted(set(names)))}), driver {driver}")


def check_disk(path: str, free_bytes: int) -> Finding:
    """Space for logs, customers' data on its way, and environments."""
    detail = f"{free_bytes / (1 << 30):.1f} GiB free at {path}"
    if free_bytes < MIN_FREE_BYTES:
        return bad("disk", detail, f"free at least {MIN_FREE_BYTES >> 30} GiB: jobs and their environments need it")
    return good("disk", detail)


def check_clock(skew_ms: int | None) -> Finding:
    """Skew against the control plane; no bill depends on it, but tokens and certificates expire by the clock."""
    if skew_ms is None:
        return warning("clock", "not compared: the control plane did not answer", "see the check `control-plane`")
    if abs(skew_ms) > MAX_CLOCK_SKEW_MS:
        return bad("clock", f"{skew_ms / 1000:+.1f} s against the control plane", "run chrony or systemd-timesyncd")
    return good("clock", f"within {MAX_CLOCK_SKEW_MS // 1000} s of the control plane")


def check_sandbox(bubblewrap_problem: str, *, tun: bool) -> Finding:
    """`bubblewrap_problem` is what a trial sandbox said, empty when it ran."""
    if bubblewrap_problem:
        mend = (
            "install the package bubblewrap and allow unprivileged user namespaces: user.max_user_namespaces above 0, "
            "kernel.unprivileged_userns_clone=1 on Debian, kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu"
        )
        return bad("sandbox", f"a trial sandbox failed: {bubblewrap_problem}", mend)
    if not tun:
        return warning("sandbox", "no /dev/net/tun: gangs over several nodes cannot talk", "modprobe tun")
    return good("sandbox", "bubblewrap, user namespaces and /dev/net/tun work")


def check_packages(index: str, problem: str) -> Finding:
    """Runs that ask for packages need the index; without it they fail, and others do not."""
    if problem:
        mend = "let this host reach it, or name another in provider.fabric.packages (index, or find_links for a folder)"
        return warning("packages", f"{index} does not answer: runs with Env(pip=…) fail here: {problem}", mend)
    return good("packages", f"{index} answers")


def check_control_plane(url: str, problem: str) -> Finding:
    """The agent dials out, so the control plane must answer from here."""
    if problem:
        mend = "allow outgoing HTTPS to it; the agent needs no inbound port"
        return bad("control-plane", f"{url} does not answer: {problem}", mend)
    return good("control-plane", f"{url} answers")


def check_ssh(address: str, problem: str) -> Finding:
    """`ray up` retries a refused key for 15 minutes without saying so; this says so."""
    if problem:
        mend = "put the public half of auth.ssh_private_key into ~/.ssh/authorized_keys of auth.ssh_user on that host"
        if "denied" not in problem.lower():
            mend = "switch it on, see that its address is right and sshd runs; one that stays away leaves worker_ips"
        return bad("ssh", f"cannot log in: {problem}", mend).at(address)
    return good("ssh", "login works").at(address)


def check_secret_modes(modes: Mapping[str, int | None]) -> Finding:
    """Keys and tokens belong to their owner alone. `modes` maps a file to its permission bits, None when missing."""
    missing = sorted(name for name, mode in modes.items() if mode is None)
    if missing:
        return bad("secrets", f"missing: {', '.join(missing)}", "run `fabric operator init` again")
    open_ = sorted(name for name, mode in modes.items() if mode is not None and mode & _OWNER_ONLY)
    if open_:
        return bad("secrets", f"readable by others: {', '.join(open_)}", f"chmod 600 {' '.join(open_)}")
    return good("secrets", "readable by their owner alone")


def check_delegation(expires_ms: int, now_ms: int) -> Finding:
    """An expired delegation keeps the agent out; warn two weeks before."""
    days = (expires_ms - now_ms) / 86_400_000
    mend = "run `fabric operator renew`: the wallet signs again, key and cluster stay"
    if days <= 0:
        return bad("delegation", "the session key's delegation has expired", mend)
    if days < 14:
        return warning("delegation", f"the session key's delegation ends in {days:.0f} days", mend)
    return good("delegation", f"valid for {days:.0f} days")


def _minor(version: str) -> tuple[int, int]:
    parts = [int("".join(filter(str.isdigit, part)) or "0") for part in version.split(".")[:2]]
    return (parts[0], parts[1] if len(parts) > 1 else 0)


def _at(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
