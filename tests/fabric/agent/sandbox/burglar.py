"""A program that tries to get out: each attempt returns what it got hold of, or None, or raises.

It runs as the child of a sandbox, with the number of its socket as last argument. Over the socket comes a map of the
town (what lies where on the node, as JSON); back goes, for each attempt, what it got or why not.
"""

# ruff: noqa: BLE001, PTH108, PTH123, PTH208

import ctypes
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
import sys
import time
from pathlib import Path

from fabric.agent.sandbox.seccomp import refused

LIBC = ctypes.CDLL(None, use_errno=True)
CALLS = refused(platform.machine())
CLONE = {"x86_64": (56, 435), "aarch64": (220, 435)}[platform.machine()]
NEW_USER, NEW_NET, NEW_NS = 0x10000000, 0x40000000, 0x20000
ATTEMPTS = []


def attempt(function):
    ATTEMPTS.append(function)
    return function


def call(name_or_number, *arguments):
    """A system call; raises OSError as Python's own do."""
    number = CALLS[name_or_number] if isinstance(name_or_number, str) else name_or_number
    words = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)  # a bare int would fill half a register
    result = LIBC.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def privileged(*arguments, passed):
    """Whether the call got beyond the check of privileges: it worked, or failed only for its nonsense arguments."""
    try:
        return f"returned {call(*arguments)}"
    except OSError as error:
        if error.errno in passed:
            return f"was let through to {error}"
        raise


@attempt
def read_the_agents_key(town):
    return Path(town["key_file"]).read_text()


@attempt
def list_the_agents_folder(town):
    return os.listdir(Path(town["key_file"]).parent)


@attempt
def reach_files_through_the_actors_root(town):
    return Path(f"/proc/{town['actor_pid']}/root{town['key_file']}").read_text()


@attempt
def reach_files_through_an_open_descriptor(town):
    return Path(f"/proc/{town['actor_pid']}/fd/{town['key_fd']}").read_text()


@attempt
def find_the_token_in_the_own_environment(town):
    return [name for name, value in os.environ.items() if town["token"] in value]


@attempt
def read_the_actors_environment(town):
    text = Path(f"/proc/{town['actor_pid']}/environ").read_text()
    return text if town["token"] in text else None


@attempt
def read_the_first_process_environment(town):
    return Path("/proc/1/environ").read_text()


@attempt
def see_the_actor_in_the_process_list(town):
    for folder in Path("/proc").glob("[0-9]*"):
        if town["marker"] in (folder / "cmdline").read_text():
            return str(folder)
    return None


@attempt
def read_the_actors_memory_by_proc(town):
    with open(f"/proc/{town['actor_pid']}/mem", "rb") as memory:
        memory.seek(town["secret_address"])
        return memory.read(16).decode()


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


@attempt
def read_the_actors_memory_by_process_vm_readv(town):
    here = ctypes.create_string_buffer(16)
    ours, theirs = Vector(ctypes.addressof(here), 16), Vector(town["secret_address"], 16)
    call("process_vm_readv", town["actor_pid"], ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    return here.value.decode()


@attempt
def trace_the_actor(town):
    call("ptrace", 0x4206, town["actor_pid"], 0, 0)  # PTRACE_SEIZE
    return "seized"


@attempt
def trace_a_process_of_its_own(town):
    child = os.fork()
    if child == 0:
        time.sleep(5)
        os._exit(0)
    try:
        call("ptrace", 0x4206, child, 0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
    return "seized"


@attempt
def take_a_descriptor_of_the_actor(town):
    pidfd = os.pidfd_open(town["actor_pid"])
    return os.read(call("pidfd_getfd", pidfd, town["key_fd"], 0), 99).decode()


@attempt
def signal_the_actor(town):
    os.kill(town["actor_pid"], 0)
    return "could"


@attempt
def connect_to_a_ray_port(town):
    with socket.create_connection(("127.0.0.1", town["tcp_port"]), 3) as connection:
        return connection.recv(99).decode()


@attempt
def connect_to_an_abstract_socket(town):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + town["abstract_name"])
        return client.recv(99).decode()


@attempt
def connect_to_a_named_socket(town):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(town["socket_path"])
        return client.recv(99).decode()


@attempt
def reuse_the_own_socket_to_leave_the_network_namespace(town):
    fd = int(sys.argv[-1])
    unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
    LIBC.connect(fd, unspecified, len(unspecified))
    own = socket.socket(fileno=os.dup(fd))
    own.connect("\0" + town["abstract_name"])
    return own.recv(99).decode()


@attempt
def route_to_the_internet(town):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]


