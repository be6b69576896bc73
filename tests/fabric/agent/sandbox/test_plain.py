import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from fabric.agent.sandbox import ChildSpec, Plain


def test_a_plain_child_speaks_has_a_clean_environment_and_an_exit_code(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    box = Plain()
    code = (
        "import os, socket, sys\n"
        "socket.socket(fileno=int(sys.argv[-1])).send(repr(dict(os.environ)).encode())\n"
        "sys.exit(3)"
    )
    child = box.launch(ChildSpec(argv=(sys.executable, "-c", code), gpu_uuids=("GPU-1",)))
    environment = eval(child.socket.recv(9999))
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "RAY_AUTH_TOKEN" not in environment
    assert child.exit_code(20) == 3
    child.close()
    box.close()


def test_a_plain_child_does_not_outlive_the_nodes_process():
    node = (
        "import time; from fabric.agent.sandbox import Plain, ChildSpec\n"
        "box = Plain()  # the thread that launches ends with it, and the child with that\n"
        "child = box.launch(ChildSpec(argv=('/bin/sh', '-c', 'exec sleep 60')))\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", node], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    pidfd = os.pidfd_open(pid)
    while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"):
        time.sleep(0.01)  # `setpriv` may not have had its turn yet
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
