"""A function that must read what a model wrote -> its result, from a child process that can do nothing else.

For scorers of other people that evaluate the text they judge. The child is forked, does its one job and
ends. After its preparation a seccomp filter leaves it memory, the clock and the pipe of its result: it can
open no file, reach no network, start or signal no process. It can still say a wrong result: confinement keeps
the machine and the next verdict safe, not this one.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

MAX_RESULT = 1 << 16  # bytes
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # refuse: the call fails with EPERM
# What an interpreter needs that has all in memory: read, write, close, lseek, mmap, mprotect, munmap, brk;
# rt_sigaction, rt_sigprocmask, rt_sigreturn, mremap, madvise, getpid; exit, gettimeofday, sigaltstack,
# futex, clock_gettime, clock_getres; exit_group, restart_syscall, sched_yield, getrandom, fstat.
CALLS: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 39, 60, 96, 131, 202, 228, 229, 231, 219, 24, 318, 5),
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(63, 64, 57, 62, 222, 226, 215, 214, 134, 135, 139, 216, 233, 172),
            *(93, 169, 132, 98, 113, 114, 94, 128, 124, 278, 80),
        ),
    ),
}  # fmt: skip


class ChildFailed(Exception):
    """The child ended without a result, or its preparation failed."""


def unavailable() -> str | None:
    """Why this machine cannot confine a process; None when it can."""
    if sys.platform == "linux" and platform.machine() in CALLS:
        return None
    return (
        f"{sys.platform} on {platform.machine()} has no seccomp filter of ours; Linux on x86-64 or ARM64 has"
    )


def call(prepare: Callable[[], Any], job: Callable[[Any], Any]) -> Any:
    """`job(prepare())`, in a child of its own that is confined between the two; the results are JSON.

    Raises ChildFailed when either raises or the child ends early, MemoryError when memory ran out.
    Whoever calls is itself killed at a deadline, and the child with it: both are of one process group.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(theirs, prepare, job)
    os.close(theirs)
    said = b""
    try:
        while len(said) <= MAX_RESULT and (chunk := os.read(ours, MAX_RESULT)):
            said += chunk
    finally:
        os.close(ours)
        _, status = os.waitpid(pid, 0)
    try:
        reply = json.loads(said)
        kind, value = reply["kind"], reply["value"]
    except (ValueError, KeyError, TypeError):
        ended = os.waitstatus_to_exitcode(status)
        raise ChildFailed(f"the scoring process ended without a result (status {ended})") from None
    if kind == "memory":
        raise MemoryError
    if kind != "result":
        raise ChildFailed(str(value)[:500])
    return value


def _child(out: int, prepare: Callable[[], Any], job: Callable[[Any], Any]) -> None:
    """Never returns: whatever happens in here must not run the parent's code."""
    reply: dict[str, Any] = {"kind": "failed", "value": "preparation"}
    try:
        out = _nothing_open_but(out)
        ready = prepare()
        confine()
        reply = {"kind": "result", "value": job(ready)}
    except MemoryError:
        reply = {"kind": "memory", "value": None}
    except BaseException as error:  # also SystemExit: the parent is told, whatever it is
        reply = {"kind": "failed", "value": f"{type(error).__name__}: {error}"}
    try:
        os.write(out, json.dumps(reply).encode()[:MAX_RESULT])
    finally:
        os._exit(0)


def _nothing_open_but(out: int) -> int:
    """Close what the parent had open, its pipes to the engine above all; standard streams lead nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    out = os.dup2(out, 3) if out != 3 else 3
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return out


def confine() -> None:
    """Leave this process memory, the clock and what is open, for good; OSError when the kernel refuses."""
    arch, numbers = CALLS[platform.machine()]
    code = [
        (0x20, 0, 0, 4),
        (0x15, 0, len(numbers) + 1, arch),
        (0x20, 0, 0, 0),
    ]  # another architecture: refused
    code += [(0x15, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    code += [(0x06, 0, 0, REFUSE), (0x06, 0, 0, ALLOW)]
    filters = b"".join(struct.pack("HBBI", *line) for line in code)
    held = ctypes.create_string_buffer(filters)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(held)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")
