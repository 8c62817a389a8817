"""A list of system calls that no program needs -> a filter in the kernel that refuses them, for good.

Runs inside the box, with the standard library alone. What is refused: other namespaces, mounts, looking into
other processes, keyrings, and the parts of the kernel with a long history of holes. All else is left to the
kernel's own rules. The filter is classic BPF (linux/filter.h), put together by hand for x86-64 and arm64.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO | number
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|..., BPF_RET
CALL, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; little endian
X32 = 0x40000000  # from this number on: the third ABI of x86-64

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NAMESPACES = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}: clone's own flags
FAMILIES = (
    1,
    2,
    10,
    16,
)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK; AF_VSOCK would leave the network namespace

# call: number on x86-64, number on arm64 (None: not there)
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
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
    "migrate_pages": (256, 238),
    "mknod": (133, None),  # FIFOs are made with mknodat, which the kernel keeps from making devices
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
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
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
# Memory that no rlimit counts once nobody maps it, and the choice of processors.
WITHOUT_A_CGROUP = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "msgget": (68, 186),
    "sched_setaffinity": (203, 122),
    "semget": (64, 190),
    "shmget": (29, 194),
}
CLONE, CLONE3, SOCKET, SOCKETPAIR = (56, 220), (435, 435), (41, 198), (53, 199)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install(also: Iterable[str] = ()) -> None:
    """Put the filter on this process and all that it starts; needs no_new_privs, cannot be taken off.

    `also`: calls of WITHOUT_A_CGROUP that are refused, too. OSError where the kernel takes no filter.
    """
    code = program(os.uname().machine, also)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel took no seccomp filter: {os.strerror(number)}")


def program(machine: str, also: Iterable[str] = ()) -> bytes:
    """The filter for a processor as BPF instructions of 8 bytes. OSError for one that is not known here."""
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {machine}; known: {', '.join(ARCHITECTURES)}")
    which = list(ARCHITECTURES).index(machine)
    refuse, absent = REFUSE | errno.EPERM, REFUSE | errno.ENOSYS
    code = [
        _load(ARCHITECTURE),
        # Another ABI numbers its calls otherwise: none of them is there.
        _jump(EQUAL, ARCHITECTURES[machine], 1, 0),
        _return(absent),
        _load(CALL),
    ]
    if machine == "x86_64":
        code += [_jump(AT_LEAST, X32, 0, 1), _return(absent)]
    # clone3 takes its flags in memory, where no filter can look; the C library then falls back to clone.
    code += [_jump(EQUAL, CLONE3[which], 0, 1), _return(absent)]
    for numbers in REFUSED.values():
        number = numbers[which]
        if number is not None:
            code += [_jump(EQUAL, number, 0, 1), _return(refuse)]
    for name in also:
        code += [_jump(EQUAL, WITHOUT_A_CGROUP[name][which], 0, 1), _return(absent)]
    code += [
        _jump(EQUAL, CLONE[which], 0, 4),
        _load(FIRST_ARGUMENT),
        _jump(ANY_BIT, NAMESPACES, 0, 1),
        _return(refuse),
        _return(ALLOW),
    ]
    families = [
        _load(FIRST_ARGUMENT),
        *(_jump(EQUAL, family, len(FAMILIES) - turn, 0) for turn, family in enumerate(FAMILIES)),
        _return(REFUSE | errno.EAFNOSUPPORT),
        _return(ALLOW),
    ]
    code += [_jump(EQUAL, SOCKET[which], 1, 0), _jump(EQUAL, SOCKETPAIR[which], 0, len(families))]
    return b"".join((*code, *families, _return(ALLOW)))


def _load(offset: int) -> bytes:
    return _instruction(LOAD, 0, 0, offset)


def _return(value: int) -> bytes:
    return _instruction(RETURN, 0, 0, value)


def _jump(test: int, value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(test, if_true, if_false, value)


def _instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
