"""Whether the environment and network that a run asks for make sense, and whether a lease has the same ones."""

from typing import Any

from api.schemas import RunRequest
from fabric.wire.errors import InvalidRequest
from fabric.wire.surroundings import check_env, check_network


def check_surroundings(request: RunRequest) -> None:
    """What makes no sense whatever the fleet.

    Raises:
        InvalidRequest: says the member and what is allowed.
    """
    try:
        check_network(request.network)
        env = None if request.env is None else check_env(request.env.python, request.env.pip)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    if env is not None and request.env is not None and env.pip != request.env.pip:
        raise InvalidRequest(
            "`env.pip` must be sorted, each requirement once: equal environments share an installation"
        )


def check_same_surroundings(request: RunRequest, opened: dict[str, Any]) -> None:
    """A lease serves runs of the environment and network with which it was opened, and no others.

    Raises:
        InvalidRequest: the request differs from the stored one of the run that opened the lease.
    """
    env = None if request.env is None else request.env.model_dump(mode="json")
    asked = {"env": env, "network": request.network}
    for member, value in asked.items():
        has = opened.get(member, RunRequest.model_fields[member].default)
        if value != has:
            raise InvalidRequest(f"the lease has {member} {has!r}, the run asks for {value!r}; leave out `lease`")
