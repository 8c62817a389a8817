"""Options -> a sandbox in a container of its own: Docker's walls outside, a user per program inside.

Outside: no network, a read-only root, small temporary file systems, no capability but the five that the
zygote needs, no new privileges, the engine's seccomp filter, limits on memory, processes and processors,
nothing of the host mounted, no log. Inside: sandboxes/zygote.py as process 1, which runs each program as a
user of its own. The container ends when its standard input does, so a client that was killed leaves none
behind; what an engine that died leaves is removed by the next client on the same machine.

Rootless Docker and Podman: `docker_host` is their socket. gVisor: `runtime = "runsc"`.
"""

import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from verigrad.sandboxes.base import HOME, Backend, Sandbox, SandboxLost, SandboxUnavailable
from verigrad.sandboxes.images import build
from verigrad.sandboxes.zygote_client import Channel, ZygoteSandbox, boot_command, boot_order

WALL = "verigrad.sandboxes.zygote_walls:UidWall"
LABEL = "verigrad.sandbox"  # on every container of ours; its value is the process that owns it
CAPABILITIES = ("SETUID", "SETGID", "CHOWN", "DAC_OVERRIDE", "FOWNER")
SCRATCH = ("/tmp", "/dev/shm")  # what a program can write to besides HOME
INODES = 16384  # of each file system that a program can write to, so that wiping stays short
SHM_MB = 16
UIDS = (10_000, 60_000)  # programs' users; rootless engines have 65,536
PATH = "/usr/local/bin:/usr/bin:/bin"
QUICK_S = 0.9  # how long `unavailable` waits for the engine
ENGINE_S = 60.0  # how long the engine may take to make, start or remove a container
STREAM = struct.Struct("!BxxxI")  # Docker's header before each piece of a container's output
STDERR = 2
WORDS = 4000  # bytes of standard error that are kept

_swept: set[str] = set()  # engines whose leftovers were looked for by this process


class Container(Backend):
    """Hardened Docker containers."""

    name = "container"
    promises = "a hardened container for each sandbox, a user of its own for each program"

    def unavailable(self, options: Mapping[str, Any]) -> str | None:
        """Why not: no engine answers, it lacks the runtime, or there is no image yet."""
        image = options.get("image") or build.image_name()
        try:
            with engine(options.get("docker_host", ""), timeout_s=QUICK_S) as api:
                if runtime := options.get("runtime"):
                    known = sorted(api.info().get("Runtimes") or {})
                    if runtime not in known:
                        return f"the engine has no runtime {runtime!r}, only {', '.join(known)}; install it"
                if not has_image(api, image):
                    how = (
                        "pull or build it"
                        if options.get("image")
                        else "run `verigrad sandboxes --build` once"
                    )
                    return f"there is no image {image}; {how}"
        except (SandboxUnavailable, SandboxLost) as error:
            return str(error)
        return None

    def open(self, **options: Any) -> Sandbox:
        """A new container; the options are those of `_open`."""
        return _open(**options)


def _open(
    *,
    image: str = "",
    runtime: str = "",
    docker_host: str = "",
    memory_mb: int = 1024,
    disk_mb: int = 64,
    pids: int = 128,
    cpus: float = 1.0,
    trusted: bool = False,
) -> Sandbox:
    """A new container. `disk_mb` is the size of HOME, and again of /tmp; both come on top of `memory_mb`.

    `trusted` is a permission that nothing here needs.
    """
    with engine(docker_host, timeout_s=ENGINE_S) as api:
        if docker_host not in _swept:
            _swept.add(docker_host)
            sweep(api)
        # Files count as memory: without room of their own, a program that fills HOME would take the zygote's.
        memory = (memory_mb + 2 * disk_mb + SHM_MB) << 20
        limits = {
            "mem_limit": memory,
            "memswap_limit": memory,
            "pids_limit": pids,
            "nano_cpus": int(cpus * 1e9),
            "runtime": runtime or None,
            "tmpfs": tmpfs(disk_mb),
        }
        made = api.create_container(
            image=image or build.image_name(),
            entrypoint=boot_command("python3"),
            command=[],
            user="0:0",
            hostname="sandbox",
            working_dir="/",
            stdin_open=True,
            network_disabled=True,
            environment={"PATH": PATH, "LANG": "C.UTF-8"},
            labels={LABEL: owner()},
            host_config=host_config(api, limits),
        )
    channel = ContainerChannel(docker_host, made["Id"])
    first, last = UIDS
    wall = {
        "home": HOME,
        "scratch": SCRATCH,
        "first_uid": first + secrets.randbelow(last - first),
        "last_uid": last,
    }
    try:
        channel.connect()
        return ZygoteSandbox("container", channel, boot_order(WALL, wall), start_s=ENGINE_S)
    except BaseException:
        channel.close()
        raise


def host_config(api: Any, limits: Mapping[str, Any]) -> Any:
    """What the container may do on the host: as good as nothing."""
    from docker.types import LogConfig

    return api.create_host_config(
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        cap_add=list(CAPABILITIES),
        security_opt=["no-new-privileges"],
        ipc_mode="private",
        log_config=LogConfig(type="none"),
        auto_remove=True,
        init=False,
        privileged=False,
        **limits,
    )


def tmpfs(disk_mb: int) -> dict[str, str]:
    """The file systems that a program can write to."""
    common = f"nosuid,nodev,nr_inodes={INODES}"
    return {
        HOME: f"rw,exec,{common},size={disk_mb}m,mode=0700",
        "/tmp": f"rw,exec,{common},size={disk_mb}m,mode=1777",
        "/dev/shm": f"rw,noexec,{common},size={SHM_MB}m,mode=1777",
    }


