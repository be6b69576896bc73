"""Listening TCP sockets as Linux tells them in `/proc/net/tcp` and `/proc/net/tcp6`; parses text, reads nothing.

The kernel prints an address as 32-bit words in the machine's byte order (little-endian on everything we run on).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address

_LISTEN = "0A"
_PRIVATE = tuple(
    ip_network(net)
    for net in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",  # carrier-grade NAT, also what overlay networks such as Tailscale use (RFC 6598)
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that accepts connections. `process` is what holds it, empty when that is not ours to see."""

    address: Address
    port: int
    inode: int
    process: str = ""


def parse_listeners(text: str, owners: Mapping[int, str]) -> list[Listener]:
    """The listening sockets of one `/proc/net/tcp*` file; `owners` maps a socket's inode to its process.

    Lines that are not in the kernel's format are skipped: the file is read while sockets come and go.
    """
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        host, _, port = fields[1].partition(":")
        inode = int(fields[9])
        found.append(Listener(_address(host), int(port, 16), inode, owners.get(inode, "")))
    return found


def reachable_at(listener: Listener, host_addresses: Iterable[Address]) -> list[Address]:
    """The addresses of this host at which the socket answers: its own, or all of them when it is bound to all.

    A socket on `::` answers IPv4 as well.
    """
    if not listener.address.is_unspecified:
        return [_plain(listener.address)]
    both = isinstance(listener.address, IPv6Address)
    return [address for address in host_addresses if both or isinstance(address, IPv4Address)]


def outside(addresses: Iterable[Address], allow: Iterable[str]) -> list[Address]:
    """Those that are neither private nor in `allow` (addresses or networks in CIDR form).

    Raises:
        ValueError: an entry of `allow` is not an address or a network.
    """
    networks = (*_PRIVATE, *(ip_network(entry, strict=False) for entry in allow))
    return [address for address in addresses if not any(_inside(address, net) for net in networks)]


def _inside(address: Address, network: IPv4Network | IPv6Network) -> bool:
    return address.version == network.version and address in network


def _address(hexadecimal: str) -> Address:
    raw = bytes.fromhex(hexadecimal)
    words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
    return _plain(ip_address(b"".join(words)))


def _plain(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