@attempt
def see_the_nodes_network_interfaces(town):
    return [name for _, name in socket.if_nameindex() if name != "lo"]


@attempt
def open_a_raw_socket(town):
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).fileno()


@attempt
def open_a_packet_socket(town):
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW).fileno()


@attempt
def open_a_vsock(town):
    return socket.socket(40, socket.SOCK_STREAM).fileno()


@attempt
def open_a_crypto_socket(town):
    return socket.socket(38, socket.SOCK_SEQPACKET).fileno()


@attempt
def mount_a_file_system(town):
    folder = Path("/tmp/mounted")
    folder.mkdir(exist_ok=True)
    call("mount", b"none", b"/tmp/mounted", b"tmpfs", 0, 0)
    call("umount2", b"/tmp/mounted", 0)
    return "mounted"


@attempt
def open_a_file_system(town):
    return call("fsopen", b"tmpfs", 0)


@attempt
def make_a_user_namespace_by_unshare(town):
    return call("unshare", NEW_USER)


@attempt
def make_a_user_namespace_by_clone(town):
    pid = call(CLONE[0], NEW_USER | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return pid


@attempt
def make_a_user_namespace_by_clone3(town):
    arguments = (ctypes.c_uint64 * 8)(NEW_USER, 0, 0, 0, signal.SIGCHLD)
    pid = call(CLONE[1], ctypes.byref(arguments), 64)
    if pid == 0:
        os._exit(0)
    return pid


@attempt
def join_the_actors_network_namespace(town):
    return call("setns", os.open(f"/proc/{town['actor_pid']}/ns/net", os.O_RDONLY), NEW_NET)


@attempt
def get_the_namespace_of_the_own_socket(town):
    return fcntl.ioctl(int(sys.argv[-1]), 0x894C)  # SIOCGSKNS


@attempt
def use_a_key_ring(town):
    return call("add_key", b"user", b"burglar", b"x", 1, -2)


@attempt
def use_io_uring(town):
    return call("io_uring_setup", 4, ctypes.create_string_buffer(120))


@attempt
def load_a_bpf_map(town):
    return call("bpf", 0, struct.pack("=IIIII28x", 2, 4, 4, 1, 0), 48)


@attempt
def count_performance_events(town):
    attributes = struct.pack("=IIQQQQQ64x", 1, 112, 9, 0, 0, 0, 0)
    return call("perf_event_open", attributes, 0, -1, -1, 0)


@attempt
def use_userfaultfd(town):
    return call("userfaultfd", 1)


@attempt
def open_a_file_by_its_handle(town):
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    call("name_to_handle_at", -100, b"/usr", handle, ctypes.byref(ctypes.c_int()), 0)
    return call("open_by_handle_at", os.open("/usr", os.O_RDONLY), handle, os.O_RDONLY)


@attempt
def load_a_kernel_module(town):
    return privileged("init_module", b"", 0, b"", passed=(8, 22))


@attempt
def reboot_the_node(town):
    return privileged("reboot", 0, 0, 0, 0, passed=(22,))


@attempt
def set_the_clock(town):
    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))
    return "set"


@attempt
def read_the_kernel_log(town):
    return call("syslog", 3, ctypes.create_string_buffer(64), 64)


@attempt
def rename_the_node(town):
    name = os.uname().nodename.encode()
    return call("sethostname", name, len(name)) == 0


@attempt
def change_the_core_pattern(town):
    with open("/proc/sys/kernel/core_pattern", "r+") as pattern:
        pattern.write(pattern.read())
    return "written"


@attempt
def write_into_a_terminal(town):
    _, terminal = os.openpty()
    fcntl.ioctl(terminal, 0x5412, b"x")  # TIOCSTI
    return "pushed"


