"""The system calls that code in a sandbox may not make, as a classic BPF program for ``bwrap --seccomp``.

Everything is allowed but: what changes mounts, namespaces, clocks, modules or the kernel; what looks into other
processes; the large attack surfaces that GPU work does not need (io_uring, bpf, perf, userfaultfd, key rings); new
namespaces by ``clone``; pushing characters into a terminal; sockets other than unix, inet and netlink's routing. Calls
that are newer than this list, of the x32 ABI, or of another architecture answer "no such call", which libraries expect.
Writes bytes; loads nothing.
"""

import errno
import struct

_LAST_KNOWN_CALL = 462  # mseal, Linux 6.10: what came later is refused until somebody has looked at it

_X32_BIT = 0x4000_0000
_ARCHITECTURES = {"x86_64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1)}  # linux/audit.h, column of the tables below

_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "sysfs": (139, None),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
_CLONE, _CLONE3, _IOCTL, _SOCKET = (56, 220), (435, 435), (16, 29), (41, 198)

_NEW_NAMESPACES = 0x7E02_0080  # CLONE_NEWNS | …CGROUP | …UTS | …IPC | …USER | …PID | …NET | …TIME
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_NETLINK = 16

_LOAD, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW = 0x7FFF_0000
_NOT_PERMITTED = 0x0005_0000 | errno.EPERM
_NO_SUCH_CALL = 0x0005_0000 | errno.ENOSYS
_NO_SUCH_FAMILY = 0x0005_0000 | errno.EAFNOSUPPORT


def program(machine: str) -> bytes:
    """The filter for a machine as `platform.machine` names it.

    Raises:
        ValueError: no table for that machine.
    """
    if machine not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ValueError(f"no list of system calls for {machine!r}; there is one for {known}")
    architecture, column = _ARCHITECTURES[machine]
    return b"".join(
        (
            _load(_ARCHITECTURE),
            _unless(_EQUAL, architecture, _NO_SUCH_CALL),
            _load(_NUMBER),
            _if(_AT_LEAST, _X32_BIT, _NO_SUCH_CALL),
            _if(_GREATER, _LAST_KNOWN_CALL, _NO_SUCH_CALL),
            _if(_EQUAL, _CLONE3[column], _NO_SUCH_CALL),
            *(_if(_EQUAL, number, _NOT_PERMITTED) for number in refused(machine).values()),
            _when(_CLONE[column], _clone()),
            _when(_IOCTL[column], _ioctl()),
            _when(_SOCKET[column], _socket()),
            _return(_ALLOW),
        )
    )


def refused(machine: str) -> dict[str, int]:
    """Name and number of each call that is always refused there."""
    column = _ARCHITECTURES[machine][1]
    return {name: number for name, numbers in _REFUSED.items() if (number := numbers[column]) is not None}


def _clone() -> bytes:
    return _load(_argument(0)) + _if(_ANY_BIT, _NEW_NAMESPACES, _NOT_PERMITTED) + _return(_ALLOW)


def _ioctl() -> bytes:
    refusals = b"".join(_if(_EQUAL, request, _NOT_PERMITTED) for request in _TERMINAL_INPUT)
    return _load(_argument(1)) + refusals + _return(_ALLOW)


def _socket() -> bytes:
    allowances = b"".join(_if(_EQUAL, family, _ALLOW) for family in _FAMILIES)
    routing = _load(_argument(2)) + _if(_EQUAL, 0, _ALLOW)
    return (
        _load(_argument(0))
        + allowances
        + _unless(_EQUAL, _NETLINK, _NO_SUCH_FAMILY)
        + routing
        + _return(_NO_SUCH_FAMILY)
    )


def _argument(index: int) -> int:
    return _ARGUMENTS + 8 * index  # the low word: both machines are little-endian


def _instruction(code: int, if_true: int, if_false: int, operand: int) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, 0, 0, offset)


def _return(verdict: int) -> bytes:
    return _instruction(_RETURN, 0, 0, verdict)


def _if(test: int, operand: int, verdict: int) -> bytes:
    return _instruction(test, 0, 1, operand) + _return(verdict)


def _unless(test: int, operand: int, verdict: int) -> bytes:
    return _instruction(test, 1, 0, operand) + _return(verdict)


def _when(number: int, block: bytes) -> bytes:
    """``block``, which ends in a verdict, for that call only."""
    return _instruction(_EQUAL, 0, len(block) // 8, number) + block
