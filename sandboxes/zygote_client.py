"""A channel to a zygote -> a Sandbox: requests out, replies in, SandboxLost when they do not come in time."""

import json
import os
import select
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from verigrad.sandboxes.base import (
    HOME,
    ExecResult,
    Limits,
    Process,
    ProgramFault,
    Sandbox,
    SandboxLost,
    SandboxUnavailable,
)

FRAME = struct.Struct("!II")  # as sandboxes/zygote.py has it
ROOM = "verigrad.sandboxes"
IN_THE_BOX = (
    "zygote_files",
    "zygote_seccomp",
    "zygote_walls",
    "zygote_program",
    "zygote_run",
    "zygote",
)  # in the order of their imports
GRACE_S = 30.0  # what the zygote may take beyond a command's own wall time: more than its SWEEP_S
CALM_S = 30.0  # what it may take for everything else
MAX_EARLY = 1 << 18  # bytes of files that wait for the next request
MAX_NAME = 100  # characters of the name of such a file
MAX_HEAD = 1 << 20  # bytes of a reply's JSON object

# Reads one length-prefixed JSON object from standard input, makes modules of it, and serves.
BOOT = """
import json, os, sys, types
def take(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            sys.exit(1)
        data += piece
    return data
order = json.loads(take(int.from_bytes(take(4), "big")))
for name, source in order["modules"]:
    module = types.ModuleType(name)
    module.__file__ = "<" + name + ">"
    module.__path__ = []
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
sys.modules["verigrad.sandboxes.zygote"].main(order["options"])
"""


def boot_command(python: str) -> list[str]:
    """The command line of a zygote."""
    return [python, "-I", "-c", BOOT]


def boot_order(wall: str, wall_options: Mapping[str, Any]) -> bytes:
    """What a zygote reads first: its own source, and its wall as "module:Class" with keyword arguments."""
    module = wall.partition(":")[0]
    names = [f"{ROOM}.{name}" for name in IN_THE_BOX]
    modules = [("verigrad", ""), (ROOM, "")]
    modules += [(name, source_of(name)) for name in names + [module] * (module not in names)]
    options = {"wall": wall, "wall_options": dict(wall_options)}
    body = json.dumps({"modules": modules, "options": options}).encode()
    return len(body).to_bytes(4, "big") + body


