"""Hosts made of namespaces: each with its own network, processes, disk for /home, /tmp, /root and /run, and sshd.

They hang on one bridge of ours and see this machine's Python read-only. Everything is removed again, whatever happened.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
USER = "gpus"
UID = 2001


@dataclass
class Hosts:
    """The hosts by index, 1 to 9. Host `i` has the address `10.78.N.1i`; the machine that tests run on has `.1`."""

    base: Path
    name: str
    subnet: str
    running: dict[int, subprocess.Popen] = field(default_factory=dict)

    def address(self, index: int) -> str:
        return f"{self.subnet}.1{index}"

    @property
    def ssh_key(self) -> Path:
        return self.base / "keys" / "user"

    def lay_cable(self) -> None:
        (self.base / "keys").mkdir()
        for key in ("user", "host"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.base / "keys" / key]
            subprocess.run(command, check=True)
        for command in (
            f"link add {self.name} type bridge",
            f"address add {self.subnet}.1/24 dev {self.name}",
            f"link set {self.name} up",
        ):
            _ip(command)

    def start(self, index: int, bashrc: str = "") -> None:
        """Power host `index` on; its disk is kept from before when there is one."""
        disk, netns = self.base / f"h{index}", f"{self.name}h{index}"
        if not disk.exists():
            self._format(disk, bashrc)
        for command in (
            f"netns add {netns}",
            f"link add {self.name}v{index} type veth peer name eth0 netns {netns}",
            f"link set {self.name}v{index} master {self.name} up",
            f"-n {netns} address add {self.address(index)}/24 dev eth0",
            f"-n {netns} link set eth0 address 02:00:00:00:00:{index:02x}",  # the same after a power cut
            f"-n {netns} link set eth0 up",
            f"-n {netns} link set lo up",
        ):
            _ip(command)
        spaces = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--uts", "--ipc", "--mount-proc"]
        with (disk / "console.log").open("ab") as console:
            self.running[index] = subprocess.Popen(
                ["ip", "netns", "exec", netns, *spaces, "bash", disk / "boot.sh"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        _until(lambda: _answers(self.address(index)), f"sshd of host {index}", 15)

    def cut_power(self, index: int) -> None:
        """Every process of the host dies at once and its link goes away; the disk stays."""
        process = self.running.pop(index)
        process.kill()
        process.wait()
        _until(lambda: not _is_inhabited(f"{self.name}h{index}"), f"the end of host {index}", 15)
        subprocess.run(["ip", "link", "delete", f"{self.name}v{index}"], check=False, stderr=subprocess.DEVNULL)
        _ip(f"netns delete {self.name}h{index}")

    def expose(self, index: int, address: str) -> None:
        """Give the host one more address."""
        _ip(f"-n {self.name}h{index} address add {address}/32 dev lo")

    def ssh(self, index: int, command: str) -> subprocess.CompletedProcess:
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        words = [word for option in options for word in ("-o", option)]
        ssh = ["ssh", "-n", "-i", str(self.ssh_key), *words, f"{USER}@{self.address(index)}", command]
        return subprocess.run(ssh, capture_output=True, text=True, timeout=60, check=False)

    def processes(self, index: int) -> str:
        """Processes of the cluster's account on that host, one line each."""
        seen = subprocess.run(
            ["ip", "netns", "pids", f"{self.name}h{index}"], capture_output=True, text=True, check=True
        )
        lines = []
        for pid in seen.stdout.split():
            try:
                if Path(f"/proc/{pid}").stat().st_uid == UID:
                    lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return "\n".join(line for line in lines if line and "sshd" not in line)

    def remove(self) -> None:
        for index in list(self.running):
            self.cut_power(index)
        subprocess.run(["ip", "link", "delete", self.name], check=False)
        shutil.rmtree(self.base)

    def _format(self, disk: Path, bashrc: str) -> None:
        home = disk / "home" / USER
        for folder in ("tmp", "home", "root", "run/sshd", "etc"):
            (disk / folder).mkdir(parents=True)
        (disk / "tmp").chmod(0o1777)
        (home / ".ssh").mkdir(parents=True)
        shutil.copy(self.base / "keys" / "user.pub", home / ".ssh" / "authorized_keys")
        (home / ".bashrc").write_text(bashrc)
        for path in (home, *home.rglob("*")):
            os.chown(path, UID, UID)
        (home / ".ssh").chmod(0o700)
        for table, line in (
            ("passwd", f"{USER}:x:{UID}:{UID}::/home/{USER}:/bin/bash\n"),
            ("group", f"{USER}:x:{UID}:\n"),
            ("shadow", f"{USER}:*:19000:0:99999:7:::\n"),
        ):
            (disk / "etc" / table).write_text(Path("/etc", table).read_text() + line)
        (disk / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
        shutil.copy(self.base / "keys" / "host", disk / "run" / "host_key")
        (disk / "run" / "host_key").chmod(0o600)
        (disk / "run" / "sshd_config").write_text(_SSHD)
        (disk / "boot.sh").write_text(_boot_script(disk))


_SSHD = """Port 22
HostKey /run/host_key
UsePAM no
PasswordAuthentication no
PermitRootLogin no
PidFile /run/sshd.pid
MaxStartups 100
"""


def _boot_script(disk: Path) -> str:
    shared = sorted({str(ROOT), sys.prefix, sys.base_prefix})
    lines = ["set -e", "mount --make-rprivate /"]
    for folder in shared:
        lines += [f"mkdir -p {disk}/run/shared{folder}", f"mount --bind {folder} {disk}/run/shared{folder}"]
    lines += [f"mount --bind {disk}/etc/{table} /etc/{table}" for table in ("passwd", "group", "shadow", "hosts")]
    lines += [f"mount --rbind {disk}/{folder} /{folder}" for folder in ("run", "home", "root", "tmp")]
    lines += ["mount -t tmpfs -o size=600m,mode=1777 shm /dev/shm"]
    for folder in shared:
        lines += [f"mkdir -p {folder}", f"mount --bind /run/shared{folder} {folder}"]
        lines += [f"mount -o remount,bind,ro {folder}"]
    return "\n".join([*lines, "exec /usr/sbin/sshd -D -f /run/sshd_config -E /run/sshd.log", ""])


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def _answers(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1):
            return True
    except OSError:
        return False


def _is_inhabited(netns: str) -> bool:
    return bool(subprocess.run(["ip", "netns", "pids", netns], capture_output=True, check=False).stdout.strip())


def _until(true, what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.1)


def _lacking() -> str:
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    programs = [
        name for name in ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare", "cc") if not shutil.which(name)
    ]
    return f"needs the programs {', '.join(programs)}" if programs else ""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """A bridge on which hosts can be started; skipped where the machine cannot make namespaces."""
    lacking = _lacking()
    if lacking:
        pytest.skip(lacking)
    base = Path(tempfile.mkdtemp(prefix="fabric-hosts-", dir="/var/tmp"))
    base.chmod(0o755)
    made = Hosts(base, f"fab{secrets.token_hex(2)}", f"10.78.{secrets.randbelow(250) + 1}")
    try:
        made.lay_cable()
        yield made
    finally:
        made.remove()
