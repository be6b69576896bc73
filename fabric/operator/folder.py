"""The operator's folder on their own machine: `cluster.yaml`, the keys, and the scripts that are mounted on the hosts.

    cluster.yaml      the one file to edit
    session.key       the agent's Ed25519 seed in hex; acts for the operator as the delegation says
    delegation.json   what the wallet signed about that key
    ray.token         the cluster's Ray token
    host/, wheels/    scripts for the hosts; wheels to install there, if any

Keys are written with mode 0600 and never over existing ones.
"""

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nacl.signing import SigningKey

from fabric.operator.cluster_file import ClusterFile, read_cluster_file
from fabric.wire.delegation import Delegation, SignedDelegation

_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class OperatorFolder:
    """The files by name; nothing is read or written until asked."""

    path: Path

    @property
    def cluster_file(self) -> Path:
        return self.path / "cluster.yaml"

    @property
    def session_key_file(self) -> Path:
        return self.path / "session.key"

    @property
    def delegation_file(self) -> Path:
        return self.path / "delegation.json"

    @property
    def ray_token_file(self) -> Path:
        return self.path / "ray.token"

    def secrets(self) -> tuple[Path, ...]:
        """The files that are their owner's alone."""
        return (self.session_key_file, self.ray_token_file, self.delegation_file)

    def cluster(self) -> ClusterFile:
        """The cluster file, read.

        Raises:
            ClusterFileError: it is missing or wrong.
        """
        return read_cluster_file(self.cluster_file)

    def session_key(self) -> SigningKey:
        """The agent's key; made on first use."""
        if not self.session_key_file.exists():
            write_private(self.session_key_file, bytes(SigningKey.generate()).hex())
        return SigningKey(bytes.fromhex(self.session_key_file.read_text(encoding="ascii").strip()))

    def delegation(self) -> Delegation:
        """What the wallet signed last."""
        return SignedDelegation.from_json(json.loads(self.delegation_file.read_text(encoding="utf-8"))).delegation

    def write_delegation(self, signed: SignedDelegation) -> None:
        """Keep the newest delegation beside the key; an older one is replaced."""
        fresh = self.delegation_file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        write_private(fresh, json.dumps(signed.to_json(), indent=2))
        fresh.replace(self.delegation_file)

    def lay_out(self) -> None:
        """Make the folder, the Ray token (once) and the scripts (anew, so that an upgrade brings its own)."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / "wheels").mkdir(exist_ok=True)
        if not self.ray_token_file.exists():
            write_private(self.ray_token_file, secrets.token_hex(_TOKEN_BYTES))
        with resources.as_file(resources.files("fabric.operator") / "host") as shipped:
            shutil.copytree(shipped, self.path / "host", dirs_exist_ok=True)
        for script in ("run", "install.sh", "bin/ray"):
            (self.path / "host" / script).chmod(0o755)


def write_private(path: Path, text: str) -> None:
    """A new file that its owner alone can read, from its first moment on.

    Raises:
        FileExistsError: there is one already.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
