"""The way to the network: what a run listed and the operator allows, and nothing else, whatever a name resolves to."""

import asyncio
import ipaddress
import socket
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fabric.agent.sandbox.proxy import Allowed, Proxy, own_addresses
from fabric.wire.surroundings import HOSTS, OPEN

HOME = ("127.0.0.0/8",)
"""A network that an operator opened; the tests' own servers lie in it."""


@pytest.fixture
async def server():
    """An HTTP server at 127.0.0.2; its port, and the requests it saw."""
    seen = []

    async def on_client(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(on_client, "127.0.0.2", 0)
    yield listening.sockets[0].getsockname()[1], seen
    listening.close()


@pytest.fixture
def own_sockets(monkeypatch):
    """A folder for a node's sockets, short enough for them; in the usual one are those of other tests' agents."""
    with tempfile.TemporaryDirectory(prefix="fab") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
async def ask(tmp_path):
    """Send bytes through a proxy with these rights and read to the end."""
    running = []

    async def send(allowed, data, own=None):
        proxy = Proxy(tmp_path / f"{len(running)}", allowed, own)
        await proxy.start()
        running.append(proxy)
        reader, writer = await asyncio.open_unix_connection(proxy.path)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    yield send
    for proxy in running:
        await proxy.stop()


def connect(host, port):
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def test_a_listed_host_that_the_operator_allows_is_reached_by_tunnel_and_by_request(ask, server):
    port, seen = server
    allowed = Allowed(HOSTS, (f"127.0.0.2:{port}",), HOME)
    tunnelled = await ask(allowed, connect("127.0.0.2", port) + b"GET /t HTTP/1.1\r\n\r\n")
    assert tunnelled.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
    head = f"GET http://127.0.0.2:{port}/a?b HTTP/1.1\r\nHost: x\r\nProxy-Authorization: no\r\n\r\n"
    assert (await ask(allowed, head.encode())).endswith(b"hello")
    assert seen == [b"GET /t HTTP/1.1\r\n\r\n", b"GET /a?b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]


@pytest.mark.parametrize(
    "allowed",
    [
        Allowed(OPEN, (), HOME),
        Allowed(OPEN),
        Allowed(HOSTS, ("127.0.0.2:{port}",)),
        Allowed(HOSTS, ("127.0.0.2",), HOME),
        Allowed(HOSTS, ("pypi.org",), HOME),
    ],
    ids=["open-private", "open", "not-opened-by-the-operator", "another-port", "another-host"],
)
async def test_a_private_address_needs_both_the_runs_list_and_the_operators_word(ask, server, allowed):
    port, seen = server
    allowed = Allowed(allowed.network, tuple(one.format(port=port) for one in allowed.hosts), allowed.private)
    answer = await ask(allowed, connect("127.0.0.2", port))
    assert answer.startswith(b"HTTP/1.1 403 Forbidden")
    assert b"fabric: " in answer
    assert not seen


async def test_a_name_that_resolves_to_a_private_address_is_refused(ask, server):
    port, seen = server
    answer = await ask(Allowed(OPEN), connect("localhost", port))
    assert b"localhost has no public address" in answer
    assert not seen


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"),
        *("2002:a00:1::", "fd00:ec2::254"),
    ],
)
def test_what_is_not_public_is_closed_to_every_run(address):
    for allowed in (Allowed(OPEN), Allowed(HOSTS, (address,)), Allowed(OPEN, (), ("0.0.0.0/0", "::/0"))):
        assert not allowed.permits(ipaddress.ip_address(address), frozenset())


def test_a_public_address_is_open_unless_it_is_the_nodes_own():
    allowed = Allowed(OPEN)
    assert allowed.permits(ipaddress.ip_address("1.1.1.1"), frozenset())
    assert not allowed.permits(ipaddress.ip_address("1.1.1.1"), frozenset({"1.1.1.1"}))
    assert "127.0.0.1" in own_addresses()


@pytest.mark.parametrize(
    ("entry", "host", "port", "listed"),
    [
        ("pypi.org", "pypi.org", 443, True),
        ("pypi.org", "pypi.org", 80, True),
        ("pypi.org", "pypi.org", 22, False),
        ("pypi.org:22", "pypi.org", 22, True),
        ("pypi.org:22", "pypi.org", 443, False),
        ("*.pypi.org", "a.b.pypi.org", 443, True),
        ("*.pypi.org", "pypi.org", 443, False),
        ("*.pypi.org", "evilpypi.org", 443, False),
        ("pypi.org", "pypi.org.evil.com", 443, False),
    ],
)
def test_a_host_is_listed_by_name_and_port(entry, host, port, listed):
    assert Allowed(HOSTS, (entry,)).lists(host, port) is listed


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET ftp://x/ HTTP/1.1\r\n\r\n",
        b"CONNECT pypi.org HTTP/1.1\r\n\r\n",
        b"CONNECT pypi.org:https HTTP/1.1\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        b"CONNECT a b c HTTP/1.1\r\n\r\n",
        b"x" * (64 << 10),
    ],
)
async def test_noise_is_refused_or_dropped(ask, data):
    answer = await ask(Allowed(OPEN), data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 403")


async def test_what_does_not_answer_is_a_bad_gateway(ask):
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    answer = await ask(Allowed(HOSTS, (f"127.0.0.2:{port}",), HOME), connect("127.0.0.2", port))
    assert answer.startswith(b"HTTP/1.1 502")


@pytest.mark.sandbox
async def test_a_child_reaches_what_its_run_lists_and_a_child_without_network_nothing(make_site, server, own_sockets):
    def fetch(url):
        """In the child: status and text, or what stood in the way."""
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    port, seen = server
    site = make_site(isolation="bubblewrap", networks=("hosts", "open"), private_networks=HOME)
    await site.start()
    try:
        listed = await site.leased(network="hosts", hosts=[f"127.0.0.2:{port}"])
        listed.calls(listed.function(fetch), [(0, (f"http://127.0.0.2:{port}/",)), (1, (f"http://127.0.0.3:{port}/",))])
        found = await listed.outcomes(2)
        assert found[0] == (200, "hello")
        assert found[1][0] == 403
        bare = await site.leased("lease_2", run="run_2", gpus=[[site.gpus[1], 1000]])
        bare.call(bare.function(fetch), f"http://127.0.0.2:{port}/", run="run_2")
        assert (await bare.outcomes(1))[0][0] == 0
        assert len(seen) == 1
        assert {"network:hosts", "network:open"} <= set(site.hello["info"]["capabilities"])
    finally:
        await site.stop()
    assert site.node._means.sockets.is_relative_to(own_sockets)
    assert not list(site.node._means.sockets.glob("[0-9a-f]" * 24))
