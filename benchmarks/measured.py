"""A command in a fresh process, watched: wall time, and peak memory of its whole process tree."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

LOOK_EVERY_S = 0.25
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Watched:
    """What a command cost besides what it says itself."""

    wall_s: float
    peak_rss_mib: float  # of all its processes together; pages they share count in each


class Failed(SystemExit):
    """A command that ended with an error or ran out of time, told with the end of what it printed."""


def run(command: Sequence[str], *, env: Mapping[str, str], folder: Path, limit_s: float) -> Watched:
    """Run it here to its end; what it prints goes to a file in `folder`. Raises Failed; leaves no process."""
    printed = folder / "printed.txt"
    start, peak = time.perf_counter(), 0.0
    with printed.open("wb") as file:
        process = subprocess.Popen(command, env=dict(env), stdout=file, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            peak = max(peak, tree_rss(process.pid))
            if time.perf_counter() - start > limit_s:
                raise Failed(f"{' '.join(command)} took more than {limit_s:.0f} s\n{tail(printed)}")
            time.sleep(LOOK_EVERY_S)
    finally:
        end_tree(process)
    if process.returncode:
        raise Failed(f"{' '.join(command)} ended with status {process.returncode}\n{tail(printed)}")
    return Watched(time.perf_counter() - start, peak)


def tree_rss(pid: int) -> float:
    """Resident memory of a process and all below it, in MiB."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
    return total / MIB


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, if any of it still runs."""
    if process.poll() is not None:
        return
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


def tail(path: Path, num_lines: int = 25) -> str:
    """The last lines of a file."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-num_lines:])


def environment(threads: int, **more: str) -> dict[str, str]:
    """The same for every side: threads that wait without spinning, no pinning, nothing fetched."""
    if threads < 1:
        raise SystemExit(f"--threads {threads}: at least 1")
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of values."""
    if len(values) < 2:
        return {"median": values[0], "q1": values[0], "q3": values[0], "n": len(values)}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "n": len(values)}


def machine() -> dict[str, Any]:
    """What was measured on, and how busy it was at this moment."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One JSON line more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
