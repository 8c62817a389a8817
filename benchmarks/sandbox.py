"""Small programs through each sandbox, `docker exec`, `docker run` and a bare python3: latency, programs/s.

    python benchmarks/sandbox.py [--rounds 200] [--backends container bubblewrap local_process]

A round runs one program each way, in an order that rotates, so that a machine that grows slower does so for
all. The clock covers the program's file being written, the program, and all of it being wiped: through the
warm pool `write_file`, `exec` and the reset; for the bare subprocess a file, `python3 file.py`, its removal.
Programs per second are those of one slot, program after program. A row is appended to
benchmarks/results/sandbox.jsonl.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import measured

from verigrad.sandboxes import registry
from verigrad.sandboxes.base import Sandbox, SandboxSpec
from verigrad.sandboxes.images.build import image_name
from verigrad.sandboxes.pool import SandboxPool, SandboxSettings

RESULTS = Path(__file__).resolve().parent / "results"
BACKENDS = ("container", "bubblewrap", "local_process")
BARE = "bare python3"
BAR = ("container", BARE)  # the first one's p50 is no more than the second's
SLOW = {"docker exec": 4, "docker run": 20}  # measured every so many rounds
PROGRAM = b"""
def solve(numbers):
    return sum(n * n for n in numbers)

print(solve(map(int, input().split())))
"""
STDIN, EXPECTED = b"1 2 3 4 5 6 7 8 9\n", b"285\n"
BURST_S = 3.0  # how long each way runs program after program
Way = Callable[[], bytes]


def main() -> None:
    """Measure, append a row, print a table; exit status 1 when the bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200, help="programs each way (200)")
    parser.add_argument("--backends", nargs="*", default=BACKENDS, help=" ".join(BACKENDS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go (benchmarks/results)")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds is at least 2")
    row = measure(args.backends, rounds=args.rounds)
    measured.append_row(args.out / "sandbox.jsonl", row)
    print(table(row))
    if row["held"] is False:
        raise SystemExit(f"bar missed: p50 of {BAR[0]} is {row['ratio']:.2f} times that of {BAR[1]}")


def measure(backends: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """All ways in one run."""
    row: dict[str, Any] = {"benchmark": "sandbox", "rounds": rounds, "machine": measured.machine()}
    with ExitStack() as stack:
        ways: dict[str, Way] = {BARE: stack.enter_context(bare())}
        for name in backends:
            ways[name] = stack.enter_context(pooled(name))
        if "container" in backends and shutil.which("docker"):
            ways["docker exec"] = stack.enter_context(docker_exec())
            ways["docker run"] = docker_run
        seconds = latencies(ways, rounds)
        row["ways"] = {name: summary(values) for name, values in seconds.items()}
        for name, way in ways.items():
            row["ways"][name]["programs_per_s"] = round(rate(way), 1)
    row["ratio"] = row["held"] = None
    if all(name in row["ways"] for name in BAR):
        ours, theirs = (row["ways"][name]["p50_ms"] for name in BAR)
        row["ratio"], row["held"] = round(ours / theirs, 3), ours <= theirs
    return row


def latencies(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each program, way by way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # the first one is not counted
    for number in range(rounds):
        names = [name for name in ways if number % SLOW.get(name, 1) == 0]
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            answer = ways[name]()
            seconds[name].append(time.perf_counter() - started)
            if answer != EXPECTED:
                raise SystemExit(f"{name} answered {answer!r}, expected {EXPECTED!r}")
    return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds: median and 99th percentile."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return {
        "p50_ms": round(1000 * statistics.median(ordered), 2),
        "p99_ms": round(1000 * p99, 2),
        "n": len(ordered),
    }


def rate(way: Way) -> float:
    """Programs per second, one after the other."""
    started, number = time.perf_counter(), 0
    while time.perf_counter() - started < BURST_S:
        way()
        number += 1
    return number / (time.perf_counter() - started)


@contextmanager
def pooled(backend: str) -> Iterator[Way]:
    """Through a warm pool of one."""
    options = {"trusted": True} if backend == "local_process" else {}
    if reason := registry.load(backend).unavailable(options):
        raise SystemExit(f"{backend} cannot be measured: {reason}")

    def job(box: Sandbox) -> bytes:
        box.write_file("program.py", PROGRAM)
        return box.exec(["python3", "program.py"], stdin=STDIN).stdout

    with SandboxPool(SandboxSettings(SandboxSpec(backend, options))) as pool:
        pool.warm()

        def way() -> bytes:
            answer = pool.run(job)
            pool.settle()
            return answer

        yield way


@contextmanager
def bare() -> Iterator[Way]:
    """A subprocess with nothing around it; the system's own Python where there is one, as in the image."""
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    with tempfile.TemporaryDirectory(prefix="verigrad-bare-") as folder:
        file = Path(folder) / "program.py"

        def way() -> bytes:
            file.write_bytes(PROGRAM)
            done = subprocess.run(
                [python, "program.py"], cwd=folder, input=STDIN, capture_output=True, env={}
            )
            file.unlink()
            return done.stdout

        yield way


@contextmanager
def docker_exec() -> Iterator[Way]:
    """`docker exec` into a container that is running already."""
    name = f"verigrad-benchmark-{uuid.uuid4().hex[:12]}"
    start = ["docker", "run", "--rm", "-d", "--network", "none", "--name", name, image_name()]
    subprocess.run([*start, "sleep", "3600"], check=True, capture_output=True)
    try:
        command = ["docker", "exec", "-i", name, "python3", "-c", PROGRAM.decode()]
        yield lambda: subprocess.run(command, input=STDIN, capture_output=True).stdout
    finally:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True)


def docker_run() -> bytes:
    """A new container for the program."""
    command = ["docker", "run", "--rm", "-i", "--network", "none", image_name()]
    command += ["python3", "-c", PROGRAM.decode()]
    return subprocess.run(command, input=STDIN, capture_output=True).stdout


def table(row: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'':16}{'p50 ms':>9}{'p99 ms':>9}{'programs/s':>12}{'n':>6}"]
    for name, way in sorted(row["ways"].items(), key=lambda item: item[1]["p50_ms"]):
        lines.append(
            f"{name:16}{way['p50_ms']:9.2f}{way['p99_ms']:9.2f}{way['programs_per_s']:12.1f}{way['n']:6d}"
        )
    if row["ratio"] is not None:
        lines.append(f"p50 of {BAR[0]} / {BAR[1]}: {row['ratio']:.2f} (bar: 1.00)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
