"""A program and its box -> what stands between them: the hooks that the zygote calls, and two walls.

Runs inside the box, with the standard library alone. Another wall is another subclass of `Wall`, named as
"module:Class" when the zygote is started; sandboxes/zygote_namespace.py holds the one made of namespaces.
"""

import ctypes
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

from verigrad.sandboxes import zygote_files, zygote_seccomp

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
IPC_RMID = 0
SYSV = ("shm", "sem", "msg")  # /proc/sysvipc/*
MQUEUES = "/dev/mqueue"

_libc = ctypes.CDLL(None, use_errno=True)


class Dirty(Exception):
    """Something of a program is left and cannot be removed: the box must be thrown away."""


class Wall(ABC):
    """The hooks, in the order in which they are called.

    Three processes share the box: the supervisor, which talks to the outside and owns the clock; the
    template, forked from it before any job is known; and one new process per command, forked from the
    template ahead of time. `S` hooks run in the supervisor, `P` hooks in what becomes the program.

    boot     S  once, before the template is forked; the box is clean when it returns
    prepare  P  when the process is forked, before its job is known: slow preparations belong here. It may
                fork: then the first process waits and ends as its child did, and the child returns
    ticket   S  when a job comes: what `enter` needs to know, as plain data
    enter    P  last thing before the program: every privilege is given up
    over     S  a few times a second while a command runs: which limit of the whole box it is over, if any
    kill     S  SIGKILL for every process of the command; called again until `left` says that none is left
    left     S  whether any process exists but the `known` ones (and their own helpers)
    wipe     S  at a reset, when no process is left: erase all that a program can write, change identity
    leave    S  once, at the end
    """

    counts_processes = True  # whether RLIMIT_NPROC counts nothing but the program's own processes

    def __init__(self, *, home: str, scratch: Sequence[str] = (), **options: Any) -> None:
        self.home, self.scratch = home, tuple(scratch)  # HOME; other folders that a program can write to
        if options:
            raise TypeError(f"{type(self).__name__} takes no {sorted(options)}")

    @property
    def owner(self) -> tuple[int, int] | None:
        """User and group of the program's files, as the supervisor sees them; None: its own."""
        return None

    def boot(self) -> None:  # noqa: B027 - a hook that may do nothing
        """Make the box ready."""

    def prepare(self) -> None:  # noqa: B027 - a hook that may do nothing
        """What can be done before the job is known."""

    def ticket(self) -> dict[str, Any]:
        """What `enter` needs to know."""
        return {}

    @abstractmethod
    def enter(self, ticket: Mapping[str, Any]) -> None:
        """Give up every privilege, for good."""

    def over(self) -> str | None:
        """`memory` or another status that ends the command now; None while all is well."""
        return None

    @abstractmethod
    def kill(self, main: int, known: Set[int]) -> None:
        """SIGKILL for all of the command: `main`, which the template forked for it, and all not `known`."""

    @abstractmethod
    def left(self, known: Set[int]) -> bool:
        """Whether a process is there that is not known. Dead ones that wait for their parent count."""

    def wipe(self) -> None:
        """Erase all that a program can write. Raises Dirty when something stays."""
        for folder in (self.home, *self.scratch):
            zygote_files.wipe(folder)
            if os.listdir(folder):
                raise Dirty(f"{folder} is not empty after wiping")

    def leave(self) -> None:  # noqa: B027 - a hook that may do nothing
        """Leave nothing behind that outlives the box."""


class PlainWall(Wall):
    """No wall: the program runs as the user who started the zygote; what it leaves running is ended."""

    counts_processes = False

    def boot(self) -> None:
        """Become the parent of whatever a program leaves behind."""
        set_flag(PR_SET_CHILD_SUBREAPER)
        for folder in (self.home, *self.scratch):
            os.makedirs(folder, mode=0o700, exist_ok=True)

    def prepare(self) -> None:
        """End with the template, should the zygote be killed."""
        set_flag(PR_SET_PDEATHSIG, signal.SIGKILL)

    def enter(self, ticket: Mapping[str, Any]) -> None:
        """Nothing to give up."""

    def kill(self, main: int, known: Set[int]) -> None:
        """Its session, and whatever moved out of it: a child of the supervisor since its parent died."""
        with suppress(ProcessLookupError):
            os.killpg(main, signal.SIGKILL)
        for pid in descendants(os.getpid()):
            if pid not in known:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def left(self, known: Set[int]) -> bool:
        """Whether the supervisor has descendants that are not known."""
        return any(pid not in known for pid in descendants(os.getpid()))

    def leave(self) -> None:
        """Remove the folder that holds HOME and the rest."""
        folder = os.path.dirname(self.home)
        zygote_files.wipe(folder)
        os.rmdir(folder)


