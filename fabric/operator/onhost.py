"""The commands that cluster.yaml runs on the hosts themselves: `~/.fabric-operator/host/run COMMAND`.

    node-args                     arguments of `ray start` for this host, by its address
    register                      tell the launcher's state file of head and workers (head)
    agent start | stop | status   the agent and its keeper (head)
    nodes                         the nodes Ray knows, as JSON (head)
    doctor                        this host's findings, as JSON
    drain [SECONDS]               tell all leases, and wait until they are gone (head)
    selftest                      challenge this host's GPUs, as JSON
    stop-local                    end Ray and agent of this user here
    stop-all                      from the head: drain, and end them on every host of the cluster
    left                          what of Ray and agent still runs here; stops nothing

Exit status 0 when it is done, 1 with a line on stderr when it is not.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from nacl.encoding import HexEncoder
from nacl.signing import SigningKey

from fabric.operator import doctor, facts, keeper, nodes, stop
from fabric.operator.checks import start_refusals
from fabric.operator.cluster_file import ClusterFile, ClusterFileError, read_cluster_file
from fabric.operator.launch import agent_config, node_arguments, own_address
from fabric.operator.orders import Orders, back_after_stop, drained_for_stop
from fabric.wire.clock import SystemClock
from fabric.wire.errors import Error

FOLDER = Path("~/.fabric-operator")
_DRAINED = "drained-by-stop"


def main(arguments: Sequence[str]) -> int:
    """Run one command; see the module's text."""
    name, *rest = arguments or [""]
    command = _COMMANDS.get(name)
    if command is None:
        _complain(f"{name!r} is not a command here; there are {', '.join(_COMMANDS)}")
        return 2
    try:
        return command(*rest)
    except (ClusterFileError, OSError) as error:
        _complain(f"{name}: {error}")
        return 1


def _node_args() -> int:
    cluster = _cluster()
    address = own_address(cluster, {str(address) for address in facts.host_addresses()})
    _say(" ".join(shlex.quote(argument) for argument in node_arguments(cluster, address)))
    return 0


def _register() -> int:
    nodes.register_nodes(Path("~/ray_bootstrap_config.yaml"))
    return 0


def _agent(verb: str = "status") -> int:
    folder = _agent_folder()
    if verb == "stop":
        return 0 if keeper.stop(folder) else 1
    if verb == "start":
        return _start_agent(_cluster(), folder)
    pid = keeper.status(folder)
    _say(f"agent {pid}" if pid else "no agent")
    return 0 if pid else 1


def _start_agent(cluster: ClusterFile, folder: Path) -> int:
    refusals = start_refusals(facts.ray_facts(), cluster.allow)
    if refusals:
        for finding in refusals:
            _complain(f"the agent does not start: {finding.detail}; {finding.mend}")
        return 1
    config = folder / "agent.json"
    config.write_text(json.dumps(agent_config(cluster, str(folder)), indent=2), encoding="utf-8")
    os.environ["FABRIC_AGENT_CONFIG"] = str(config)
    keeper.start(folder, [sys.executable, "-P", "-m", "fabric.agent"])
    try:
        back_after_stop(_orders(cluster, folder), folder / _DRAINED)
    except (Error, ValueError, OSError) as error:
        _complain(f"still drained by the last stop: {error}; `fabric operator undrain --all` takes it back")
    return 0


def _drain(seconds: str = "") -> int:
    cluster, folder = _cluster(), _agent_folder()
    notice_s = int(seconds) if seconds.isdecimal() else cluster.notice_s
    try:
        left = drained_for_stop(_orders(cluster, folder), notice_s, folder / _DRAINED)
    except (Error, ValueError, OSError) as error:
        _complain(f"not drained, leases end at once: {error}")
        return 1
    for lease in left:
        _complain(f"still there after its notice: {lease['lease']} on {lease['node']}")
    return 1 if left else 0


def _orders(cluster: ClusterFile, folder: Path) -> Orders:
    seed = (folder / "session.key").read_text(encoding="ascii").strip()
    return Orders(cluster, SigningKey(seed.encode(), HexEncoder), SystemClock())


def _nodes() -> int:
    try:
        states = nodes.ray_nodes(f"{_cluster().head}:6379")
    except ConnectionError as error:
        _complain(str(error))
        return 1
    _say(json.dumps([asdict(state) for state in states]))
    return 0


def _doctor() -> int:
    _say(json.dumps([finding.to_json() for finding in doctor.examine_host(_cluster(), FOLDER.expanduser())]))
    return 0


def _selftest() -> int:
    from fabric.operator.selftest import examine_here

    _say(json.dumps(examine_here()))
    return 0


def _stop_local() -> int:
    return _report(stop.stop_local(_agent_folder()))


def _stop_all() -> int:
    cluster = _cluster()
    if cluster.notice_s and keeper.status(_agent_folder()):
        _drain()
    left = stop.stop_cluster(
        cluster,
        _agent_folder(),
        key=Path("~/ray_bootstrap_key.pem"),
        gcs_folder=FOLDER.expanduser() / "gcs",
        state_file=nodes.launcher_state_file(cluster.name),
    )
    return _report(left)


def _left() -> int:
    return _report(stop.left_here())


def _report(left: list[str]) -> int:
    for line in left:
        _complain(f"still there: {line}")
    return 1 if left else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")


def _cluster() -> ClusterFile:
    return read_cluster_file(FOLDER.expanduser() / "cluster.yaml")


def _agent_folder() -> Path:
    return FOLDER.expanduser() / "agent"


_COMMANDS: dict[str, Callable[..., int]] = {
    "node-args": _node_args,
    "register": _register,
    "agent": _agent,
    "nodes": _nodes,
    "doctor": _doctor,
    "drain": _drain,
    "selftest": _selftest,
    "stop-local": _stop_local,
    "stop-all": _stop_all,
    "left": _left,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
