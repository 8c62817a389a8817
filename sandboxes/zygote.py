"""Framed requests on standard input -> programs run, files handled, framed replies on standard output.

The supervisor of a box: process 1 where the box has processes of its own. Runs inside the box with the
standard library alone, sent there as source by sandboxes/zygote_client.py, so that it always fits this
version. Frames are two lengths, a JSON object and bytes. Every request but `send` has one reply; requests
come one at a time. When standard input ends, so does the supervisor, and the box with it: a client that was
killed leaves nothing behind.

What differs from box to box stands in a `Wall` (sandboxes/zygote_walls.py, which documents the hooks).
"""

import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from typing import Any

from verigrad.sandboxes import zygote_files
from verigrad.sandboxes.zygote_files import Fault
from verigrad.sandboxes.zygote_program import CANNOT_RUN, LENGTH, template
from verigrad.sandboxes.zygote_run import CHUNK, Run
from verigrad.sandboxes.zygote_walls import Dirty, Wall

FRAME = struct.Struct("!II")  # lengths of the JSON object and of the bytes after it
TICK_S = 0.25  # how often a running command's totals are looked at
MAX_SPARES_LOST = 10  # processes forked ahead of time that ended while they waited, between two commands
# How long killed processes may take to be gone: on a machine under load, a fork bomb must not become a lost
# sandbox, which would leave the attempt undecided.
SWEEP_S = 20.0


def main(options: Mapping[str, Any]) -> None:
    """Serve until standard input ends. `options`: wall as "module:Class", and its keyword arguments."""
    module, _, name = options["wall"].partition(":")
    wall: Wall = getattr(importlib.import_module(module), name)(**options["wall_options"])
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    wall.boot()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        template(theirs, wall)
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the template keeps Python's own: programs inherit it
    supervisor = Supervisor(wall, ours, pid)
    try:
        supervisor.serve()
    finally:
        supervisor.end()