class UidWall(Wall):
    """A user of its own for each program; the supervisor is root, and process 1 of a box with nothing else.

    Needs CAP_SETUID, CAP_SETGID, CAP_CHOWN, CAP_DAC_OVERRIDE and CAP_FOWNER. What a program leaves outside
    its folders (System V objects, message queues) belongs to its user, is removed as that user, and is looked
    for.
    """

    def __init__(self, *, first_uid: int, last_uid: int, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.last = first_uid, last_uid
        self.uid = first_uid

    @property
    def owner(self) -> tuple[int, int]:
        """The program's own user and group, which have one number."""
        return self.uid, self.uid

    def boot(self) -> None:
        """Take the first user."""
        if os.getuid() != 0 or os.getpid() != 1:
            raise Dirty("the supervisor must be root and process 1 of its box")
        self.uid -= 1
        self.wipe()

    def ticket(self) -> dict[str, Any]:
        """Who to become."""
        return {"uid": self.uid}

    def enter(self, ticket: Mapping[str, Any]) -> None:
        """Become the program's user; the kernel drops every capability with it."""
        uid = ticket["uid"]
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        zygote_seccomp.install()  # older engines let vsock and io_uring through

    def kill(self, main: int, known: Set[int]) -> None:
        """Every process of the user in one call: none can fork past it, and none is in between.

        Process 1 takes the program's user for the call. Signals from inside its box cannot harm process 1,
        and its saved user, root, keeps it from being traced.
        """
        with suppress(ProcessLookupError, PermissionError):  # not yet the program's user: still ours to kill
            os.kill(main, signal.SIGKILL)
        os.setresuid(self.uid, self.uid, 0)
        try:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(-1, signal.SIGKILL)
        finally:
            os.setresuid(0, 0, 0)

    def left(self, known: Set[int]) -> bool:
        """Whether the box holds another process than the known ones, whoever owns it."""
        return any(int(name) not in known for name in os.listdir("/proc") if name.isdecimal())

    def wipe(self) -> None:
        """Folders, message queues, System V objects; then the next user, to whom HOME is given."""
        if os.path.isdir(MQUEUES):
            zygote_files.wipe(MQUEUES)
        if any(sysv_objects()):
            self._remove_sysv()
        super().wipe()
        self.uid = self.first if self.uid >= self.last else self.uid + 1
        os.chown(self.home, *self.owner)
        os.chmod(self.home, 0o700)

    def _remove_sysv(self) -> None:
        os.setresuid(self.uid, self.uid, 0)
        try:
            for kind, number in sysv_objects():
                remove = getattr(_libc, f"{kind}ctl")
                remove(number, 0, IPC_RMID) if kind == "sem" else remove(number, IPC_RMID, None)
        finally:
            os.setresuid(0, 0, 0)
        if rest := [f"{kind} {number}" for kind, number in sysv_objects()]:
            raise Dirty(f"System V objects stay: {', '.join(rest[:5])}")


def set_flag(flag: int, value: int = 1) -> None:
    """One of prctl's settings for this process. OSError when the kernel refuses."""
    if _libc.prctl(flag, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({flag}): {os.strerror(number)}")


def descendants(root: int) -> list[int]:
    """Children of a process, their children, and so on."""
    found: list[int] = []
    parents = [root]
    while parents:
        children = list(children_of(parents.pop()))
        found += children
        parents += children
    return found


def children_of(pid: int) -> Iterator[int]:
    """Children of all threads of a process that are there at the moment."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as names:
                yield from map(int, names.read().split())


def sysv_objects() -> Iterator[tuple[str, int]]:
    """Kind and number of each System V object in this IPC namespace."""
    for kind in SYSV:
        with suppress(FileNotFoundError), open(f"/proc/sysvipc/{kind}") as rows:
            next(rows)
            for row in rows:
                yield kind, int(row.split()[1])
