"""Runs on a SandboxFusion server: job.json and state.tar in its folder -> result.json and a new state.tar.

Standard library only: it is sent as text and never imported. Its exit status says nothing.
"""

import base64
import ctypes
import io
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from typing import Any

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Unpack, run, kill what stayed, pack."""
    with open("job.json") as file:
        job = json.load(file)
    box = os.path.abspath("box")
    os.mkdir(box)
    with tarfile.open("state.tar") as archive:
        for member in archive.getmembers():  # ours: regular files and folders below HOME
            archive.extract(member, box)
    for name in ("job.json", "state.tar", sys.argv[0]):
        os.unlink(name)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    result = run(job, box)
    sweep()
    state = pack(box, job["state_bytes"])
    if state is None:
        result.update(status="output", detail="left more files than may be kept", exit_code=None)
    with open("state.tar", "wb") as file:
        file.write(state or pack_nothing())
    with open("result.json", "w") as file:
        json.dump(result, file)


def run(job: Any, box: str) -> dict[str, Any]:
    """The command to its end or to a limit."""
    limits, started = job["limits"], time.monotonic()
    try:
        process = subprocess.Popen(
            job["command"],
            cwd=box,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": box, "LANG": "C.UTF-8", **job["env"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: restrict(limits),
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = base64.b64encode(str(error).encode()).decode()
        return {"status": "exited", "exit_code": 127, "signal": 0, "seconds": 0.0, "out": "", "err": said}
    out, err, cut = converse(process, base64.b64decode(job["stdin"]), limits, started)
    result = {"out": base64.b64encode(out).decode(), "err": base64.b64encode(err).decode()}
    code, seconds = process.returncode, time.monotonic() - started
    status = cut or ("exited" if code >= 0 else "signalled")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    if -code == signal.SIGXCPU or (
        -code == signal.SIGKILL and spent.ru_utime + spent.ru_stime >= limits["cpu_s"]
    ):
        status = "cpu_time" if status == "signalled" else status  # SIGKILL: it was deaf to the first signal
    ended = {
        "exit_code": code if status == "exited" else None,
        "signal": -code if status == "signalled" else 0,
    }
    return {"status": status, "seconds": seconds, **ended, **result}


def converse(
    process: subprocess.Popen[bytes], data: bytes, limits: Any, started: float
) -> tuple[bytes, bytes, str | None]:
    """Feed and drain it; (stdout, stderr, the limit it was killed at or None)."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    texts = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    feeding: int | None = process.stdin.fileno()
    os.set_blocking(process.stdin.fileno(), False)
    open_pipes, cut = set(texts), None
    while process.poll() is None or open_pipes:
        left = started + limits["wall_s"] - time.monotonic()
        ended = process.poll() is not None
        if left <= 0 and not ended:
            cut = "wall_time"
        elif sum(map(len, texts.values())) > limits["output_bytes"]:
            cut = "output"
        if cut:
            kill(process)
            break
        writers = [feeding] if data and feeding is not None and not ended else []
        # Once the main process has ended, a child that holds the pipe is waited for no longer.
        readable, writable, _ = select.select(list(open_pipes), writers, [], 0 if ended else min(left, 0.02))
        for pipe in readable:
            chunk = os.read(pipe, 1 << 16)
            texts[pipe] += chunk
            if not chunk:
                open_pipes.discard(pipe)
        if writable:
            try:
                data = data[os.write(writable[0], data) :]
            except OSError:
                data = b""
        if not data and feeding is not None:
            process.stdin.close()
            feeding = None
        if ended and not readable:
            break
    kill(process)
    process.wait()
    out, err = texts.values()
    return out[: limits["output_bytes"]], err[: max(0, limits["output_bytes"] - len(out))], cut


def restrict(limits: Any) -> None:
    """In the child, before the command."""
    cpu = max(1, int(limits["cpu_s"] + 0.999))
    memory, file = limits["memory_mb"] << 20, limits["file_mb"] << 20
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file, file))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def kill(process: subprocess.Popen[bytes]) -> None:
    """The command's process group."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def sweep() -> None:
    """Every other descendant: orphans are ours, as their subreaper."""
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        children = [
            int(pid) for pid in os.listdir("/proc") if pid.isdigit() and parent_of(pid) == os.getpid()
        ]
        if not children:
            return
        for pid in children:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def parent_of(pid: str) -> int:
    """The parent of a process, 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def pack(box: str, most: int) -> bytes | None:
    """HOME as a tar of regular files and folders; None when that is more than `most` bytes."""
    held, total = io.BytesIO(), 0
    with tarfile.open(fileobj=held, mode="w") as archive:
        for folder, folders, files in os.walk(box):
            for name in folders + files:
                path = os.path.join(folder, name)
                if os.path.islink(path) or not (os.path.isfile(path) or os.path.isdir(path)):
                    continue
                total += 1024 + (os.path.getsize(path) if os.path.isfile(path) else 0)
                if total > most:
                    return None
                with suppress(OSError):  # not readable
                    archive.add(path, os.path.relpath(path, box), recursive=False)
    return held.getvalue()


def pack_nothing() -> bytes:
    """An empty archive."""
    held = io.BytesIO()
    tarfile.open(fileobj=held, mode="w").close()
    return held.getvalue()


if __name__ == "__main__":
    main()
