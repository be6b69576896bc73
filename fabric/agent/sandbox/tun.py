"""Makes a gang's interface `fab0` in a child's network: `python -P -m fabric.agent.sandbox.tun PID ADDRESS FD`.

A process of its own, because it joins the child's namespaces and never comes back. It sends the interface's descriptor
over the socket FD: whoever holds it is the other end of the wire. The child itself can make no interface.
"""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fabric.agent.sandbox.spec import SandboxError

NAME = b"fab0"
MTU = 65_000
DEVICE = Path("/dev/net/tun")

_MASK = "255.255.0.0"
_HELPER_S = 20
_NEW_USER, _NEW_NET = 0x1000_0000, 0x4000_0000
_GET_OWNER = 0xB701  # NS_GET_USERNS
_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_TUN, _NO_HEADER = 0x0001, 0x1000
_SET_ADDRESS, _SET_MASK, _SET_MTU, _GET_FLAGS, _SET_FLAGS, _UP = 0x8916, 0x891C, 0x8922, 0x8913, 0x8914, 1


def open_wire(pid: int, address: str) -> int:
    """The outer end of a new `fab0` in the network of process `pid`, which has this IPv4 address there.

    Raises:
        SandboxError: it cannot be made; says what to do.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = [sys.executable, "-P", "-m", "fabric.agent.sandbox.tun", str(pid), address, str(theirs.fileno())]
        done = subprocess.run(argv, pass_fds=(theirs.fileno(),), capture_output=True, timeout=_HELPER_S, check=False)
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it died"]
            raise SandboxError(f"no network for a gang: {why[0]}; {DEVICE} must be there and usable by this user")
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        return fds[0]


def main(argv: Sequence[str]) -> None:
    pid, address, fd = int(argv[0]), argv[1], int(argv[2])
    _join_network(pid)
    wire = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(wire, _SET_INTERFACE, struct.pack("16sH22x", NAME, _TUN | _NO_HEADER))
    with socket.socket() as control:
        for request, text in ((_SET_ADDRESS, address), (_SET_MASK, _MASK)):
            fcntl.ioctl(control, request, struct.pack("16sHH4s8x", NAME, socket.AF_INET, 0, socket.inet_aton(text)))
        fcntl.ioctl(control, _SET_MTU, struct.pack("16si20x", NAME, MTU))
        flags = struct.unpack("16sH22x", fcntl.ioctl(control, _GET_FLAGS, struct.pack("16sH22x", NAME, 0)))[1]
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH22x", NAME, flags | _UP))
    with socket.socket(fileno=fd) as target:
        socket.send_fds(target, [b"w"], [wire])


def _join_network(pid: int) -> None:
    """Enter the network namespace of a process, and first the user namespace that owns it where that is another one."""
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    owner = fcntl.ioctl(network, _GET_OWNER)
    if os.fstat(owner).st_ino != Path("/proc/self/ns/user").stat().st_ino:
        _enter(owner, _NEW_USER)
    _enter(network, _NEW_NET)


def _enter(fd: int, kind: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, kind):
        raise OSError(ctypes.get_errno(), "the child's namespace cannot be joined")


if __name__ == "__main__":
    main(sys.argv[1:])
