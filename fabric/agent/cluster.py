"""The operator's cluster as the agent needs it: where its nodes' processes are. Ray is one way (`executor`)."""

from dataclasses import dataclass
from typing import Protocol


class ClusterError(RuntimeError):
    """The cluster cannot be used as it is; says what to change."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node's process: its name in the fabric and the address to connect to (`unix:…` or `tcp:…`)."""

    node: str
    address: str


class Cluster(Protocol):
    """Starts and finds node processes. All calls may block and are made from a thread of their own, one at a time."""

    def connect(self) -> None:
        """Raises ClusterError when there is no such cluster or it is not safe."""
        ...

    def sites(self) -> list[Site]:
        """The processes of all nodes that are alive and offer GPUs; those that are missing are started."""
        ...

    def stop(self) -> None:
        """End the node processes and let go of the cluster."""
        ...
