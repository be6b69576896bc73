"""The filter's verdicts, by an interpreter of BPF, and its numbers, against libseccomp's own."""

import ctypes
import ctypes.util
import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.agent.sandbox.seccomp import program, refused

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {"x86_64": {"clone": 56, "clone3": 435, "ioctl": 16, "socket": 41, "read": 0}}
CALLS["aarch64"] = {"clone": 220, "clone3": 435, "ioctl": 29, "socket": 198, "read": 63}
ALLOWED = 0x7FFF0000


def verdict(machine, number, *arguments, architecture=None):
    """What the kernel would answer: None for allowed, else the errno."""
    data = struct.pack("<iIQ6Q", number, architecture or MACHINES[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    code = program(machine)
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, operand = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        if operation == 0x06:
            return None if operand == ALLOWED else operand & 0xFFFF
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, operand)[0]
        else:
            test = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x35: accumulator >= operand}
            at += if_true if test.get(operation, bool(accumulator & operand)) else if_false


@pytest.fixture(params=MACHINES)
def machine(request):
    return request.param


def test_each_listed_call_is_refused(machine):
    assert {verdict(machine, number) for number in refused(machine).values()} == {errno.EPERM}


def test_an_ordinary_call_is_allowed(machine):
    assert verdict(machine, CALLS[machine]["read"]) is None


def test_calls_of_another_architecture_or_newer_than_the_list_do_not_exist(machine):
    assert verdict(machine, CALLS[machine]["read"], architecture=0x40000003) == errno.ENOSYS
    assert verdict(machine, 0x40000000) == errno.ENOSYS
    assert verdict(machine, 462) is None
    assert verdict(machine, 463) == errno.ENOSYS
    assert verdict(machine, CALLS[machine]["clone3"]) == errno.ENOSYS


@settings(deadline=None)
@given(st.sampled_from(sorted(MACHINES)), st.integers(0, 2**64 - 1))
def test_clone_is_refused_exactly_with_a_new_namespace(machine, flags):
    namespaces = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x80
    expected = errno.EPERM if flags & namespaces else None
    assert verdict(machine, CALLS[machine]["clone"], flags) == expected


@pytest.mark.parametrize(("request_", "expected"), [(0x5412, errno.EPERM), (0x541C, errno.EPERM), (0x5413, None)])
def test_pushing_characters_into_a_terminal_is_refused(machine, request_, expected):
    assert verdict(machine, CALLS[machine]["ioctl"], 0, request_) == expected
    assert verdict(machine, CALLS[machine]["ioctl"], 0, request_ | 1 << 32) == expected


@settings(deadline=None)
@given(st.sampled_from(sorted(MACHINES)), st.integers(0, 50), st.integers(0, 20))
def test_only_sockets_that_stay_inside_are_allowed(machine, family, protocol):
    allowed = family in {1, 2, 10} or (family == 16 and protocol == 0)
    assert verdict(machine, CALLS[machine]["socket"], family, 3, protocol) == (None if allowed else errno.EAFNOSUPPORT)


def test_an_unknown_machine_is_refused():
    with pytest.raises(ValueError, match="no list of system calls for 'riscv64'; there is one for x86_64, aarch64"):
        program("riscv64")


def test_the_numbers_are_those_of_libseccomp(machine):
    name = ctypes.util.find_library("seccomp")
    if name is None:
        pytest.skip("libseccomp is not installed")
    resolve = ctypes.CDLL(name).seccomp_syscall_resolve_name_arch
    resolve.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    ours = {**refused(machine), **CALLS[machine]}
    assert {call: resolve(MACHINES[machine], call.encode()) for call in ours} == ours