@attempt
def make_a_cgroup(town):
    for folder in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        try:
            (folder / "burglar").mkdir()
        except OSError:
            continue
        (folder / "burglar").rmdir()
        return str(folder)
    return None


@attempt
def gain_privileges_from_a_setuid_program(town):
    status = Path("/proc/self/status").read_text()
    programs = [p for p in Path("/usr/bin").iterdir() if p.is_file() and p.stat().st_mode & stat.S_ISUID]
    return [p.name for p in programs] if "NoNewPrivs:\t0" in status else None


@attempt
def become_root(town):
    os.setuid(0)
    return "CapEff:\t0000000000000000" not in Path("/proc/self/status").read_text()


@attempt
def make_a_device_node(town):
    os.mknod("/tmp/device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.unlink("/tmp/device")
    return "made"


@attempt
def open_a_device_of_the_node(town):
    for device in ("mem", "kmsg", "kvm", "fuse", "net/tun", "vda", "sda", "nvme0n1", "nvidia0", "nvidiactl"):
        try:
            return os.open(f"/dev/{device}", os.O_RDONLY)
        except OSError:
            continue
    return None


@attempt
def write_where_only_reading_is_granted(town):
    target = Path(town["read_only_bind"]) / "written"
    target.write_text("x")
    target.unlink()
    return str(target)


@attempt
def write_outside_the_private_folders(town):
    system = "/ /usr/bin /usr/lib /etc /dev /run /var/tmp /opt /home /root /lib /proc"
    for folder in (*system.split(), town["home"]):
        try:
            Path(folder, "written").write_text("x")
        except OSError:
            continue
        Path(folder, "written").unlink()
        return folder
    return None


@attempt
def read_another_leases_tmp(town):
    return Path(town["neighbours_tmp_file"]).read_text()


@attempt
def read_another_leases_shm(town):
    return Path(town["neighbours_shm_file"]).read_text()


@attempt
def attach_the_actors_shared_memory(town):
    identifier = LIBC.shmget(town["shm_key"], 1, 0)
    return f"segment {identifier}" if identifier >= 0 else None


@attempt
def bomb_with_forks(town):
    children = []
    try:
        for _ in range(town["processes"] * 2):
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            children.append(child)
    except OSError:
        return None
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return f"{len(children)} processes"


@attempt
def take_more_memory_than_granted(town):
    return len(mmap.mmap(-1, town["memory_bytes"] * 2, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def fill(path, size):
    try:
        with open(path, "wb") as file:
            file.writelines(bytes(1 << 20) for _ in range(size >> 20))
    finally:
        os.unlink(path)
    return size


@attempt
def fill_the_disk(town):
    return fill("/tmp/fill", town["tmp_bytes"] * 2)


@attempt
def fill_the_shared_memory(town):
    return fill("/dev/shm/fill", town["tmp_bytes"] * 2)


@attempt
def open_more_files_than_granted(town):
    return len([os.dup(0) for _ in range(town["open_files"] * 2)])


@attempt
def lift_the_own_limits(town):
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    return "lifted"


@attempt
def flood_the_log(town):
    os.set_blocking(1, False)
    written = 0
    try:
        while written < 4 << 20:
            written += os.write(1, bytes(65536))
    except BlockingIOError:
        return None
    return f"{written} bytes that nobody read"


@attempt
def take_the_cpu_from_the_others(town):
    return os.nice(-5) < 0


def run(function, town):
    """One attempt in a process of its own, at most ten seconds: (whether it got out, what it got or why not)."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            got = function(town)
            outcome = [bool(got) or (got == 0 and got is not False), repr(got)[:80]]
        except BaseException as error:
            outcome = [False, f"{type(error).__name__}: {error}"[:80]]
        os.write(write_fd, json.dumps(outcome).encode())
        os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as reader:
        text = reader.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if text else [False, f"ended with status {status}"]


def main():
    channel = socket.socket(fileno=int(sys.argv[-1]))
    town = json.loads(channel.recv(1 << 16))
    outcome = {function.__name__: run(function, town) for function in ATTEMPTS}
    channel.sendall(json.dumps(outcome).encode())


if __name__ == "__main__":
    main()
