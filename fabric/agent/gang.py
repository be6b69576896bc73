"""What a rank of a gang finds in its environment. Pure."""

import zlib
from collections.abc import Sequence

from fabric.wire.link import Work

OWN_PORT = 29_500
"""Where rank 0 of a gang with a network of its own listens: all ports are free there."""
_FIRST_PORT, _PORTS = 20_000, 10_000


def rank_environment(work: Work, addresses: Sequence[str], *, shared: bool) -> dict[str, str]:
    """Names and values, the same for all ranks but for `FABRIC_RANK`.

    Args:
        work: with its gang.
        addresses: of the ranks' nodes.
        shared: whether the ranks use the nodes' own network. Then ports are shared with everything there, so each
            attempt of a run gets another one; and rank 0's peers are the nodes.
    """
    assert work.gang is not None
    port = OWN_PORT
    if shared:
        port = _FIRST_PORT + zlib.crc32(f"{work.run}/{work.attempt}".encode()) % _PORTS
    rank = {
        "FABRIC_RANK": str(work.gang.rank),
        "FABRIC_WORLD_SIZE": str(len(work.gang.nodes)),
        "FABRIC_ATTEMPT": str(work.attempt),
        "FABRIC_RENDEZVOUS_PORT": str(port),
    }
    return rank | {"FABRIC_PEERS": ",".join(addresses)} if shared else rank
