"""The node around a burglar: an actor with secrets, another lease, and one child that tries to reach them.

``town.py none | bubblewrap`` prints, as JSON, what each attempt of the burglar came to.
"""

import contextlib
import ctypes
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from fabric.agent.sandbox import Bind, Bubblewrap, ChildSpec, Limits, Plain
from fabric.agent.sandbox.interpreter import needs

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
LIMITS = Limits(processes=64, memory_bytes=512 * MIB, tmp_bytes=8 * MIB, shm_bytes=8 * MIB, open_files=256)
NEIGHBOUR = """
import socket, sys
channel = socket.socket(fileno=int(sys.argv[-1]))
for path in channel.recv(4096).decode().split():
    open(path, "w").write("the neighbour's")
channel.send(b"written")
channel.recv(1)
for path in sys.argv[1:-1]:
    __import__("os").unlink(path)
"""


def actor():
    """The node's own process: holds a key, a token, open ports; answers each connection with a secret."""
    folder = Path(sys.argv[2])
    (folder / "key").write_text("the agent's key")
    (folder / "key").chmod(0o600)
    secret = ctypes.create_string_buffer(b"actor's memory!!")
    libc = ctypes.CDLL(None, use_errno=True)
    shm_key = secrets.randbits(30)
    segment = libc.shmget(shm_key, 4096, 0o1666)
    abstract_name = f"fabric-{secrets.token_hex(8)}"
    listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    listeners[1].bind("\0" + abstract_name)
    listeners[2].bind(str(folder / "socket"))
    for listener in listeners:
        listener.listen()
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
    found = {
        "actor_pid": os.getpid(),
        "marker": sys.argv[2],
        "key_file": str(folder / "key"),
        "key_fd": os.open(folder / "key", os.O_RDONLY),
        "secret_address": ctypes.addressof(secret),
        "tcp_port": listeners[0].getsockname()[1],
        "abstract_name": abstract_name,
        "socket_path": str(folder / "socket"),
        "shm_key": shm_key,
    }
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    libc.shmctl(segment, 0, None)


def answer(listener):
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError):
            connection.send(b"the actor's")
        connection.close()


def child(isolation, script, *arguments, read_only):
    binds, env = needs()
    argv = (sys.executable, "-P", *script, *arguments)
    return isolation.launch(ChildSpec(argv=argv, binds=(*binds, Bind(HERE), Bind(read_only)), env=env, limits=LIMITS))


def burgle(isolation):
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as read_only:
        Path(read_only).chmod(0o777)  # so that only the bind stands in the way
        token = secrets.token_hex(16)
        victim = subprocess.Popen(
            [sys.executable, "-P", __file__, "actor", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "RAY_AUTH_TOKEN": token},
        )
        town = json.loads(victim.stdout.readline())
        files = [f"{folder}/lease-{secrets.token_hex(8)}" for folder in ("/tmp", "/dev/shm")]
        neighbour = child(isolation, ("-c", NEIGHBOUR), *files, read_only=Path(read_only))
        neighbour.socket.send(" ".join(files).encode())
        assert neighbour.socket.recv(99) == b"written"
        town |= {"token": token, "read_only_bind": read_only, "home": os.environ.get("HOME", "/root")}
        town |= {"neighbours_tmp_file": files[0], "neighbours_shm_file": files[1]}
        town |= {name: getattr(LIMITS, name) for name in LIMITS.__slots__}
        burglar = child(isolation, (str(HERE / "burglar.py"),), read_only=Path(read_only))
        burglar.socket.sendall(json.dumps(town).encode())
        outcome = b"".join(iter(lambda: burglar.socket.recv(1 << 16), b""))
        said = os.read(burglar.stderr_fd, 9999).decode() if not outcome else ""
        burglar.close()
        neighbour.socket.send(b"x")
        neighbour.exit_code(10)
        neighbour.close()
        victim.communicate()
    isolation.close()
    return json.loads(outcome) if outcome else said


if __name__ == "__main__":
    if sys.argv[1] == "actor":
        actor()
    else:
        sys.stdout.write(json.dumps(burgle({"none": Plain, "bubblewrap": Bubblewrap}[sys.argv[1]]())))
