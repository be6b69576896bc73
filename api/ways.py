"""How customers reach a cluster's gateway: its address and certificate, the relay that leads there. Only rows."""

from dataclasses import dataclass

from sqlmodel import Session

from api.gateway_tables import GatewayRow
from api.tables import ClusterRow
from fabric.wire.channel import RELAY_PATH


@dataclass(frozen=True, slots=True)
class Way:
    """`gateway` is "" where only the relay leads there, `relay` is "" while the agent is not connected.

    `relay` is a URL, or a path on the very control plane that answers.
    """

    gateway: str
    fingerprint: str
    relay: str

    def ping(self, cluster: str) -> str:
        """Where the relay answers pings as if the gateway did."""
        return f"{self.relay}/{cluster}/ping" if self.relay else ""


def write_gateway(session: Session, cluster: str, fingerprint: str, plane: str) -> None:
    """The agent that has just come is connected to this control plane."""
    row = session.get(GatewayRow, cluster) or GatewayRow(cluster=cluster, fingerprint="", plane="")
    row.fingerprint, row.plane = fingerprint, plane
    session.add(row)


def way_to(session: Session, cluster: ClusterRow) -> Way:
    row = session.get(GatewayRow, cluster.id) or GatewayRow(cluster=cluster.id, fingerprint="", plane="")
    return Way(cluster.gateway, row.fingerprint, f"{row.plane}{RELAY_PATH}" if cluster.connected else "")
