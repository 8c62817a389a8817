"""A SandboxFusion server's address -> sandboxes on it, through its documented HTTP API (POST /run_code).

One request per command: the files of HOME travel there and back with each. What this cannot promise, because
the server decides it: any wall between programs and the server itself (its default is `isolation: none`), the
network, and how many processes a program starts. Programs find HOME as their working folder, not as `/box`;
links do not survive a command; a program cannot be talked to while it runs. docs/adapters.md has the list.
"""

import base64
import io
import json
import posixpath
import tarfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verigrad.sandboxes.base import (
    HOME,
    Backend,
    ExecResult,
    Limits,
    Process,
    ProgramFault,
    Sandbox,
    SandboxLost,
    SandboxUnavailable,
)

DRIVER = Path(__file__).with_name("sandbox_fusion_driver.py")
GRACE_S = 15.0  # for the driver to unpack, kill and pack, on top of a command's wall time
PING_S = 3.0
STATUSES = ("exited", "signalled", "wall_time", "cpu_time", "output")
OPTIONS = {"base_url", "headers", "disk_mb", "memory_mb"}


class SandboxFusion(Backend):
    """Sandboxes on a SandboxFusion server."""

    name = "sandbox_fusion"
    promises = "what the SandboxFusion server is set up to hold; its default holds nothing"

    def unavailable(self, options: Mapping[str, Any]) -> str | None:
        """Why the server cannot be used: no address, or no answer from it. ValueError for a wrong option."""
        if unknown := sorted(set(options) - OPTIONS):
            raise ValueError(
                f"sandbox_fusion has no option {unknown[0]!r}; it has {', '.join(sorted(OPTIONS))}"
            )
        url = options.get("base_url")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            return f"base_url = {url!r}; set sandbox.options.base_url, e.g. 'http://localhost:8080'"
        try:
            _fetch(f"{url.rstrip('/')}/v1/ping", None, dict(options.get("headers", {})), timeout_s=PING_S)
        except OSError as error:
            return f"no SandboxFusion server answers at {url} ({error}); start it, or correct base_url"
        return None

    def open(self, **options: Any) -> Sandbox:
        """A sandbox with an empty HOME. SandboxUnavailable when the server does not answer."""
        if reason := self.unavailable(options):
            raise SandboxUnavailable(f"sandbox_fusion: {reason}")
        return RemoteSandbox(**options)


