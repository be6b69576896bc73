"""A child's life under bubblewrap: what it is given, how it ends, and that nothing of it stays."""

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fabric.agent.sandbox import Bind, Bubblewrap, ChildSpec, Limits, SandboxError
from fabric.agent.sandbox.interpreter import needs

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="the program bwrap is missing: install bubblewrap"),
]

SPEAK = "import os, resource, socket, sys; channel = socket.socket(fileno=int(sys.argv[-1]))\n"


@pytest.fixture
def box():
    box = Bubblewrap()
    yield box
    box.close()


def spec(code, **more):
    binds, env = needs()
    more = {"binds": binds, "env": env, **more}
    return ChildSpec(argv=(sys.executable, "-P", "-c", SPEAK + code), **more)


def answer(box, code, **more):
    """What the child sends before it ends."""
    child = box.launch(spec(f"channel.sendall(repr({code}).encode())", **more))
    try:
        said = b"".join(iter(lambda: child.socket.recv(4096), b""))
        assert said, os.read(child.stderr_fd, 9999).decode()
        return eval(said)
    finally:
        child.close()


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_gone(pidfd):
    assert select.select([pidfd], [], [], 20)[0], "the process is still there"


def test_a_child_speaks_over_its_socket(box):
    child = box.launch(spec("channel.send(channel.recv(9).upper())"))
    child.socket.send(b"hello")
    assert child.socket.recv(9) == b"HELLO"
    assert child.exit_code(20) == 0
    child.close()


def test_a_child_has_only_the_environment_it_is_given(box, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    environment = answer(box, "dict(os.environ)", gpu_uuids=("GPU-1", "GPU-2"))
    assert "RAY_AUTH_TOKEN" not in environment
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert environment["HOME"] == "/tmp"


def test_a_child_holds_no_descriptor_but_its_own(box):
    assert answer(box, "len(os.listdir('/proc/self/fd'))") == 5  # three standard ones, the socket, the listing


def test_a_child_is_never_root_and_sees_only_itself(box):
    uid, pids = answer(box, "(os.getuid(), [p for p in os.listdir('/proc') if p.isdigit()])")
    assert uid != 0
    assert len(pids) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give each child a user of its own")
def test_each_child_of_root_is_a_user_of_its_own(box):
    assert answer(box, "os.getuid()") != answer(box, "os.getuid()")
    assert answer(box, "(os.getuid(), os.getgid(), os.getgroups())", uid=4321) == (4321, 4321, [])


def test_a_child_can_name_its_standard_output(box):
    child = box.launch(spec("open('/dev/stdout', 'w').write('line')"))
    assert child.exit_code(20) == 0
    assert os.read(child.stdout_fd, 99) == b"line"
    child.close()


def test_devices_of_the_lease_are_there_and_no_others(box):
    listing = "sorted(os.listdir('/dev'))"
    assert "kmsg" not in answer(box, listing)
    assert "kmsg" in answer(box, listing, devices=(Path("/dev/kmsg"),))


def test_a_bind_is_read_only_unless_it_says_otherwise(box, tmp_path):
    tmp_path.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and os.geteuid() != 0:
            pytest.skip(f"{folder} is closed to other users")
    binds, _ = needs()
    writing = f"os.system('echo x > {tmp_path}/file 2>/dev/null')"
    assert answer(box, writing, binds=(*binds, Bind(tmp_path))) != 0
    assert answer(box, writing, binds=(*binds, Bind(tmp_path, writable=True))) == 0
    assert (tmp_path / "file").read_text() == "x\n"


def test_limits_are_set_before_the_program_starts(box):
    limits = Limits(processes=77, open_files=88, memory_bytes=1 << 30)
    names = "('NPROC', 'NOFILE', 'DATA', 'CORE')"
    found = answer(
        box,
        f"[resource.getrlimit(getattr(resource, 'RLIMIT_' + name)) for name in {names}]",
        limits=limits,
    )
    assert found == [(77, 77), (88, 88), (1 << 30, 1 << 30), (0, 0)]


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137), ("pass", 0)])
def test_an_exit_code_tells_how_a_child_ended(box, code, expected):
    child = box.launch(spec(code))
    assert child.exit_code(20) == expected
    wait_gone(child.pidfd)
    child.close()


def test_a_child_that_still_runs_has_no_exit_code(box):
    child = box.launch(spec("channel.recv(1)"))
    assert child.exit_code(0.01) is None
    child.close()


def test_killing_a_child_ends_everything_that_it_started(box):
    child = box.launch(
        spec("[os.fork() or os.setsid() for _ in range(3)]; channel.send(b'x'); __import__('time').sleep(60)")
    )
    for _ in range(8):
        child.socket.recv(1)
    child.kill()
    wait_gone(child.pidfd)
    assert child.socket.recv(1) == b""  # no process holds the other end
    assert child.exit_code(20) == 137
    child.kill()
    child.close()


def test_a_child_outlives_the_thread_that_asked_for_it(box):
    children = []
    thread = threading.Thread(target=lambda: children.append(box.launch(spec("channel.send(channel.recv(1))"))))
    thread.start()
    thread.join()
    children[0].socket.send(b"x")
    assert children[0].socket.recv(1) == b"x"
    children[0].close()


def test_a_child_does_not_outlive_the_nodes_process():
    node = (
        "import time; from fabric.agent.sandbox import Bubblewrap, ChildSpec\n"
        "child = Bubblewrap().launch(ChildSpec(argv=('/bin/sh', '-c', 'echo >&$0; sleep 60')))\n"
        "child.socket.recv(1); print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", node], stdout=subprocess.PIPE, text=True)
    pidfd = os.pidfd_open(int(process.stdout.readline()))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_gone(pidfd)
    os.close(pidfd)


def test_a_sandbox_that_cannot_be_set_up_says_why(box):
    with pytest.raises(SandboxError, match=r"the sandbox did not start: bwrap: Can't find source path /no/such"):
        box.launch(spec("pass", binds=(Bind(Path("/no/such")),)))


def test_a_failed_start_leaves_no_descriptor_behind(box):
    before = open_descriptors()
    with pytest.raises(SandboxError):
        box.launch(spec("pass", binds=(Bind(Path("/no/such")),)))
    box.launch(spec("pass")).close()
    assert open_descriptors() == before


def test_a_missing_program_names_its_package(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="`bwrap` is missing; install the package bubblewrap"):
        Bubblewrap()
