"""One worker process seen from the parent: start it, send it a check, read its answer in time, kill it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from verigrad.verifiers import interpreter

START_S = 120.0  # importing sympy on a machine under load takes many seconds
MAX_REPLY = 4 * 2**20  # bytes


class WorkerDied(Exception):
    """The worker process ended, or said something that is no answer."""


class WorkerLate(Exception):
    """The worker did not answer before the deadline."""


class WorkerProcess:
    """A started and warmed-up worker; every method raises WorkerDied when the process is gone."""

    def __init__(self, order: Mapping[str, Any], *, cwd: str, python: str = "") -> None:
        """`python`: the interpreter of another environment, in which the verifier lives."""
        self.process = subprocess.Popen(
            interpreter.command(python, "verigrad.verifiers.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            env=interpreter.environment(python, cwd=cwd),
            start_new_session=True,  # Ctrl-C is the parent's, and killpg reaches the worker's children
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._buffer = b""
        self._turn = 0
        try:
            reply = self.ask({**order, "parent": os.getpid()}, deadline_s=START_S)
        except BaseException:
            self.kill()
            raise
        if "ready" not in reply:
            self.kill()
            raise WorkerDied(str(reply.get("failed", "no greeting"))[-4000:])

    def ask(self, message: Mapping[str, Any], *, deadline_s: float) -> dict[str, Any]:
        """Send a message and wait for its answer; WorkerLate after `deadline_s`, with the worker alive."""
        ends = time.monotonic() + deadline_s
        try:
            self._turn += 1
            told = {**message, "turn": self._turn, "deadline_s": deadline_s}
            self._write(json.dumps(told).encode() + b"\n", ends)
            reply = json.loads(self._read_line(ends))
        except WorkerLate:
            if self.process.poll() is None:
                raise
            # A child of the verifier held the pipe open, so that its end was never seen.
            raise WorkerDied("the worker process ended") from None
        except (OSError, ValueError) as error:
            raise WorkerDied(f"{type(error).__name__}: {error}"[:200]) from error
        if not isinstance(reply, dict):
            raise WorkerDied("the worker's answer is no object")
        if self._turn > 1 and reply.get("turn") != self._turn:
            raise WorkerDied("the worker answered out of turn")
        return reply

    def _write(self, data: bytes, ends: float) -> None:
        poller = select.poll()
        poller.register(self._in, select.POLLOUT)
        view = memoryview(data)
        while view:
            _wait(poller, ends)
            try:
                view = view[os.write(self._in, view) :]
            except BlockingIOError:
                continue

    def _read_line(self, ends: float) -> bytes:
        poller = select.poll()
        poller.register(self._out, select.POLLIN)
        while b"\n" not in self._buffer:
            _wait(poller, ends)
            chunk = os.read(self._out, 1 << 16)
            if not chunk:
                raise WorkerDied("the worker process ended")
            self._buffer += chunk
            if len(self._buffer) > MAX_REPLY:
                raise WorkerDied(f"the worker's answer is longer than {MAX_REPLY} bytes")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def kill(self) -> int:
        """Kill the process and its children, reap it, and return how it ended."""
        # An exit status of its own is waited for a moment: EOF on the pipe comes just before it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.05)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return status


def _wait(poller: select.poll, ends: float) -> None:
    left = ends - time.monotonic()
    if left <= 0 or not poller.poll(max(1, left * 1000)):
        raise WorkerLate
