import os
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.operator.listeners import Listener, outside, parse_listeners, reachable_at

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(local: str, state: str = "0A", inode: int = 7) -> str:
    return (
        f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0 100\n"
    )


def test_addresses_are_read_in_the_kernels_byte_order():
    (found,) = parse_listeners(HEAD + line("0B67B20A:18EB"), {7: "gcs_server"})
    assert found == Listener(ip_address("10.178.103.11"), 6379, 7, "gcs_server")


def test_an_ipv4_address_inside_ipv6_is_the_ipv4_address():
    (found,) = parse_listeners(HEAD + line("0000000000000000FFFF00000100007F:2711"), {})
    assert found.address == ip_address("127.0.0.1")


def test_sockets_that_do_not_listen_are_not_listeners():
    assert parse_listeners(HEAD + line("0100007F:0016", state="01"), {}) == []


def test_a_line_cut_off_while_reading_is_skipped():
    assert parse_listeners(HEAD + "   0: 0100007F:0016 0000", {}) == []


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_real_listening_socket_is_found_in_proc(family):
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    table = "/proc/net/tcp" if family == socket.AF_INET else "/proc/net/tcp6"
    with socket.create_server((host, 0), family=family) as server:
        inode = os.fstat(server.fileno()).st_ino
        found = parse_listeners(Path(table).read_text(), {inode: "me"})
        assert Listener(ip_address(host), server.getsockname()[1], inode, "me") in found


def test_a_socket_on_all_addresses_answers_at_each_address_of_its_family():
    own = [ip_address("10.0.0.1"), ip_address("203.0.113.5"), ip_address("2001:db8::1")]
    assert reachable_at(Listener(ip_address("0.0.0.0"), 1, 1), own) == own[:2]
    assert reachable_at(Listener(ip_address("::"), 1, 1), own) == own
    assert reachable_at(Listener(ip_address("10.0.0.1"), 1, 1), own) == own[:1]


@pytest.mark.parametrize(
    "private", ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.9", "::1", "fd00::1"]
)
def test_private_addresses_are_inside(private):
    assert outside([ip_address(private)], []) == []


@pytest.mark.parametrize("public", ["203.0.113.5", "172.32.0.1", "100.128.0.1", "2001:db8::1"])
def test_public_addresses_are_outside_until_allowed(public):
    address = ip_address(public)
    assert outside([address], []) == [address]
    assert outside([address], ["10.0.0.0/8"]) == [address]
    assert outside([address], [public]) == []


@given(st.ip_addresses(), st.integers(0, 32))
def test_an_address_is_inside_every_network_that_contains_it(address, prefix):
    assert outside([address], [f"{address}/{prefix}"]) == []