class RemoteSandbox(Sandbox):
    """HOME as a mapping on this side; it is a folder only while a command runs."""

    backend = "sandbox_fusion"

    def __init__(
        self,
        *,
        base_url: str,
        headers: Mapping[str, str] | None = None,
        disk_mb: int = 64,
        memory_mb: int = -1,
    ) -> None:
        """`memory_mb`: what the server is asked to hold a whole command to; -1 is its own limit."""
        self.url, self.headers = base_url.rstrip("/"), dict(headers or {})
        self.disk_bytes, self.memory_mb = disk_mb << 20, memory_mb
        self.files: dict[str, tuple[bytes, int]] = {}  # path below HOME -> content, mode
        self.folders: set[str] = set()
        self.closed = False

    def exec(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecResult:
        """One request. SandboxLost for an unreachable server, and for one that reports its own failure."""
        limits = limits or Limits()
        job = {
            "command": list(command),
            "stdin": base64.b64encode(stdin).decode(),
            "env": dict(env or {}),
            "limits": asdict(limits),
            "state_bytes": self.disk_bytes,
        }
        sent = {"job.json": json.dumps(job).encode(), "state.tar": self.save(max_bytes=self.disk_bytes)}
        request = {
            "language": "bash",
            "code": "exec python3 -I driver.py >/dev/null 2>&1",
            "run_timeout": limits.wall_s + GRACE_S,
            "memory_limit_MB": self.memory_mb,
            "files": {
                name: base64.b64encode(data).decode()
                for name, data in {**sent, "driver.py": DRIVER.read_bytes()}.items()
            },
            "fetch_files": ["result.json", "state.tar"],
        }
        reply = self._ask(request, timeout_s=limits.wall_s + 2 * GRACE_S)
        result = _result(reply)
        self._replace(base64.b64decode(reply["files"].get("state.tar", "")))
        return result

    def _ask(self, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        if self.closed:
            raise SandboxLost("this sandbox is closed")
        body = json.dumps(request).encode()
        try:
            reply = json.loads(_fetch(f"{self.url}/run_code", body, self.headers, timeout_s=timeout_s))
        except (OSError, ValueError) as error:
            raise SandboxLost(f"the SandboxFusion server at {self.url} failed: {error}"[:500]) from error
        if not isinstance(reply, dict) or reply.get("status") not in ("Success", "Failed"):
            said = reply.get("message", "") if isinstance(reply, dict) else ""
            raise SandboxLost(f"the SandboxFusion server reports a failure of its own: {said}"[:500])
        if not isinstance(reply.get("files"), dict) or "result.json" not in reply["files"]:
            # Killed with what it ran, by the server or by the program: nothing can be said of either.
            raise SandboxLost("the command's driver ended without a result on the SandboxFusion server")
        return reply

    def start(
        self,
        command: Sequence[str],
        *,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Not possible over this API: SandboxUnavailable."""
        raise SandboxUnavailable("sandbox_fusion runs a command to its end; it cannot be talked to meanwhile")

    def write_file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """As `Sandbox.write_file`."""
        name = _below_home(path)
        above = [str(folder) for folder in list(Path(name).parents)[:-1]]
        if name in self.folders or any(folder in self.files for folder in above):
            raise ProgramFault(f"{path}: a file or folder is in the way")
        self.folders.update(above)
        self.files[name] = (bytes(data), 0o755 if executable else 0o644)

    def read_file(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        """As `Sandbox.read_file`; a link is a missing file."""
        name = _below_home(path)
        if name not in self.files:
            raise ProgramFault(f"{path}: no such regular file")
        data = self.files[name][0]
        if len(data) > max_bytes:
            raise ProgramFault(f"{path}: {len(data)} bytes, more than {max_bytes}")
        return data

    def save(self, paths: Sequence[str] = (".",), *, max_bytes: int = 16 << 20) -> bytes:
        """As `Sandbox.save`."""
        wanted = [_below_home(path, whole=True) for path in paths]

        def asked(name: str) -> bool:
            return any(top == "." or name == top or name.startswith(f"{top}/") for top in wanted)

        files = {name: held for name, held in sorted(self.files.items()) if asked(name)}
        if (total := sum(len(data) for data, _ in files.values())) > max_bytes:
            raise ProgramFault(f"the files hold {total} bytes, more than {max_bytes}")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in sorted(folder for folder in self.folders if asked(folder)):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            for name, (data, mode) in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), mode
                archive.addfile(entry, io.BytesIO(data))
        return packed.getvalue()

    def load(self, archive: bytes) -> None:
        """As `Sandbox.load`."""
        files, folders = _unpacked(archive, self.disk_bytes)
        self.files.update(files)
        self.folders.update(folders)

    def _replace(self, archive: bytes) -> None:
        self.files, self.folders = _unpacked(archive, self.disk_bytes) if archive else ({}, set())

    def reset(self) -> None:
        """HOME is empty again. Nothing runs between commands, as far as the server keeps its word."""
        self.files, self.folders = {}, set()

    def close(self) -> None:
        """Nothing is left on the server."""
        self.reset()
        self.closed = True


def _fetch(url: str, body: bytes | None, headers: Mapping[str, str], *, timeout_s: float) -> bytes:
    more = {"Content-Type": "application/json"} if body is not None else {}
    request = urllib.request.Request(url, data=body, headers={**headers, **more})
    with urllib.request.urlopen(request, timeout=timeout_s) as reply:
        read: bytes = reply.read()
        return read


def _result(reply: Mapping[str, Any]) -> ExecResult:
    """What the driver wrote; a program of its own uid could have written it, so each field is checked."""
    try:
        row = json.loads(base64.b64decode(reply["files"]["result.json"]))
        if row["status"] not in STATUSES:
            raise ValueError(f"status {row['status']!r}")
        code, seconds = row["exit_code"], max(0.0, float(row["seconds"]))
        if (row["status"] == "exited") != (type(code) is int):
            raise ValueError(f"exit code {code!r}")
        out, err = base64.b64decode(row["out"]), base64.b64decode(row["err"])
        detail = str(row.get("detail", ""))[:200]
        if row["status"] in ("wall_time", "cpu_time"):
            detail = f"killed after {seconds:.1f} s"
        return ExecResult(row["status"], code, out, err, seconds, int(row["signal"]), detail)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SandboxLost(f"the driver's result cannot be read: {error}"[:300]) from error


def _unpacked(archive: bytes, most: int) -> tuple[dict[str, tuple[bytes, int]], set[str]]:
    """Regular files and folders of an archive that nobody trusts, by their names below HOME."""
    files: dict[str, tuple[bytes, int]] = {}
    folders: set[str] = set()
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
            for entry in opened:
                name = posixpath.normpath(entry.name)
                if name.startswith(("/", "..")) or name == ".":
                    continue
                total += entry.size
                if total > most:
                    raise ProgramFault(f"the files hold more than {most} bytes")
                if entry.isreg():
                    held = opened.extractfile(entry)
                    files[name] = (held.read() if held else b"", 0o755 if entry.mode & 0o100 else 0o644)
                elif entry.isdir():
                    folders.add(name)
    except tarfile.TarError as error:
        raise SandboxLost(f"the sandbox's files came back damaged: {error}") from error
    return files, folders


def _below_home(path: str, *, whole: bool = False) -> str:
    """The name below HOME; ValueError for one outside it."""
    full = posixpath.normpath(posixpath.join(HOME, path))
    if "\0" in path or (full != HOME and not full.startswith(f"{HOME}/")) or (full == HOME and not whole):
        raise ValueError(f"{path!r} is not below {HOME}; name a file there")
    return posixpath.relpath(full, HOME)