class Supervisor:
    """Answers requests; owns the clock, the pipes and the killing."""

    def __init__(self, wall: Wall, control: socket.socket, template_pid: int) -> None:
        self.wall, self.control, self.template_pid = wall, control, template_pid
        self.inbox = bytearray()
        self.run: Run | None = None
        self.waits: float | None = None  # until when a `receive` waits for output
        self.finishing = False  # a `finish` waits for the end
        self.orders: socket.socket | None = None  # of the process that was forked ahead of time
        self.spare_pid = self.num_spares_lost = 0

    def serve(self) -> None:
        """Until standard input ends."""
        self.fork_ahead()
        self.known()
        self.say({"ready": sys.version.split()[0]})
        while True:
            for request, blob in self.frames():
                self.answer(request, blob)
            if not self.poll():
                return

    def end(self) -> None:
        """Kill what runs, and leave nothing behind."""
        with suppress(Dirty):
            if self.run:
                self.kill(self.run)
            os.kill(self.template_pid, signal.SIGKILL)
            if self.spare_pid:
                with suppress(ProcessLookupError):
                    os.kill(self.spare_pid, signal.SIGKILL)
        self.wall.leave()

    def frames(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Whole requests that have come in."""
        while len(self.inbox) >= FRAME.size:
            head, body = FRAME.unpack_from(self.inbox)
            whole = FRAME.size + head + body
            if len(self.inbox) < whole:
                return
            request = json.loads(self.inbox[FRAME.size : FRAME.size + head])
            blob = bytes(self.inbox[FRAME.size + head : whole])
            del self.inbox[:whole]
            yield request, blob

    def say(self, message: Mapping[str, Any], blob: bytes = b"") -> None:
        """Send one reply."""
        head = json.dumps(message).encode()
        rest = memoryview(FRAME.pack(len(head), len(blob)) + head + blob)
        while rest:
            rest = rest[os.write(1, rest) :]

    def answer(self, request: Mapping[str, Any], blob: bytes) -> None:
        """One request; what a program left in the way is `fault`, a bad request is `invalid`."""
        try:
            getattr(self, f"do_{request['op']}")(request, blob)
        except Fault as fault:
            self.say({"fault": str(fault)})
        except ValueError as error:
            self.say({"invalid": str(error)})

    def poll(self) -> bool:
        """Wait for the next thing to happen and deal with it; False when standard input has ended."""
        poller = select.poll()
        poller.register(0, select.POLLIN)
        poller.register(self.control, select.POLLIN)
        run = self.run
        if run and run.status is None:
            for file in (run.stdout, run.stderr):
                if file >= 0:
                    poller.register(file, select.POLLIN)
            if run.stdin >= 0 and (run.todo or run.closing):
                poller.register(run.stdin, select.POLLOUT)
        happened = dict(poller.poll(self.patience_ms()))
        if 0 in happened:
            chunk = os.read(0, CHUNK)
            if not chunk:
                return False
            self.inbox += chunk
        if run and run.status is None:
            self.look_after(run, happened)
        if self.control.fileno() in happened:
            self.hear_template()
        self.settle()
        return True

    def patience_ms(self) -> float | None:
        """How long nothing needs to be done."""
        now = time.monotonic()
        until = [] if self.waits is None else [self.waits]
        if self.run and self.run.status is None:
            until += [self.run.ends, now + TICK_S]
        return max(0.0, min(until) - now) * 1000 + 1 if until else None

    def look_after(self, run: Run, happened: Mapping[int, int]) -> None:
        """Move its input and output, and kill it when it is over a limit."""
        if run.stdin in happened:
            run.feed()
        for name in ("stdout", "stderr"):
            file = getattr(run, name)
            if file in happened and not run.drain(file):
                os.close(file)
                setattr(run, name, -1)
        if run.cause:
            self.kill(run)  # again: it may have been between two users the first time
        elif run.num_out > run.limits["output_bytes"]:
            self.stop(run, "output", f"killed after {run.limits['output_bytes']} bytes of output")
        elif time.monotonic() >= run.ends:
            self.stop(run, "wall_time", f"killed at {run.limits['wall_s']:g} s")
        elif over := self.wall.over():
            self.stop(run, over, f"the sandbox ran out of {over}")
        self.reap()

    def stop(self, run: Run, cause: str, detail: str) -> None:
        """Kill a command, and say why."""
        run.cause, run.detail = cause, detail
        self.kill(run)

    def kill(self, run: Run) -> None:
        """SIGKILL for all of a command."""
        self.wall.kill(run.pid, {os.getpid(), self.template_pid, self.spare_pid})

    def hear_template(self) -> None:
        """A process was forked, or has ended."""
        message = self.control.recv(4096)
        if not message:
            raise Dirty("the template is gone")
        news = json.loads(message)
        if "pid" in news:
            self.spare_pid = news["pid"]
        elif self.run and news["ended"] == self.run.pid:
            self.ended(self.run, news)
        elif news["ended"] == self.spare_pid:
            self.num_spares_lost += 1
            if self.num_spares_lost > MAX_SPARES_LOST:
                raise Dirty("processes end before they have a job")
            self.fork_ahead()

    def ended(self, run: Run, news: Mapping[str, Any]) -> None:
        """The main process has ended: kill the rest, take what it wrote last."""
        run.status, run.cpu_s = news["status"], news["cpu_s"]
        run.seconds = time.monotonic() - run.started
        self.sweep(run)
        for file in (run.stdout, run.stderr):
            before = -1
            while file >= 0 and before < run.num_out:
                before = run.num_out
                run.drain(file)
        if os.WIFEXITED(run.status) and os.WEXITSTATUS(run.status) == CANNOT_RUN and not self.was_ready():
            why = bytes(run.err[-300:]).decode(errors="replace").strip()
            raise Dirty(f"a process could not be made ready for its program ({why})")
        if not run.cause and run.num_out > run.limits["output_bytes"]:
            run.cause, run.detail = "output", f"more than {run.limits['output_bytes']} bytes of output"
        run.close()

    def was_ready(self) -> bool:
        """Whether the command's process got as far as its program: else its failure is ours."""
        assert self.orders is not None
        self.orders.setblocking(False)
        try:
            return bool(self.orders.recv(1))
        except OSError:  # it never read its job
            return False

    def sweep(self, run: Run) -> None:
        """Kill until nothing of the command is left. Raises Dirty when something stays."""
        known = {os.getpid(), self.template_pid, self.spare_pid}
        ends, pause = time.monotonic() + SWEEP_S, 0.0002
        self.kill(run)
        while self.reap() or self.wall.left(known):
            if time.monotonic() > ends:
                raise Dirty("processes of the program cannot be killed")
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
            self.kill(run)

    def reap(self) -> bool:
        """Take the exit status of processes whose parent died; whether there were some."""
        found = False
        with suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                if pid == self.template_pid:
                    raise Dirty("the template is gone")
                found = True
        return found

    def settle(self) -> None:
        """Answer a `receive` or a `finish` that can be answered now."""
        run = self.run
        if run is None:
            return
        if self.waits is not None and (run.out or run.status is not None or time.monotonic() >= self.waits):
            self.waits = None
            data = bytes(run.out)
            run.out.clear()
            self.say({"ended": run.status is not None and not data}, data)
        if self.finishing and run.status is not None:
            self.run, self.finishing = None, False
            self.say(*run.reply())
            self.fork_ahead()

    def fork_ahead(self) -> None:
        """Ask the template for the next command's process."""
        if self.orders:
            self.orders.close()
        self.orders, theirs = socket.socketpair()
        socket.send_fds(self.control, [b"fork"], [theirs.fileno()])
        theirs.close()
        self.spare_pid = 0

    def known(self) -> Set[int]:
        """Our own processes, the one forked ahead of time among them."""
        while not self.spare_pid:
            self.hear_template()
        return {os.getpid(), self.template_pid, self.spare_pid}

    # -- requests ------------------------------------------------------------------------------------------

    def do_exec(self, request: Mapping[str, Any], blob: bytes) -> None:
        """Run a command to its end; the bytes are its standard input."""
        self.do_start(request, blob, quiet=True)
        self.do_finish(request, b"")

    def do_start(self, request: Mapping[str, Any], blob: bytes, *, quiet: bool = False) -> None:
        """Begin a command."""
        if self.run:
            raise ValueError("a command is running already; finish it first")
        self.known()
        assert self.orders is not None
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        ours = (pipes[0][1], pipes[1][0], pipes[2][0])
        theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
        for file in ours:
            os.set_blocking(file, False)
        if self.wall.owner:
            for file in theirs:
                os.fchown(file, *self.wall.owner)  # so that /dev/stdin can be opened
        job = {name: request[name] for name in ("command", "env", "limits")}
        body = json.dumps({**job, "ticket": self.wall.ticket()}).encode()
        pid, self.spare_pid, self.num_spares_lost = self.spare_pid, 0, 0
        self.run = Run(pid, ours, request)
        try:
            socket.send_fds(self.orders, [LENGTH.pack(len(body))], theirs)
            self.orders.sendall(body)
        except OSError as error:
            raise Dirty("the process forked ahead of time is gone") from error
        for file in theirs:
            os.close(file)
        self.run.todo += blob
        self.run.feed()
        if not quiet:
            self.say({"started": pid})

    def do_send(self, request: Mapping[str, Any], blob: bytes) -> None:
        """More standard input; no reply."""
        if self.run:
            self.run.todo += blob
            self.run.feed()

    def do_receive(self, request: Mapping[str, Any], blob: bytes) -> None:
        """Standard output that came since the last time."""
        self.running()
        self.waits = time.monotonic() + request["timeout_s"]
        self.settle()

    def do_finish(self, request: Mapping[str, Any], blob: bytes) -> None:
        """Close its standard input and wait for its end."""
        run = self.running()
        run.closing = self.finishing = True
        run.feed()
        self.settle()

    def do_kill(self, request: Mapping[str, Any], blob: bytes) -> None:
        """End it now."""
        run = self.running()
        if run.status is None:
            run.todo.clear()
            self.kill(run)
        self.do_finish(request, b"")

    def running(self) -> Run:
        """The command that a request is about."""
        if not self.run:
            raise ValueError("no command is running")
        return self.run

    def do_write(self, request: Mapping[str, Any], blob: bytes) -> None:
        """Put a file below HOME."""
        mode = 0o700 if request["executable"] else 0o600
        zygote_files.write(self.wall.home, request["parts"], blob, mode=mode, owner=self.wall.owner)
        self.say({})

    def do_read(self, request: Mapping[str, Any], blob: bytes) -> None:
        """A file below HOME."""
        parts, max_bytes = request["parts"], request["max_bytes"]
        self.say({}, zygote_files.read(self.wall.home, parts, max_bytes=max_bytes))

    def do_save(self, request: Mapping[str, Any], blob: bytes) -> None:
        """Files and folders below HOME as an archive."""
        if self.run:
            raise ValueError("a command is running; finish it before its files are saved")
        self.say({}, zygote_files.save(self.wall.home, request["roots"], max_bytes=request["max_bytes"]))

    def do_load(self, request: Mapping[str, Any], blob: bytes) -> None:
        """Unpack an archive into HOME."""
        zygote_files.load(self.wall.home, blob, owner=self.wall.owner)
        self.say({})

    def do_reset(self, request: Mapping[str, Any], blob: bytes) -> None:
        """Kill, wipe, prove clean."""
        if self.run:
            self.finishing = False
            self.waits = None
            self.kill(self.run)
            while self.run.status is None:
                self.hear_template()
                self.kill(self.run)
            self.run = None
            self.fork_ahead()
        if self.wall.left(self.known()):
            raise Dirty("a process is left after its command")
        self.wall.wipe()
        self.say({})