class ContainerChannel(Channel):
    """Standard input and output of a container, over the engine's attach connection."""

    def __init__(self, docker_host: str, container: str) -> None:
        self.docker_host, self.container = docker_host, container
        self._attached: Any = None  # the engine's client whose connection we took over
        self._socket: socket.socket | None = None
        self._raw = bytearray()  # as it came, with Docker's headers
        self._errors = bytearray()

    def connect(self) -> None:
        """Attach, then start, so that nothing is missed."""
        with engine(self.docker_host, timeout_s=ENGINE_S, keep=True) as api:
            self._attached = api
            asked = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            stream = api.attach_socket(self.container, params=asked)
            self._socket = getattr(stream, "_sock", stream)
        with engine(self.docker_host, timeout_s=ENGINE_S) as api:
            api.start(self.container)

    def send(self, data: bytes, *, ends: float) -> None:
        """Write all of it."""
        connection = self._open_socket()
        try:
            connection.settimeout(max(0.001, ends - time.monotonic()))
            connection.sendall(data)
        except OSError as error:
            raise SandboxLost(
                f"the container takes no more requests ({error}). {self.last_words()}"
            ) from error

    def receive(self, *, ends: float) -> bytes:
        """What it wrote to standard output."""
        connection = self._open_socket()
        while True:
            if data := self._unwrapped():
                return data
            try:
                connection.settimeout(max(0.001, ends - time.monotonic()))
                chunk = connection.recv(1 << 18)
            except TimeoutError as error:
                raise SandboxLost("the container does not answer") from error
            except OSError as error:
                raise SandboxLost(f"the connection to the container broke ({error})") from error
            if not chunk:
                raise SandboxLost(f"the container has ended. {self.last_words()}")
            self._raw += chunk

    def last_words(self) -> str:
        """The last line of its standard error."""
        lines = self._errors.decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Let go of the connection first: an engine with output to deliver does not get to the removal."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                self._socket.close()
            self._socket = None
        if self._attached is not None:
            with suppress(Exception):
                self._attached.close()
            self._attached = None
        # Gone already, going, or its engine is down: then whoever comes next sweeps it away.
        with suppress(SandboxLost, SandboxUnavailable), engine(self.docker_host, timeout_s=ENGINE_S) as api:
            api.remove_container(self.container, force=True, v=True)

    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise SandboxLost("this container was closed")
        return self._socket

    def _unwrapped(self) -> bytes:
        """Whole pieces of standard output that have come, joined."""
        found = bytearray()
        while len(self._raw) >= STREAM.size:
            kind, size = STREAM.unpack_from(self._raw)
            end = STREAM.size + size
            if len(self._raw) < end:
                break
            piece = self._raw[STREAM.size : end]
            del self._raw[:end]
            if kind == STDERR:
                self._errors = (self._errors + piece)[-WORDS:]
            else:
                found += piece
        return bytes(found)


@contextmanager
def engine(docker_host: str = "", *, timeout_s: float, keep: bool = False) -> Iterator[Any]:
    """The engine's low-level client; SandboxUnavailable without engine or image, SandboxLost for the rest."""
    import docker
    import requests

    where = docker_host or os.environ.get("DOCKER_HOST") or "its usual socket"
    api = None
    try:
        settings = docker.utils.kwargs_from_env()
        if docker_host:
            settings["base_url"] = docker_host
        api = docker.APIClient(version="auto", timeout=timeout_s, **settings)
        yield api
    except docker.errors.ImageNotFound as error:
        raise SandboxUnavailable(
            f"container: {error.explanation}; run `verigrad sandboxes --build`"
        ) from error
    except docker.errors.APIError as error:
        raise SandboxLost(f"the Docker engine at {where} refused: {error.explanation}") from error
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        if api is None:
            raise SandboxUnavailable(
                f"no Docker engine answered at {where}; start it, or set sandbox.docker_host or DOCKER_HOST "
                f"({build.one_line(error)})"
            ) from error
        raise SandboxLost(f"the Docker engine at {where} failed ({build.one_line(error)})") from error
    finally:
        if api is not None and not keep:
            api.close()


def has_image(api: Any, name: str) -> bool:
    """Whether the engine has an image of that name."""
    import docker

    try:
        api.inspect_image(name)
    except docker.errors.ImageNotFound:
        return False
    return True


def sweep(api: Any) -> None:
    """Remove containers whose owner was a process of this machine that is gone."""
    for row in api.containers(all=True, filters={"label": LABEL}):
        if is_dead(row["Labels"].get(LABEL, "")):
            with suppress(Exception):  # another process sweeps, too
                api.remove_container(row["Id"], force=True, v=True)


def owner() -> str:
    """This process, so that it can be told from every other on every machine."""
    return json.dumps([*_machine(), os.getpid(), _start_of(os.getpid())])


def is_dead(label: str) -> bool:
    """Whether the process so labelled can be known, and is gone."""
    try:
        *machine, pid, start = json.loads(label)
    except ValueError:
        return False
    return bool(machine == _machine() and _start_of(int(pid)) != start)


def _machine() -> list[str]:
    """This boot of this machine, and which processes can be seen."""
    return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]


def _start_of(pid: int) -> str:
    """When the process started, in the kernel's ticks; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
