"""A customer with packages, secrets and an open network who tries to get further: the same attempts with and without.

They run in a real lease on a real node, beside the lease of another customer.
"""

import json
import os
import shutil
import socket
import sys
import textwrap
import threading
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from wheels import wheel

from fabric.agent.envs import EnvOptions
from fabric.client.baggage import Baggage, Carrying
from fabric.client.command import run_command

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="the program bwrap is missing: install bubblewrap"),
]

BURGLAR = textwrap.dedent(
    '''
    import json, os, re, socket, sys
    from pathlib import Path

    TOWN = json.loads(os.environ["TOWN"])

    def dial(host, port, text=None):
        """What a service says: by the way to the network where there is one, else directly."""
        way = os.environ.get("http_proxy")
        where = ("127.0.0.1", int(way.rpartition(":")[2])) if way else (host.strip("[]"), port)
        with socket.create_connection(where, timeout=5) as connection:
            if way:
                connection.sendall(text or f"CONNECT {host}:{port} HTTP/1.1\\r\\n\\r\\n".encode())
            connection.settimeout(5)
            said = b""
            while piece := connection.recv(4096):
                said += piece
        return b"the node's own service" in said

    def reach_the_nodes_loopback(): return dial("127.0.0.1", TOWN["port"])
    def reach_it_by_name(): return dial("localhost", TOWN["port"])
    def reach_it_by_a_short_address(): return dial("127.1", TOWN["port"])
    def reach_it_by_a_number(): return dial("2130706433", TOWN["port"])
    def reach_it_mapped_into_ipv6(): return dial("[::ffff:127.0.0.1]", TOWN["port"])
    def reach_it_by_any_address(): return dial("0.0.0.0", TOWN["port"])
    def reach_the_nodes_own_address(): return dial(TOWN["address"], TOWN["port"])
    def reach_it_by_a_plain_request():
        request = f"GET http://127.0.0.1:{TOWN['port']}/ HTTP/1.1\\r\\nHost: pypi.org\\r\\n\\r\\n"
        return dial("127.0.0.1", TOWN["port"], request.encode())
    def reach_it_behind_a_listed_name():
        request = f"CONNECT pypi.org@127.0.0.1:{TOWN['port']} HTTP/1.1\\r\\n\\r\\n"
        return dial("127.0.0.1", TOWN["port"], request.encode())
    def change_the_own_packages():
        import greet
        Path(greet.__file__).write_text("WORD = 'changed'")
        return True
    def add_to_the_own_packages():
        import greet
        (Path(greet.__file__).parent / "sitecustomize.py").write_text("")
        return True
    def see_the_packages_of_others(): return os.path.exists(TOWN["other_env"])
    def list_the_environments(): return len(os.listdir(TOWN["envs"])) > 1
    def see_the_sockets_of_others(): return len(os.listdir(TOWN["sockets"])) > 1
    def make_an_interface(): return os.open("/dev/net/tun", os.O_RDWR) >= 0
    def listen_on_the_wire(): return socket.socket(17, socket.SOCK_RAW, 0x300).fileno() >= 0
    def find_the_secret_of_the_run_before():
        places = [Path(f"/proc/{pid}/environ") for pid in os.listdir("/proc") if pid.isdigit()]
        return any(b"first-run" in place.read_bytes() for place in places if os.access(place, os.R_OK))

    found = {}
    for name, attempt in [(n, f) for n, f in globals().items() if re.match("[a-z]+_", n) and callable(f)]:
        try:
            found[name] = bool(attempt())
        except Exception as error:
            found[name] = False
    print("FOUND" + json.dumps(found))
    '''
)


@pytest.fixture
def service():
    """Something on the node that listens at all its addresses, as Ray does."""
    with socket.create_server(("", 0)) as server:

        def answer():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.sendall(b"the node's own service")

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def an_address() -> str:
    """Of this machine, other than loopback if it has one."""
    with suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return "127.0.0.1"


@pytest.fixture
async def burgle(make_site, tmp_path, service):
    started = []

    async def run(isolation):
        folder = tmp_path / "wheels"
        folder.mkdir()
        wheel(folder, "greet", {"greet.py": "WORD = 'hello'"})
        wheel(folder, "other", {"other.py": ""})
        site = make_site(
            isolation=isolation, envs=EnvOptions(find_links=str(folder)), networks=("open", "hosts", "gang")
        )
        await site.start()
        started.append(site)
        means = site.node._means
        neighbour = {"python": "", "pip": ["other"]}
        other = await site.leased("lease_2", run="run_2", gpus=[[site.gpus[1], 1000]], env=neighbour, network="open")
        other.call(other.function(lambda: 1), run="run_2")
        await other.outcomes(1)
        (other_env,) = means.envs._root.iterdir()
        mine = await site.leased(env={"python": "", "pip": ["greet"]}, network="open")
        program = mine.function(Carrying(run_command))
        mine.call(program, Baggage({"SECRET": "first-run"}), ("true",))
        await mine.outcomes(1)
        town = {
            "port": service,
            "address": an_address(),
            "envs": str(means.envs._root),
            "other_env": str(other_env),
            "sockets": str(means.sockets),
        }
        mine.call(program, Baggage({"TOWN": json.dumps(town)}), (["python", "-c", BURGLAR],), task=1)
        assert await mine.outcomes(1) == {1: 0}
        lines = [line[2] for header, _ in mine.frames if header[0] == "log" for line in header[3]]
        return json.loads(next(line for line in lines if line.startswith("FOUND")).removeprefix("FOUND"))

    yield run
    for site in started:
        await site.stop()


async def test_with_bubblewrap_none_of_it_works(burgle):
    found = await burgle("bubblewrap")
    assert [name for name, out in found.items() if out] == []
    assert len(found) == 17
    told = (Path(__file__).parents[4] / "docs" / "sandbox.md").read_text()
    assert [name for name in found if f"| {name.replace('_', ' ')} |" not in told] == []


async def test_without_a_sandbox_much_of_it_works(burgle):
    found = await burgle("none")
    out = {name for name, got in found.items() if got}
    assert {
        "reach_the_nodes_loopback",
        "reach_it_by_name",
        "see_the_packages_of_others",
        "list_the_environments",
    } <= out
    if os.geteuid() == 0:
        assert "change_the_own_packages" in out
