"""Services that verifiers name -> running processes: started once, watched, started again, ended with us.

What a service is stands in services.py. A Lease is what a pool holds on the services of its verifier; the
process of a service is there as long as anybody in this process holds a lease on it.
"""

import atexit
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from verigrad.verifiers import interpreter, services
from verigrad.verifiers.services import GIVEN_UP, HEALTH, Service

MAX_RESTARTS = 5  # of a service that never lives for STEADY_S
STEADY_S = 600.0
LOOK_S = 0.1
HEALTH_EVERY_S = 10.0
HUNG_S = 120.0  # alive and without an answer to `GET /health`: killed, and started again
MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107
log = logging.getLogger(__name__)


REFUSES = "verigrad: "  # begins a service's last line, with status 2, about options that the user can mend


class ServiceUnavailable(OSError):
    """A service did not start; its own last line says why."""


class ServiceRefused(ValueError):
    """A service did not start because of its options; its own last line says which."""


class Lease:
    """The right to use some services; they are healthy when this is made."""

    def __init__(self, wanted: Sequence[Service]) -> None:
        """Start what is not running yet, and wait for it.

        ServiceUnavailable in one line when one fails, ServiceRefused when its options are to blame.
        """
        self._held: list[Keeper] = []
        try:
            for service in wanted:
                self._held.append(_taken(service))
            for keeper in self._held:
                keeper.wait_ready()
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> dict[str, str]:
        """Key -> path of the socket, for services.announce in another process."""
        return {keeper.service.key: keeper.address for keeper in self._held}

    def pids(self) -> list[int]:
        """The processes of the services now, 0 for one that is being started again."""
        return [keeper.pid for keeper in self._held]

    def close(self) -> None:
        """Give the services back; what nobody else holds ends."""
        held, self._held = self._held, []
        for keeper in held:
            _returned(keeper)


