"""The filter, run instruction by instruction as the kernel would."""

import errno
import struct

import pytest

from verigrad.sandboxes import zygote_seccomp as seccomp

ALLOWED = seccomp.ALLOW


def refused(number):
    return seccomp.REFUSE | number


def verdict(machine, call, argument=0, *, architecture=None, also=()):
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine, also)))
    data = struct.pack("<iIQ6Q", call, architecture or seccomp.ARCHITECTURES[machine], 0, argument, *[0] * 5)
    at = value = 0
    while True:
        kind, if_true, if_false, operand = code[at]
        at += 1
        if kind == seccomp.RETURN:
            return operand
        if kind == seccomp.LOAD:
            value = struct.unpack_from("<I", data, operand)[0]
            continue
        holds = {
            seccomp.EQUAL: value == operand,
            seccomp.AT_LEAST: value >= operand,
            seccomp.ANY_BIT: bool(value & operand),
        }[kind]
        at += if_true if holds else if_false


MACHINES = sorted(seccomp.ARCHITECTURES)


@pytest.mark.parametrize("machine", MACHINES)
def test_each_listed_call_is_refused_and_others_are_not(machine):
    which = list(seccomp.ARCHITECTURES).index(machine)
    for name, numbers in seccomp.REFUSED.items():
        if numbers[which] is not None:
            assert verdict(machine, numbers[which]) == refused(errno.EPERM), name
    ordinary = {"x86_64": (0, 1, 9, 57, 59, 231), "aarch64": (63, 64, 222, 221, 94)}[machine]
    for number in ordinary:  # read, write, mmap, fork, execve, exit_group
        assert verdict(machine, number) == ALLOWED


@pytest.mark.parametrize("machine", MACHINES)
def test_new_processes_and_threads_but_no_new_namespaces(machine):
    which = list(seccomp.ARCHITECTURES).index(machine)
    clone, clone3 = seccomp.CLONE[which], seccomp.CLONE3[which]
    assert verdict(machine, clone, 17) == ALLOWED  # SIGCHLD: a process
    assert verdict(machine, clone, 0x003D0F00) == ALLOWED  # a thread, as the C library makes it
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, flag | 17) == refused(errno.EPERM)
    assert verdict(machine, clone3) == refused(errno.ENOSYS)


@pytest.mark.parametrize("machine", MACHINES)
def test_sockets_of_the_usual_families_only(machine):
    which = list(seccomp.ARCHITECTURES).index(machine)
    for call in (seccomp.SOCKET[which], seccomp.SOCKETPAIR[which]):
        assert [verdict(machine, call, family) == ALLOWED for family in (1, 2, 10, 16)] == [True] * 4
        for family in (17, 38, 40, 44):  # packet, alg, vsock, xdp
            assert verdict(machine, call, family) == refused(errno.EAFNOSUPPORT)


def test_calls_of_another_abi_are_not_there():
    assert verdict("x86_64", 1, architecture=0x40000003) == refused(errno.ENOSYS)  # i386
    assert verdict("x86_64", seccomp.X32 | 1) == refused(errno.ENOSYS)


def test_memory_that_only_a_cgroup_counts_is_refused_where_there_is_none():
    assert verdict("x86_64", 319) == ALLOWED
    assert verdict("x86_64", 319, also=["memfd_create"]) == refused(errno.ENOSYS)


def test_a_processor_that_is_not_known_is_named():
    with pytest.raises(OSError, match="no seccomp filter for riscv64"):
        seccomp.program("riscv64")
