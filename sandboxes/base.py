"""The nouns of a sandbox: Limits and a command go in, an ExecResult comes out, or a SandboxError is raised.

Two kinds of failure, which never look alike:

* The program's own: it raised, was killed at a limit, wrote nothing, left no such file. That is an
  `ExecResult`, or a `ProgramFault` from `read_file` and `save`: evidence about what the model wrote.
* Ours: the engine is gone, the container does not answer, the machine is out of memory. That is a
  `SandboxError`, and says nothing about what the model wrote. Whoever sees one tries again in another sandbox
  or leaves the attempt undecided.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, Literal

HOME = "/box"  # where a program runs: the one folder that it owns; paths are absolute, or relative to this
Status = Literal["exited", "signalled", "wall_time", "cpu_time", "memory", "output"]


class SandboxError(Exception):
    """Infrastructure failed; says nothing about the program that was to run."""


class SandboxUnavailable(SandboxError):
    """This kind of sandbox cannot be had here; the message says what is missing and how to get it."""


class SandboxLost(SandboxError):
    """This sandbox died, does not answer, or could not be cleaned; another one may work."""


class ProgramFault(Exception):
    """What a program left behind is not what was asked for: no such file, a link, too large."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one command may use; more ends it, and the result says which."""

    wall_s: float = 10.0  # seconds on the clock
    cpu_s: float = 10.0  # seconds of processor time, each process by itself
    memory_mb: int = 512  # address space of each process, in MiB
    output_bytes: int = 1 << 20  # of standard output and standard error together
    file_mb: int = 16  # largest file it may write, in MiB
    pids: int = 32  # processes and threads alive at once

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            whole = limit.name not in ("wall_s", "cpu_s")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(
                    f"limit {limit.name} = {value!r}: expected a{' whole' * whole} number above 0"
                )
            if not 0 < value < float("inf"):
                raise ValueError(f"limit {limit.name} = {value!r}: expected a number above 0")

    @classmethod
    def of(cls, row: Mapping[str, Any] | None, *, default: "Limits | None" = None) -> "Limits":
        """Limits of a data row's `{"wall_s", ...}`; ValueError names what is unknown or no number."""
        base = default or cls()
        given = dict(row or {})
        known = {limit.name: getattr(base, limit.name) for limit in fields(cls)}
        if unknown := set(given) - set(known):
            raise ValueError(f"limits have no {sorted(unknown)[0]!r}; expected some of {', '.join(known)}")
        return cls(**{**known, **given})


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command ended. Code nobody trusts made all of it but `status` and `seconds`."""

    status: Status  # exited: by itself; signalled: by a signal of its own; the rest: killed at that limit
    exit_code: int | None  # None unless exited
    stdout: bytes  # as much as fits into Limits.output_bytes
    stderr: bytes
    seconds: float  # wall time
    signal: int = 0  # number, when signalled
    detail: str = ""  # one line for people, e.g. "killed at 10 s"

    @property
    def ok(self) -> bool:
        """Ended by itself with status 0. Says nothing about whether it did what it should."""
        return self.status == "exited" and self.exit_code == 0


class Process(ABC):
    """A running command that is talked to while it runs. Its limits count from its start."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Write to its standard input; what it never reads is dropped when it ends."""

    @abstractmethod
    def receive(self, *, timeout_s: float) -> bytes:
        """What it wrote to standard output since the last call, waiting for some; b"" when it has ended.

        Raises TimeoutError when nothing came in time; the process goes on.
        """

    @abstractmethod
    def finish(self) -> ExecResult:
        """Close its standard input, wait for its end, and clean up as `exec` does.

        `stdout` holds only what `receive` did not return.
        """

    @abstractmethod
    def kill(self) -> ExecResult:
        """End it now; otherwise as `finish`."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Which sandbox, and how made. Travels to worker processes as JSON (`to_json`)."""

    backend: str  # container, bubblewrap, local_process, a registered name, path/to/file.py:name
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of the backend's `open`

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"backend": self.backend, "options": dict(self.options)}


class Sandbox(ABC):
    """A place to run code nobody trusts. Used by one thread at a time.

    Between two `reset`s files persist from command to command; processes never do: when the main process of a
    command has ended, all others it started are killed. A conforming sandbox passes `conformance.py`.
    """

    backend: str = ""
    # Set by the pool: one more clean sandbox, which the pool takes back together with this one.
    sibling: "Callable[[], Sandbox] | None" = None

    @abstractmethod
    def exec(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecResult:
        """Run a command in HOME, wait for its end, kill what it left running.

        `["python3", "file.py", ...]` starts in an interpreter that is already running, several times faster;
        it behaves like a new one. SandboxError when the sandbox failed, never for what the program did.
        """

    @abstractmethod
    def start(
        self,
        command: Sequence[str],
        *,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Run a command and talk to it while it runs; one at a time, and no `exec` meanwhile."""

    @abstractmethod
    def write_file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """Put a file below HOME, making folders; replaces what is there; never follows a link.

        Raises ValueError for a path outside HOME, ProgramFault when something the program left is in the way.
        """

    @abstractmethod
    def read_file(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        """A regular file below HOME; never follows a link.

        Raises ValueError for a path outside HOME; ProgramFault when it is missing, no regular file, reached
        through a link, or larger than `max_bytes`.
        """

    @abstractmethod
    def save(self, paths: Sequence[str] = (".",), *, max_bytes: int = 16 << 20) -> bytes:
        """Files and folders below HOME as a tar archive: regular files and folders only, names below HOME.

        Links, sockets and devices are left out; a path that is not there is left out, too. ProgramFault when
        the files hold more than `max_bytes`. Never runs while a command does.
        """

    @abstractmethod
    def load(self, archive: bytes) -> None:
        """Unpack what `save` made into HOME, owned by the program."""

    @abstractmethod
    def reset(self) -> None:
        """Kill everything, wipe everything, and be as new. SandboxLost when it cannot be proved clean."""

    def begin_reset(self) -> None:
        """As `reset`, but may return before it is done: then `finish_reset` comes before anything else."""
        self.reset()

    def finish_reset(self) -> None:  # noqa: B027 - nothing to do when begin_reset waits
        """Wait for the reset that was begun. SandboxLost when it cannot be proved clean."""

    @abstractmethod
    def close(self) -> None:
        """End for good; leaves nothing behind. May be called twice, and after a failure."""

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Backend(ABC):
    """One kind of sandbox: what is registered under a name."""

    name: str
    promises: str  # one line: what holds it

    @abstractmethod
    def unavailable(self, options: Mapping[str, Any]) -> str | None:
        """Why no such sandbox can be had here and how to mend it, in one line; None when one can. Fast."""

    @abstractmethod
    def open(self, **options: Any) -> Sandbox:
        """A new, clean sandbox. SandboxUnavailable or SandboxLost when it does not come up."""
