"""The sides of kernel_sides.py in turns: time, peak memory, share of the roofline, a row and a table."""

import argparse
import ctypes
import gc
import importlib.metadata
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import measured
import torch
from kernel_sides import SIDES, CannotRun, Inputs, Run
from torch import Tensor

from verigrad.kernels.linear_logprob import linear_logprob

RESULTS = Path(__file__).resolve().parent / "results" / "kernels.jsonl"
Shape = tuple[int, int, int]  # M, H, V
SHAPES: Mapping[str, Sequence[Shape]] = {
    "cuda": [(8192, 4096, 131072), (16384, 3584, 152064), (16384, 896, 151936)],
    "cpu": [(1024, 256, 32768), (256, 896, 151936)],
    "small": [(256, 64, 4096)],
}
WORKS = {"policy": 6, "policy_no_entropy": 6, "forward": 2}  # operations over M H V
BARS_MS = {("policy", (8192, 4096, 131072)): 45.0, ("policy", (16384, 3584, 152064)): 90.0}  # on an H200
H200_FLOPS = 790e12
MIB = 2**20


def main(about: str | None) -> None:
    """Measure, append a row for each work and shape, print a table. `about` is what --help says."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cuda", "cpu"], default=default, help=f"({default} here)")
    parser.add_argument("--small", action="store_true", help="a shape of seconds, to see that all runs")
    parser.add_argument("--rounds", type=int, help="times each side runs (20; 5 on a CPU)")
    parser.add_argument("--shapes", nargs="*", type=shape_of, help="MxHxV, in place of the device's own")
    parser.add_argument("--threads", type=int, help="of torch on a CPU (all cores)")
    parser.add_argument("--works", nargs="*", choices=WORKS, default=list(WORKS), help=" ".join(WORKS))
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES), help=" ".join(SIDES))
    parser.add_argument("--out", type=Path, default=RESULTS, help="where rows go (results/kernels.jsonl)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this torch sees no CUDA device; use --device cpu")
    rounds = args.rounds or (20 if args.device == "cuda" else 5)
    if rounds < 1:
        raise SystemExit(f"--rounds {rounds}: at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    peak = matmul_flops(args.device)
    for shape in args.shapes or SHAPES["small" if args.small else args.device]:
        for work in args.works:
            row = measure(work, shape, device=args.device, rounds=rounds, sides=args.sides, peak=peak)
            measured.append_row(args.out, row)
            print(table(row), flush=True)


def shape_of(text: str) -> Shape:
    """MxHxV to its numbers."""
    parts = [int(part) for part in text.split("x")]
    if len(parts) != 3 or min(parts) < 1:
        raise ValueError(text)
    return parts[0], parts[1], parts[2]


def measure(
    work: str, shape: Shape, *, device: str, rounds: int, sides: Sequence[str], peak: float
) -> dict[str, Any]:
    """All sides on one work and shape, in turns; sides that cannot run stand under "unmeasured"."""
    inputs = make(work, shape, device=device)
    runs, unmeasured, found = {}, {}, {}
    for name in sides:
        try:
            runs[name] = SIDES[name](inputs)
            found[name] = {"peak_mib": peak_mib(runs[name], inputs), "loss": last_loss(runs[name], inputs)}
        except CannotRun as error:
            unmeasured[name] = str(error)
        except Exception as error:  # another's code on another machine: whatever it raises is the finding
            runs.pop(name, None)
            unmeasured[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name in found:
            times[name].append(timed(runs[name], inputs))
    m, h, v = shape
    floor_ms = 1e3 * WORKS[work] * m * h * v / peak
    d_weight_mib = 0.0 if work == "forward" else 4 * v * h / MIB
    for name, values in times.items():
        spread = measured.spread(values)
        found[name] |= {
            "ms": spread,
            "roofline_share": floor_ms / spread["median"],
            "above_d_weight_mib": found[name]["peak_mib"] - d_weight_mib,
        }
    return {
        "work": work,
        "shape": {"M": m, "H": h, "V": v},
        "dtype": str(inputs.hidden.dtype).removeprefix("torch."),
        "rounds": rounds,
        "floor_ms": floor_ms,
        "peak_tflops": peak / 1e12,
        "d_weight_float32_mib": d_weight_mib,
        "sides": found,
        "unmeasured": unmeasured,
        "bar_ms": bar_of(work, shape),
        "device": device_name(device),
        "versions": versions(),
        "machine": measured.machine(),
    }


def make(work: str, shape: Shape, *, device: str) -> Inputs:
    """Inputs of a trained model's size: logits of a few nats, ratios on both sides of the clip."""
    m, h, v = shape
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    hidden, weight = normal(m, h).to(dtype), (normal(v, h) * 2 * h**-0.5).to(dtype)
    labels = torch.randint(v, (m,), generator=generator, device=device)
    with torch.no_grad():
        logprobs, _ = linear_logprob(hidden, weight, labels, chunk_tokens=None)
    needs = work != "forward"
    return Inputs(
        work,
        hidden.requires_grad_(needs),
        weight.requires_grad_(needs),
        labels,
        normal(m),
        (logprobs + 0.2 * normal(m)).detach(),
    )


