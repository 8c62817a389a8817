"""Options -> a sandbox made of namespaces by bubblewrap, for machines without Docker; needs no root.

The box holds the machine's `/usr`, read-only, and the interpreter that runs us with pytest; nothing of
`/home`, `/root`, `/etc` or the environment. Inside, the same zygote as in a container, behind the wall of
sandboxes/zygote_namespace.py. Started by root, the box belongs to a user of its own that nobody else is.

What differs from a container: memory is counted four times a second instead of by the kernel, `cpus` is a
number of whole processors, and System V IPC and memfd are refused. docs/sandboxes.md lists it all.
"""

import importlib.metadata
import importlib.util
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from verigrad.sandboxes import zygote_seccomp
from verigrad.sandboxes.base import HOME, Backend, Sandbox, SandboxLost, SandboxUnavailable
from verigrad.sandboxes.zygote_client import PipeChannel, ZygoteSandbox, boot_command, boot_order

WALL = "verigrad.sandboxes.zygote_namespace:NamespaceWall"
SCRATCH = ("/tmp", "/var/tmp", "/dev/shm")  # inside the box
STAGE = "/mnt"  # in the view that root makes
PYTHON = "/opt/python"  # inside the box: the interpreter, when it is not below /usr
USER = 1000  # inside the box
TRY_S = 10.0  # how long bubblewrap may take to start something
END_S = 5.0  # how long the zygote may take to end by itself
CAPABILITIES = (
    "CAP_SYS_ADMIN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
)  # of the supervisor, in the box's namespace
UNSHARED = ("user", "pid", "net", "ipc", "uts", "cgroup-try")
SIZES = ("memory_mb", "disk_mb", "pids", "cpus")
ETC = {
    "passwd": f"root:x:0:0::/:/bin/false\nbox:x:{USER}:{USER}::{HOME}:/bin/sh\n"
    "nobody:x:65534:65534::/:/bin/false\n",
    "group": f"root:x:0:\nbox:x:{USER}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
ETC_OF_THE_MACHINE = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d")


Bwrap = subprocess.Popen[bytes]


class Bubblewrap(Backend):
    """Namespaces, seccomp and rlimits."""

    name = "bubblewrap"
    promises = (
        "own users, processes, network, IPC and files; no privileges, few system calls; read-only system; "
        "memory counted four times a second"
    )

    def unavailable(self, options: Mapping[str, Any]) -> str | None:
        """What is missing; tries whether bubblewrap can make a box here."""
        if sys.platform != "linux" or platform.machine() not in zygote_seccomp.ARCHITECTURES:
            known = " or ".join(zygote_seccomp.ARCHITECTURES)
            return f"it needs Linux on {known}, and this is {sys.platform} on {platform.machine()}"
        if not shutil.which("bwrap"):
            return "bwrap is not installed; apt-get install bubblewrap"
        if not Path("/usr/bin/g++").exists():
            return "the programs in it use the machine's g++, which is not there; apt-get install g++"
        if importlib.util.find_spec("pytest") is None:
            return "the programs in it use our pytest, which is not there; pip install pytest"
        return _why_no_box()

    def open(
        self,
        *,
        memory_mb: int = 1024,
        disk_mb: int = 64,
        pids: int = 128,
        cpus: float = 1.0,
        **unknown: Any,
    ) -> Sandbox:
        """A new box. The sizes are of the whole of it; `cpus` is rounded up to whole processors."""
        if unknown:
            raise ValueError(f"bubblewrap has no option {sorted(unknown)[0]!r}; it has {', '.join(SIZES)}")
        sizes = {"memory_mb": memory_mb, "disk_mb": disk_mb, "pids": pids, "cpus": math.ceil(cpus)}
        where = {"home": HOME, "scratch": list(SCRATCH)}
        channel = BubblewrapChannel()
        return ZygoteSandbox(self.name, channel, boot_order(WALL, {**where, **sizes}))


class BubblewrapChannel(PipeChannel):
    """A zygote in a box of its own; the box ends with it."""

    def __init__(self) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        try:
            with ExitStack() as opened:
                layout = Layout(opened)
                program = boot_command(layout.python)
                self.process = _start(program, layout, stdin=subprocess.PIPE, stderr=self.errors)
        except OSError as error:
            self.errors.close()
            raise SandboxLost(f"bubblewrap did not start: {error}") from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        super().__init__(self.process.stdin.fileno(), self.process.stdout.fileno())

    def last_words(self) -> str:
        """The last line of its standard error."""
        with suppress(OSError, ValueError):
            self.errors.seek(0)
            lines = self.errors.read()[-2000:].decode(errors="replace").split("\n")
            return next((line for line in reversed(lines) if line.strip()), "")
        return ""

    def close(self) -> None:
        """End of its standard input; everything is killed when that does not end it."""
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if stream:
                    stream.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # bwrap and process 1 of the box
            self.process.wait()
        self.errors.close()


class Layout:
    """What stands where in a box. Holds descriptors, which must stay open until bwrap has started.

    Root is taken off before the box is made, and the user who is left may not be able to pass `/root` to an
    interpreter below it: so root first makes a view of the machine in which everything needed lies in STAGE.
    """

    def __init__(self, opened: ExitStack) -> None:
        self.opened = opened
        self.files: list[int] = []
        self.staged: list[str] = []  # bwrap's words for the view that root makes
        self.is_root = os.geteuid() == 0
        base = Path(sys.base_prefix).resolve()
        self.base = base if not base.is_relative_to("/usr") else None  # to be shown apart from /usr
        inside = Path(PYTHON) if self.base else base
        ours, usual = (base / "bin" / name for name in (f"python3.{sys.version_info[1]}", "python3"))
        same = usual.exists() and usual.samefile(ours)
        self.python = str(inside / "bin" / (usual if same else ours).name)
        self.path = ":".join(dict.fromkeys((str(inside / "bin"), "/usr/local/bin", "/usr/bin", "/bin")))
        self.packages = str(inside / _site_packages().relative_to(base))

    def command(self, program: Sequence[str]) -> list[str]:
        """The command line that runs a program in the box."""
        box = [*self._box(), *program]
        if not self.is_root:
            return box
        uid = str(random.SystemRandom().randrange(1 << 30, 1 << 31))  # one that nobody has
        drop = [_tool("setpriv"), "--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps=-all", "--"]
        return [box[0], "--dev-bind", "/", "/", "--tmpfs", STAGE, *self.staged, "--", *drop, *box]

    def _box(self) -> list[str]:
        words = [_tool("bwrap"), "--as-pid-1", "--clearenv", *(f"--unshare-{name}" for name in UNSHARED)]
        words += ["--uid", str(USER), "--gid", str(USER), "--hostname", "box"]
        for name in CAPABILITIES:
            words += ["--cap-add", name]
        words += ["--setenv", "PATH", self.path, "--setenv", "LANG", "C.UTF-8", "--setenv", "HOME", HOME]
        words += ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path("/", name).is_symlink():
                words += ["--symlink", f"usr/{name}", f"/{name}"]
            elif Path("/", name).is_dir():
                words += ["--ro-bind", f"/{name}", f"/{name}"]
        if self.base:
            words += ["--ro-bind", self._seen(self.base), PYTHON]
            # Linked to its libpython by the path it was built for, it would take another one: the machine's.
            words += ["--setenv", "LD_LIBRARY_PATH", f"{PYTHON}/lib"]
        words += ["--tmpfs", self.packages]
        for path in pytest_files():
            words += ["--ro-bind", self._seen(path), f"{self.packages}/{path.name}"]
        words += ["--remount-ro", self.packages, "--perms", "0755", "--dir", "/etc"]
        for name, text in ETC.items():
            words += ["--perms", "0444", "--ro-bind-data", self._text(text), f"/etc/{name}"]
        for name in ETC_OF_THE_MACHINE:
            words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        words += ["--proc", "/proc", "--dev", "/dev"]
        for folder in (HOME, "/run", *(folder for folder in SCRATCH if not folder.startswith("/dev"))):
            words += ["--dir", folder]
        return [*words, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--"]

    def _seen(self, path: Path) -> str:
        """Where bwrap finds it."""
        if not self.is_root:
            return str(path)
        there = f"{STAGE}/{path.name}"
        self.staged += ["--ro-bind", str(path), there]
        return there

    def _text(self, text: str) -> str:
        read, write = os.pipe2(os.O_CLOEXEC)
        os.write(write, text.encode())  # far less than a pipe holds
        os.close(write)
        self.opened.callback(os.close, read)
        self.files.append(read)
        return str(read)


def pytest_files() -> list[Path]:
    """Folders and modules of pytest and of all that it needs, as they lie in our own site-packages."""
    waiting, seen, found = ["pytest"], set(), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on other machines only
        waiting += [re.split(r"[^\w.-]", need)[0] for need in package.requires or () if ";" not in need]
        for file in package.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not top.endswith((".pth", ".dist-info")):
                found.add(Path(str(package.locate_file(top))))
    return sorted(found)


def _start(program: Sequence[str], layout: Layout, *, stdin: int, stderr: IO[bytes] | int) -> Bwrap:
    """The program in a new box, with nothing of our environment."""
    return subprocess.Popen(
        layout.command(program),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        pass_fds=layout.files,
        env={},
        cwd="/",
        start_new_session=True,
    )


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        package = {"bwrap": "bubblewrap", "setpriv": "util-linux"}[name]
        raise SandboxUnavailable(f"bubblewrap: {name} is not installed; apt-get install {package}")
    return path


def _why_no_box() -> str | None:
    with ExitStack() as opened:
        layout = Layout(opened)
        program = [layout.python, "-I", "-S", "-c", "import json"]
        try:
            trial = _start(program, layout, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        except OSError as error:
            return f"bwrap cannot be started: {error.strerror}"
    try:
        said = trial.communicate(timeout=TRY_S)[0].decode(errors="replace").strip()
    except subprocess.TimeoutExpired:
        os.killpg(trial.pid, signal.SIGKILL)
        trial.communicate()
        return f"bwrap made no box within {TRY_S:g} s"
    if trial.returncode == 0:
        return None
    return (
        f"bwrap can make no box here ({said[-200:]}); it needs user namespaces: sysctl "
        "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, or a container "
        "that allows them"
    )


def _site_packages() -> Path:
    """Where the interpreter looks for packages: a folder that is there."""
    base = Path(sys.base_prefix).resolve()
    version = f"python3.{sys.version_info[1]}"
    for name in (
        f"lib/{version}/site-packages",
        "lib/python3/dist-packages",
        f"lib64/{version}/site-packages",
    ):
        if (base / name).is_dir():
            return base / name
    raise SandboxUnavailable(f"bubblewrap: the Python in {base} has no folder for packages")
