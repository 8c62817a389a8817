"""The wall made of namespaces: a program gets processes, IPC and users of its own, and no privilege.

Runs inside the box that sandboxes/bubblewrap.py makes, with the standard library alone. The supervisor is
process 1 there and holds CAP_SYS_ADMIN in the box's own user namespace, where it means little: enough to give
each program

* a process namespace. Its first process only reaps; when it dies, the kernel kills every process in there, so
  nothing survives a command, and a program sees none but its own;
* an IPC namespace, which takes message queues with it;
* a user namespace, so that RLIMIT_NPROC counts nothing but the program's processes, and everything outside
  belongs to somebody else;
* no capability, no_new_privs, and the filter of sandboxes/zygote_seccomp.py.

No cgroup is needed. What a cgroup would count is counted four times a second: the memory of all processes.
"""

import ctypes
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from typing import Any, NoReturn

from verigrad.sandboxes import zygote_seccomp
from verigrad.sandboxes.zygote_walls import PR_SET_DUMPABLE, Dirty, Wall, descendants

NEW_MOUNTS, NEW_IPC, NEW_USERS, NEW_PROCESSES = 0x00020000, 0x08000000, 0x10000000, 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 2, 4, 8, 4096
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 1, 24, 47, 4
CAPABILITY_VERSION_3 = 0x20080522
SPACE = "/run"  # where the file system of all writable folders is mounted for a moment
FILES_PER_MB = 256  # files and folders that a program may make, per MiB of disk
PAGE_MB = resource.getpagesize() / 2**20

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceWall(Wall):
    """Namespaces for each program, inside those of bubblewrap."""

    def __init__(self, *, memory_mb: int, disk_mb: int, pids: int, cpus: int, **options: Any) -> None:
        super().__init__(**options)
        self.memory_mb, self.disk_mb, self.pids = memory_mb, disk_mb, pids
        self.cpus = cpus  # processors that a program can use
        self.processors = sorted(os.sched_getaffinity(0))

    def boot(self) -> None:
        """One small file system for all that a program can write: nothing else in the box is writable."""
        if os.getpid() != 1:
            raise Dirty("the supervisor must be process 1 of its box")
        # bwrap's mounts belong to its own users, not to ours: make a set that is ours, and can be added to.
        _check(_libc.unshare(NEW_MOUNTS), "unshare mounts")
        folders = (self.home, *self.scratch)
        size = f"size={self.disk_mb}m,nr_inodes={self.disk_mb * FILES_PER_MB},mode=0711"
        _mount("tmpfs", SPACE, "tmpfs", MS_NOSUID | MS_NODEV, size)
        for number, folder in enumerate(folders):
            os.mkdir(f"{SPACE}/{number}", mode=0o700)
            _mount(f"{SPACE}/{number}", folder, "", MS_BIND, "")
        _check(_libc.umount2(SPACE.encode(), MNT_DETACH), f"unmount {SPACE}")

    def prepare(self) -> None:
        """Into namespaces of its own; this process stays outside and ends as the program does."""
        _check(_libc.unshare(NEW_MOUNTS | NEW_IPC | NEW_PROCESSES), "unshare")
        first = os.fork()
        if first == 0:
            _reap_until_killed()
        program = os.fork()
        if program:
            _end_as(program, first)
        os.setsid()
        _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "")
        resource.setrlimit(resource.RLIMIT_NPROC, (self.pids, self.pids))
        _own_users()

    def ticket(self) -> dict[str, Any]:
        """Which processors to run on: other ones each time, so that full boxes spread."""
        if self.cpus >= len(self.processors):
            return {"cpus": self.processors}
        return {"cpus": random.sample(self.processors, self.cpus)}

    def enter(self, ticket: Mapping[str, Any]) -> None:
        """No capability, now or later, and few system calls."""
        os.sched_setaffinity(0, ticket["cpus"])
        _drop_capabilities()
        zygote_seccomp.install(also=zygote_seccomp.WITHOUT_A_CGROUP)

    def over(self) -> str | None:
        """`memory` when all processes together hold more than the box may."""
        total = sum(_memory_mb(pid) for pid in _all_processes())
        return "memory" if total > self.memory_mb else None

    def kill(self, main: int, known: Set[int]) -> None:
        """All that descends from the process outside, the first one in the namespace among them."""
        for pid in (*descendants(main), main, *self._strangers(known)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left(self, known: Set[int]) -> bool:
        """Whether the box holds a process that is neither known nor a helper of the one forked ahead."""
        return any(True for _ in self._strangers(known))

    def wipe(self) -> None:
        """As everywhere; and what a program did to the rights of the folders themselves is undone."""
        super().wipe()
        for folder in (self.home, *self.scratch):
            os.chmod(folder, 0o700)

    def _strangers(self, known: Set[int]) -> Iterator[int]:
        helpers = {
            helper
            for pid in known
            if pid > 1 and _parent(pid) not in (0, 1)  # forked from the template: the one forked ahead
            for helper in descendants(pid)
        }
        yield from (pid for pid in _all_processes() if pid not in known and pid not in helpers)


def _reap_until_killed() -> NoReturn:
    """The first process of a program's namespace: it dies with the one outside, and all others with it."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.closerange(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _drop_capabilities()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # dead children are reaped by the kernel
    while True:
        signal.pause()


def _end_as(program: int, first: int) -> NoReturn:
    """Outside the namespace: wait for the program, then end in the same way."""
    os.closerange(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    status = os.waitpid(program, 0)[1]
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)  # returns when every process in there is gone
    if os.WIFSIGNALED(status):
        with suppress(OSError):  # SIGKILL has no other way
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _own_users() -> None:
    """A user namespace in which the program is who it was, and owns nothing outside."""
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(NEW_USERS), "unshare users")
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    for name, line in maps.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def _drop_capabilities() -> None:
    """All of them, in every set."""
    for number in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0):
            break  # the kernel knows no more of them
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    head = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(head, none), "capset")


def _all_processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _parent(pid: int) -> int:
    """0 when it is gone."""
    with suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/stat") as row:
        return int(row.read().rpartition(")")[2].split()[1])
    return 0


def _memory_mb(pid: int) -> float:
    """What a process holds beyond files of the system: private and shared memory alike."""
    with suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/status") as rows:
        held = [row.split()[1] for row in rows if row.startswith(("RssAnon:", "RssShmem:"))]
        return sum(map(int, held)) / 1024
    return 0.0


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    what = (source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None)
    _check(_libc.mount(*what), f"mount {kind or source} at {target}")


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


assert sys.platform == "linux"