def peak_mib(run: Run, inputs: Inputs) -> float:
    """The most memory a run takes above what is there before it, the gradients it leaves among it.

    The first run is not counted: compilation has memory of its own.
    """
    run()
    forget(inputs)
    if inputs.hidden.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    if sys.platform != "linux":
        return float("nan")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is the present one again
    before = memory_kib("VmRSS")
    run()
    return (memory_kib("VmHWM") - before) / 1024


def memory_kib(name: str) -> float:
    """A line of this process's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name)))


def last_loss(run: Run, inputs: Inputs) -> float:
    """The loss, to compare sides by."""
    forget(inputs)
    return float(run())


def timed(run: Run, inputs: Inputs) -> float:
    """Milliseconds of one run."""
    forget(inputs)
    if not inputs.hidden.is_cuda:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def forget(inputs: Inputs) -> None:
    """Drop the gradients of the run before, and give free memory back where it would hide what is taken."""
    inputs.hidden.grad = inputs.weight.grad = None
    gc.collect()
    if not inputs.hidden.is_cuda and sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def matmul_flops(device: str) -> float:
    """Operations per second of a product at its best: the known figure of an H200, elsewhere measured."""
    if device == "cuda" and "H200" in torch.cuda.get_device_name():
        return H200_FLOPS
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    left = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        left @ left
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def bar_of(work: str, shape: Shape) -> float | None:
    """The milliseconds it should stay under, where they were set: on an H200."""
    if torch.cuda.is_available() and "H200" in torch.cuda.get_device_name():
        return BARS_MS.get((work, shape))
    return None


def device_name(device: str) -> str:
    """What it ran on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Of all that takes part."""
    found = {}
    for name in ("torch", "triton", "liger-kernel", "cut-cross-entropy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def table(row: Mapping[str, Any]) -> str:
    """A row for people."""
    m, h, v = row["shape"].values()
    bar = "" if row["bar_ms"] is None else f", bar {row['bar_ms']:.0f} ms"
    lines = [f"\n{row['work']}: M={m} H={h} V={v} {row['dtype']}, {row['device']}; "
             f"floor {row['floor_ms']:.2f} ms at {row['peak_tflops']:.3g} TFLOP/s{bar}"]  # fmt: skip
    exact = row["sides"].get("pytorch", {}).get("loss")
    for name, side in sorted(row["sides"].items(), key=lambda item: item[1]["ms"]["median"]):
        off = "" if exact is None else f"  loss off by {abs(side['loss'] - exact):.0e}"
        lines.append(
            f"  {name:27s} {side['ms']['median']:10.2f} ms  {side['roofline_share']:6.1%} of roofline"
            f"  peak +{side['peak_mib']:.0f} MiB{off}"
        )
    lines += [f"  {name:27s} unmeasured: {why}" for name, why in row["unmeasured"].items()]
    return "\n".join(lines)