@cache
def source_of(module: str) -> str:
    """A module's source text, as it is when it is first asked for."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise SandboxUnavailable(f"the source of {module} cannot be found; install verigrad again")
    return Path(spec.origin).read_text(encoding="utf-8")


class Channel(ABC):
    """Bytes to and from a zygote, and the power to end it."""

    @abstractmethod
    def send(self, data: bytes, *, ends: float) -> None:
        """All of it, before that moment of the monotonic clock. SandboxLost when it cannot be."""

    @abstractmethod
    def receive(self, *, ends: float) -> bytes:
        """Some bytes; SandboxLost when none come before that moment, or the zygote has ended."""

    @abstractmethod
    def close(self) -> None:
        """End the zygote and everything in its box."""

    def last_words(self) -> str:
        """What the zygote wrote to standard error, for the message of a loss; may be empty."""
        return ""


class PipeChannel(Channel):
    """A channel over two file descriptors."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        os.set_blocking(write, False)
        os.set_blocking(read, False)

    def send(self, data: bytes, *, ends: float) -> None:
        """Write all of it."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.write, rest) :]
            except BlockingIOError:
                self._wait(self.write, select.POLLOUT, ends)
            except OSError as error:
                raise SandboxLost(f"the sandbox has ended ({error.strerror}). {self.last_words()}") from error

    def receive(self, *, ends: float) -> bytes:
        """What is there, once something is."""
        while True:
            self._wait(self.read, select.POLLIN, ends)
            with suppress(BlockingIOError):
                try:
                    data = os.read(self.read, 1 << 18)
                except OSError as error:
                    raise SandboxLost(f"the sandbox has ended ({error.strerror})") from error
                if not data:
                    raise SandboxLost(f"the sandbox has ended. {self.last_words()}")
                return data

    def _wait(self, file: int, event: int, ends: float) -> None:
        poller = select.poll()
        poller.register(file, event)
        if not poller.poll(max(0.0, ends - time.monotonic()) * 1000):
            raise SandboxLost("the sandbox does not answer")


class ZygoteSandbox(Sandbox):
    """A sandbox whose inside is a zygote. After SandboxLost it is of no more use."""

    def __init__(self, backend: str, channel: Channel, order: bytes, *, start_s: float = CALM_S) -> None:
        self.backend = backend
        self._channel = channel
        self._inbox = bytearray()
        self._resetting = False  # a reset was asked for, and its reply not yet waited for
        self._early = bytearray()  # frames of files that go out with the next request
        self._num_early = 0  # replies to those, not yet waited for
        self._new = True  # nothing has happened here since the last reset but files at its top
        self._closed = False
        ends = time.monotonic() + start_s
        try:
            channel.send(order, ends=ends)
            self._hear(ends=ends, most=0)
        except BaseException:
            self.close()
            raise

    def exec(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecResult:
        """Run a command to its end."""
        request = self._job("exec", command, limits, env)
        within = request["limits"]["wall_s"] + GRACE_S
        reply, blob = self.call(request, stdin, within_s=within, most=request["limits"]["output_bytes"])
        return _result(reply, blob)

    def start(
        self,
        command: Sequence[str],
        *,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Run a command and talk to it."""
        request = self._job("start", command, limits, env)
        self.call(request)
        return ZygoteProcess(self, Limits(**request["limits"]))

    def write_file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """Put a file below HOME."""
        parts = below_home(path)
        request = {"op": "write", "parts": parts, "executable": executable}
        plain = len(parts) == 1 and path.isascii() and len(path) < MAX_NAME
        if self._new and plain and len(self._early) + len(data) <= MAX_EARLY:
            # Nothing can be in its way, so it can travel together with the command that needs it.
            self.finish_reset()
            self._early += _frame(request, data)
            self._num_early += 1
            return
        self.call(request, data)

    def read_file(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        """A regular file below HOME."""
        request = {"op": "read", "parts": below_home(path), "max_bytes": max_bytes}
        return self.call(request, most=max_bytes)[1]

    def save(self, paths: Sequence[str] = (".",), *, max_bytes: int = 16 << 20) -> bytes:
        """Files and folders as a tar archive."""
        roots = [below_home(path, itself=True) for path in paths]
        # The archive adds headers and padding to the content: 1.5 KiB per entry at most, 20,000 entries.
        most = max_bytes + (32 << 20)
        return self.call({"op": "save", "roots": roots, "max_bytes": max_bytes}, most=most)[1]

    def load(self, archive: bytes) -> None:
        """Unpack what `save` made."""
        self.call({"op": "load"}, archive)

    def begin_reset(self) -> None:
        """Ask for a reset, which goes on while we do something else."""
        if not self._resetting:
            self.tell({"op": "reset"})
            self._resetting = True

    def finish_reset(self) -> None:
        """The reply to `begin_reset`."""
        if self._resetting:
            ends = time.monotonic() + CALM_S
            self._hear_early(ends)
            self._resetting = False
            self._hear(ends=ends, most=0)
            self._new = True

    def reset(self) -> None:
        """Kill and wipe everything."""
        self.begin_reset()
        self.finish_reset()

    def close(self) -> None:
        """End the zygote."""
        if not self._closed:
            self._closed = True
            self._channel.close()

    # -- the conversation ----------------------------------------------------------------------------------

    def call(
        self, request: Mapping[str, Any], blob: bytes = b"", *, within_s: float = CALM_S, most: int = 0
    ) -> tuple[dict[str, Any], bytes]:
        """A request's reply, with at most that many bytes. ProgramFault and ValueError as the zygote says."""
        self.finish_reset()
        ends = time.monotonic() + within_s
        self.tell(request, blob, ends=ends)
        self._hear_early(ends)
        return self._hear(ends=ends, most=most)

    def tell(self, request: Mapping[str, Any], blob: bytes = b"", *, ends: float | None = None) -> None:
        """Send a request whose reply is not waited for."""
        if self._closed:
            raise SandboxLost("this sandbox was closed")
        frames = bytes(self._early) + _frame(request, blob)
        self._early.clear()
        self._new = False
        with self._losing():
            self._channel.send(frames, ends=time.monotonic() + CALM_S if ends is None else ends)

    def _hear_early(self, ends: float) -> None:
        """The replies to files that travelled with the last request: no program can have spoilt them."""
        while self._num_early:
            self._num_early -= 1
            try:
                self._hear(ends=ends, most=0)
            except (ProgramFault, ValueError) as error:
                self.close()
                raise SandboxLost(f"a file could not be put into a new sandbox: {error}") from error

    def _hear(self, *, ends: float, most: int) -> tuple[dict[str, Any], bytes]:
        with self._losing():
            head, body = FRAME.unpack(self._take(FRAME.size, ends))
            if head > MAX_HEAD or body > most:
                raise SandboxLost(
                    f"the sandbox answered with {head} + {body} bytes where {most} were expected"
                )
            try:
                reply = json.loads(self._take(head, ends))
            except ValueError as error:
                raise SandboxLost("the sandbox answered with something that is no reply") from error
            blob = self._take(body, ends)
        if "fault" in reply:
            raise ProgramFault(reply["fault"])
        if "invalid" in reply:
            raise ValueError(reply["invalid"])
        return reply, blob

    def _take(self, size: int, ends: float) -> bytes:
        while len(self._inbox) < size:
            self._inbox += self._channel.receive(ends=ends)
        taken = bytes(self._inbox[:size])
        del self._inbox[:size]
        return taken

    def _losing(self) -> "_Losing":
        return _Losing(self)

    def _job(
        self, op: str, command: Sequence[str], limits: Limits | None, env: Mapping[str, str] | None
    ) -> dict[str, Any]:
        if isinstance(command, str) or not command:
            raise ValueError(f"command = {command!r}: expected a list of a program and its arguments")
        given = limits or Limits()
        numbers = {name: getattr(given, name) for name in Limits.__slots__}
        return {"op": op, "command": list(command), "limits": numbers, "env": dict(env or {})}


class ZygoteProcess(Process):
    """A command that is talked to."""

    def __init__(self, box: ZygoteSandbox, limits: Limits) -> None:
        self._box, self._limits = box, limits
        self._result: ExecResult | None = None

    def send(self, data: bytes) -> None:
        """Write to its standard input."""
        if self._result is None:
            self._box.tell({"op": "send"}, data)

    def receive(self, *, timeout_s: float) -> bytes:
        """What it wrote since the last call."""
        if self._result is not None:
            return b""
        request = {"op": "receive", "timeout_s": timeout_s}
        reply, data = self._box.call(request, within_s=timeout_s + GRACE_S, most=self._limits.output_bytes)
        if not data and not reply["ended"]:
            raise TimeoutError(f"nothing came within {timeout_s:g} s")
        return data

    def finish(self) -> ExecResult:
        """Close its standard input and wait for its end."""
        return self._end("finish")

    def kill(self) -> ExecResult:
        """End it now."""
        return self._end("kill")

    def _end(self, op: str) -> ExecResult:
        if self._result is None:
            within, most = self._limits.wall_s + GRACE_S, self._limits.output_bytes
            self._result = _result(*self._box.call({"op": op}, within_s=within, most=most))
        return self._result


class _Losing:
    """A sandbox that is lost once is lost for good: half a reply may be left in its channel."""

    def __init__(self, box: ZygoteSandbox) -> None:
        self.box = box

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.box.close()


def _frame(request: Mapping[str, Any], blob: bytes) -> bytes:
    head = json.dumps(request).encode()
    return FRAME.pack(len(head), len(blob)) + head + blob


def _result(reply: Mapping[str, Any], blob: bytes) -> ExecResult:
    try:
        num_out, num_err = reply["sizes"]
        return ExecResult(
            status=reply["status"],
            exit_code=reply["exit_code"],
            stdout=blob[:num_out],
            stderr=blob[num_out : num_out + num_err],
            seconds=reply["seconds"],
            signal=reply["signal"],
            detail=reply["detail"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SandboxLost("the sandbox answered with something that is no result") from error


def below_home(path: str, *, itself: bool = False) -> list[str]:
    """A path's components below HOME. ValueError for a path that is not, or is HOME itself unless allowed."""
    pure = PurePosixPath(path)
    if pure.is_absolute():
        try:
            pure = pure.relative_to(HOME)
        except ValueError:
            raise ValueError(f"path {path!r} is not below {HOME}") from None
    parts = list(pure.parts)
    if ".." in parts or "\0" in path or (not parts and not itself):
        raise ValueError(f"path {path!r} is not a file's path below {HOME}")
    return parts