class Keeper:
    """One service: its folder with the socket, its process, and the thread that watches it."""

    def __init__(self, service: Service) -> None:
        self.service, self.num_holders, self.pid = service, 0, 0
        self.folder = _folder()
        self.address = str(self.folder / "socket")
        self.num_restarts = 0
        self._cwd = os.getcwd()
        self._closing = threading.Event()
        self._settled = threading.Event()  # healthy for the first time, or failed
        self._failure = ""
        services.announce({service.key: self.address})
        self._thread = threading.Thread(target=self._watch, name=f"service-{service.module}", daemon=True)
        self._thread.start()

    def wait_ready(self) -> None:
        """Return when it is healthy for the first time; ServiceUnavailable, ServiceRefused when never."""
        self._settled.wait()
        refused, at_fault, line = self._failure.partition(REFUSES)
        if at_fault and refused.startswith("ended with status 2"):
            raise ServiceRefused(line)
        if self._failure:
            raise ServiceUnavailable(f"the service {self.service.module} {self._failure}")

    def close(self) -> None:
        """End the process and everything it started."""
        self._closing.set()
        self._thread.join(20)
        services.forget({self.service.key: self.address})
        services.client.cache_clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _watch(self) -> None:
        """Start the process, and start it again when it dies, until it is closed or dies too often."""
        num_deaths = 0
        while not self._closing.is_set():
            try:
                process = self._started()
            except (OSError, ValueError) as error:  # options too long for a command line, no process left
                failure = f"cannot be started: {error}"
            else:
                try:
                    failure = self._until_ready(process)
                    if not failure:
                        self._settled.set()
                        since = time.monotonic()
                        failure = self._until_death(process)
                        num_deaths = 0 if time.monotonic() - since > STEADY_S else num_deaths
                finally:
                    self.pid = 0
                    _end(process)
            if self._closing.is_set():
                break
            num_deaths += 1
            if not self._settled.is_set() or num_deaths > MAX_RESTARTS:
                self._give_up(failure)
                break
            log.warning("the service %s %s; it is started again", self.service.module, failure)
            self.num_restarts += 1
            self._closing.wait(min(10.0, 0.2 * 2**num_deaths))
        self._settled.set()

    def _started(self) -> "subprocess.Popen[bytes]":
        Path(self.address).unlink(missing_ok=True)
        shim = interpreter.command("", "verigrad.verifiers.service_process")
        module = self.service.module
        run = [module] if module.endswith(".py") else ["-P", "-m", module]
        told = [self.address, json.dumps(dict(self.service.options))]
        with open(self.folder / "log.txt", "ab") as out:
            process = subprocess.Popen(
                [*shim, str(os.getpid()), sys.executable, *run, *told],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=self._cwd,
                env=_environment(self._cwd),
                start_new_session=True,
            )
        self.pid = process.pid
        return process

    def _until_ready(self, process: "subprocess.Popen[bytes]") -> str:
        """Wait for a healthy answer; what went wrong, or "" when it came."""
        ends = time.monotonic() + self.service.ready_s
        while not self._closing.is_set():
            if process.poll() is not None:
                return self._last_line(process.returncode)
            if Path(self.address).exists() and self._healthy(5.0):
                return ""
            if time.monotonic() > ends:
                return f"was not ready within {self.service.ready_s:g} s"
            self._closing.wait(LOOK_S)
        return "was closed"

    def _until_death(self, process: "subprocess.Popen[bytes]") -> str:
        answered = looked = time.monotonic()
        while not self._closing.wait(LOOK_S):
            if process.poll() is not None:
                return self._last_line(process.returncode)
            if time.monotonic() - looked < HEALTH_EVERY_S:
                continue
            if self._healthy(HEALTH_EVERY_S):
                answered = time.monotonic()
            looked = time.monotonic()
            if looked - answered > HUNG_S:
                return f"has not answered for {HUNG_S:g} s"
        return "was closed"

    def _healthy(self, timeout_s: float) -> bool:
        import httpx

        try:
            return services.client(self.address).get(HEALTH, timeout=timeout_s).status_code == 200
        except httpx.HTTPError:
            return False

    def _last_line(self, status: int) -> str:
        """How the process ended, with the last line of what it wrote."""
        with contextlib.suppress(OSError):
            text = (self.folder / "log.txt").read_bytes()[-20_000:].decode("utf-8", "replace")
            if lines := [line for line in text.splitlines() if line.strip()]:
                log.debug("the service %s wrote:\n%s", self.service.module, text)
                return f"ended with status {status}: {lines[-1].strip()[:500]}"
        return f"ended with status {status}"

    def _give_up(self, failure: str) -> None:
        self._failure = failure
        with contextlib.suppress(OSError):
            (self.folder / GIVEN_UP).write_text(failure)
        if self._settled.is_set():
            log.error("the service %s %s; it is not started again", self.service.module, failure)


_keepers: dict[str, Keeper] = {}
_lock = threading.Lock()


def running() -> dict[str, str]:
    """Key -> path of the socket of every service of this process."""
    with _lock:
        return {key: keeper.address for key, keeper in _keepers.items()}


def _taken(service: Service) -> Keeper:
    with _lock:
        if service.key not in _keepers:
            _keepers[service.key] = Keeper(service)
        keeper = _keepers[service.key]
        keeper.num_holders += 1
        return keeper


def _returned(keeper: Keeper) -> None:
    with _lock:
        keeper.num_holders -= 1
        if keeper.num_holders:
            return
        del _keepers[keeper.service.key]
    keeper.close()


def _close_all(owner: int) -> None:
    if os.getpid() != owner:  # a forked child's
        return
    with _lock:
        keepers = list(_keepers.values())
        _keepers.clear()
    for keeper in keepers:
        keeper.close()


atexit.register(_close_all, os.getpid())


def _folder() -> Path:
    """A folder that only this user can look into, with a path short enough for a socket."""
    folder = tempfile.mkdtemp(prefix="verigrad-")
    if len(os.fsencode(folder)) > MAX_SOCKET_PATH - len("/socket"):
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="verigrad-", dir="/tmp")
    return Path(folder)


def _environment(cwd: str) -> dict[str, str]:
    """Ours, without what vLLM's CPU build preloads; the child finds what we find, with threads of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return {**kept, "PYTHONPATH": interpreter.environment("", cwd=cwd)["PYTHONPATH"], "PYTHONUNBUFFERED": "1"}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the whole session and reap its leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
