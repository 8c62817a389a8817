"""A command while it runs: its pipes go in, how it ended comes out.

Runs inside the box, in the supervisor (sandboxes/zygote.py), with the standard library alone.
"""

import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

CHUNK = 1 << 16
OOM_COUNTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
OUT_OF_MEMORY = re.compile(rb"^MemoryError(:[^\n]*)?\s*\Z|std::bad_alloc", re.MULTILINE)


class Run:
    """A command while it runs, and what is known of it."""

    def __init__(self, pid: int, files: tuple[int, int, int], request: Mapping[str, Any]) -> None:
        self.pid, self.limits = pid, request["limits"]
        self.stdin, self.stdout, self.stderr = files
        self.started = time.monotonic()
        self.ends = self.started + self.limits["wall_s"]
        self.todo = bytearray()  # for its standard input
        self.closing = False  # close its standard input when nothing is left to write
        self.out, self.err = bytearray(), bytearray()
        self.num_out = 0  # bytes of both so far
        self.cause, self.detail = "", ""  # why it was killed
        self.status: int | None = None  # as wait reports it
        self.cpu_s = self.seconds = 0.0
        self.oom_kills = oom_kills()

    def feed(self) -> None:
        """Write what its standard input takes without waiting."""
        if self.stdin < 0:
            return
        try:
            while self.todo:
                del self.todo[: os.write(self.stdin, memoryview(self.todo)[:CHUNK].tobytes())]
        except BlockingIOError:
            return
        except OSError:
            self.todo.clear()  # it closed its end
            self.closing = True
        if self.closing:
            os.close(self.stdin)
            self.stdin = -1

    def drain(self, file: int) -> bool:
        """Take what it wrote there; False when no more will come."""
        try:
            chunk = os.read(file, CHUNK)
        except BlockingIOError:
            return True
        room = self.limits["output_bytes"] - self.num_out
        self.num_out += len(chunk)
        (self.out if file == self.stdout else self.err).extend(chunk[: max(0, room)])
        return bool(chunk)

    def close(self) -> None:
        """Close our ends of its pipes."""
        for file in (self.stdin, self.stdout, self.stderr):
            if file >= 0:
                os.close(file)
        self.stdin = self.stdout = self.stderr = -1

    def reply(self) -> tuple[dict[str, Any], bytes]:
        """How it ended, and the output that nobody took yet."""
        assert self.status is not None
        how = {"status": self.cause, "detail": self.detail, "seconds": self.seconds, "exit_code": None}
        how |= {"signal": 0, "sizes": [len(self.out), len(self.err)]}
        if not self.cause:
            how |= self._own_end(self.status)
        return how, bytes(self.out + self.err)

    def _own_end(self, status: int) -> dict[str, Any]:
        memory = {"status": "memory", "detail": f"ran out of {self.limits['memory_mb']} MiB"}
        said = OUT_OF_MEMORY.search(bytes(self.err[-4096:]))
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            return memory if code == 1 and said else {"status": "exited", "exit_code": code}
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU or (number == signal.SIGKILL and self.cpu_s >= self.limits["cpu_s"]):
            return {"status": "cpu_time", "detail": f"killed at {self.limits['cpu_s']:g} s of processor time"}
        if number == signal.SIGKILL and oom_kills() > self.oom_kills:
            return {"status": "memory", "detail": "killed for lack of memory"}
        if number == signal.SIGABRT and said:
            return memory
        with suppress(ValueError):
            return {"status": "signalled", "signal": number, "detail": signal.Signals(number).name}
        return {"status": "signalled", "signal": number, "detail": f"signal {number}"}


def oom_kills() -> int:
    """How often the kernel killed a process of this box for lack of memory, as far as the box can see."""
    for path in OOM_COUNTS:
        with suppress(OSError, ValueError), open(path) as rows:
            for row in rows:
                name, _, count = row.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
