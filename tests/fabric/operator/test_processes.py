import os
import subprocess
import sys

import pytest

from fabric.operator.processes import Process, is_agent, is_ray, label, own_processes

SITE = "/opt/venv/lib/python3.11/site-packages/ray"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((f"{SITE}/core/src/ray/raylet/raylet", "--node_id=1"), "raylet"),
        ((f"{SITE}/core/src/ray/gcs/gcs_server", "--port=1"), "gcs_server"),
        (("/opt/venv/bin/python", "-u", f"{SITE}/autoscaler/_private/monitor.py"), "autoscaler"),
        (("/opt/venv/bin/python", f"{SITE}/dashboard/agent.py"), "dashboard agent"),
        (("/opt/venv/bin/python", f"{SITE}/dashboard/dashboard.py"), "dashboard"),
        (("/opt/venv/bin/python", "-u", f"{SITE}/_private/runtime_env/agent/main.py"), "runtime env agent"),
        (("ray::IDLE", ""), "ray::IDLE"),
        (("/opt/venv/bin/python", "-m", "ray.util.client.server", "--port=10001"), "Ray client"),
    ],
)
def test_every_part_of_ray_is_known_by_its_command_line(arguments, name):
    process = Process(1, arguments)
    assert is_ray(process)
    assert label(process) == name
    assert not is_agent(process)


@pytest.mark.parametrize("arguments", [("vim", "raylet.md"), ("python", "-m", "http.server"), ("array::x",)])
def test_other_processes_are_not_rays(arguments):
    assert not is_ray(Process(1, arguments))


def test_agent_and_keeper_are_ours():
    assert is_agent(Process(1, ("python", "-P", "-m", "fabric.agent")))
    assert is_agent(Process(1, ("python", "-P", "-m", "fabric.operator.keeper", "folder")))
    assert not is_agent(Process(1, ("python", "-P", "-m", "fabric.operator.onhost", "stop-local")))


def test_a_living_process_of_this_user_is_seen_and_this_one_is_not():
    waits = [sys.executable, "-c", "print(flush=True); input()", "mark"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # a process that is just being started has no command line yet
        seen = {process.pid: process.arguments for process in own_processes()}
        child.communicate(b"\n")
    assert seen[child.pid][-1] == "mark"
    assert os.getpid() not in seen
