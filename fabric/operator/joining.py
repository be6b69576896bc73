"""`fabric operator join`: the agent alone, on a Ray cluster that somebody else started."""

import json
import os
import shutil
import sys
from pathlib import Path

from fabric.operator.checks import start_refusals
from fabric.operator.facts import ray_facts
from fabric.operator.folder import OperatorFolder
from fabric.operator.launch import agent_config
from fabric.operator.launcher import LaunchError


def prepare(folder: OperatorFolder, state: Path, address: str) -> list[str]:
    """Write the agent's configuration and say how to start it; `address` is the GCS's when it is not the head's.

    Raises:
        LaunchError: this Ray is not safe to join; says why, and how to mend it.
    """
    cluster = folder.cluster()
    refusals = start_refusals(ray_facts(), cluster.allow)
    if refusals:
        raise LaunchError("; ".join(f"{finding.detail} ({finding.mend})" for finding in refusals))
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    for secret in (folder.session_key_file, folder.delegation_file):
        if not (state / secret.name).exists():
            shutil.copy(secret, state / secret.name)
    config = agent_config(cluster, str(state))
    if address:
        config["ray_address"] = address
    (state / "agent.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    os.environ["FABRIC_AGENT_CONFIG"] = str(state / "agent.json")
    return [sys.executable, "-P", "-m", "fabric.agent"]
