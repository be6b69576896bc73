"""What a run's code finds around it on its node: installed packages, and the network. Values and what is legal.

Packages are named, never located: a requirement is a name with versions, so that an installation can come from nowhere
but the operator's own index and run nobody's code. A network is `none`, `gang` (the run's other nodes), `open` (any
public address) or a list of hosts, each `name`, `*.name` or either with `:port`.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

NONE, GANG, OPEN, HOSTS = "none", "gang", "open", "hosts"
NETWORKS = (NONE, GANG, OPEN, HOSTS)

MAX_REQUIREMENTS = 256
MAX_HOSTS = 64

_REQUIREMENT = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"  # the name
    r"( *\[[A-Za-z0-9._, -]*\])?"  # extras
    r" *(\(? *(===|~=|==|!=|<=|>=|<|>)[A-Za-z0-9.*+!_ ,<>=~-]+\)?)?"  # versions
    r" *(;[A-Za-z0-9_.<>=!~'\" ()+-]+)?"  # where it applies
)
_HOST = re.compile(
    r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*(:\d{1,5})?"
)
_PYTHON = re.compile(r"3\.\d{1,2}")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EnvSpec(_Model):
    """Packages, sorted, each as `pip` reads it; `python` is a minor, empty for the node's own."""

    python: str = ""
    pip: list[str] = []


class Gang(_Model):
    """One lease's place among the leases of a run on several nodes.

    Attributes:
        group: names the gang; its members and nobody else share it.
        rank: this lease's, from 0.
        nodes: each rank's node, by the name that grants use; a node may appear twice.
    """

    group: str
    rank: int = Field(ge=0)
    nodes: list[str]


def check_env(python: str, pip: Sequence[str]) -> EnvSpec:
    """The environment asked for, in the one order that gives equal ones the same form.

    Raises:
        ValueError: not a minor, or a requirement that is not a name with versions; says which and what is allowed.
    """
    if python and not _PYTHON.fullmatch(python):
        raise ValueError(f"python={python!r} is not a minor version such as '3.11'")
    if len(pip) > MAX_REQUIREMENTS:
        raise ValueError(f"{len(pip)} requirements; at most {MAX_REQUIREMENTS} are allowed")
    for requirement in pip:
        if len(requirement) > 200 or not _REQUIREMENT.fullmatch(requirement.strip()):
            raise ValueError(
                f"{requirement!r:.120} is not a requirement such as 'torch>=2.6'; addresses, paths and options of pip "
                "are not taken: packages come from the operator's index"
            )
    return EnvSpec(python=python, pip=sorted({re.sub(r" +", " ", text.strip()) for text in pip}))


def check_network(network: str | Sequence[str]) -> tuple[str, list[str]]:
    """(`none`, `gang`, `open` or `hosts`, the hosts in lower case).

    Raises:
        ValueError: another word, or no list of hosts.
    """
    if isinstance(network, str):
        if network in (NONE, GANG, OPEN):
            return network, []
        raise ValueError(f"network={network!r} is not 'none', 'gang', 'open' or a list of hosts such as ['pypi.org']")
    hosts = list(network)
    if not 1 <= len(hosts) <= MAX_HOSTS:
        raise ValueError(f"network names {len(hosts)} hosts; 1 to {MAX_HOSTS} are possible, or 'none'")
    for host in hosts:
        if not isinstance(host, str) or len(host) > 253 or not _HOST.fullmatch(host) or not _port_fits(host):
            raise ValueError(
                f"network: {host!r:.120} is not a host such as 'pypi.org', '*.pypi.org' or 'db.acme.org:5432'"
            )
    return HOSTS, sorted({host.lower() for host in hosts})


def _port_fits(host: str) -> bool:
    _, _, port = host.partition(":")
    return not port or 0 < int(port) < 65536


def network_of(request: dict[str, Any]) -> tuple[str, list[str]]:
    """The network of a stored RunRequest."""
    return check_network(request.get("network") or NONE)
