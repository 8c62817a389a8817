"""Time and peak memory of one update per trained token, against groups, token budget and length.

    python benchmarks/growth.py                                         a small model on this CPU: minutes
    python benchmarks/growth.py --device cuda --lengths 32768           long answers on a GPU
    python benchmarks/growth.py --out benchmarks/results/growth.jsonl --plot docs/images/growth.png

Rollouts are random tokens with a common prompt per group; what is measured is the trainer alone. Times are
processor seconds of this process on a CPU, seconds on a GPU, each the least of --repeats updates after a
first one; memory is the peak above what the process held before the update.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import makers
import measured
import torch

from verigrad.engine import algorithms
from verigrad.engine.config import Config, resolve
from verigrad.engine.pack import pack, pack_stats
from verigrad.engine.policy import Policy
from verigrad.engine.schema import Rollout, ScoredGroup
from verigrad.verifiers.base import Problem, Verdict

PROMPT = 128


def main() -> None:
    """Measure every point in a process of its own, print rows, draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument(
        "--groups", type=int, nargs="*", default=None, help="2 4 8 16 on a CPU, none on a GPU"
    )
    parser.add_argument("--budgets", type=int, nargs="*", default=None, help="tokens per micro-batch")
    parser.add_argument("--hidden-size", type=int, help="128 on a CPU, 2048 on a GPU")
    parser.add_argument("--num-layers", type=int, help="4 on a CPU, 16 on a GPU")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the rows to this file, as JSON lines")
    parser.add_argument("--plot", type=Path, help="draw the rows of this run")
    args = parser.parse_args()
    small = args.device == "cpu"
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("growth: --device cuda, but torch sees no GPU here; leave it out")
    args.hidden_size, args.num_layers = (
        args.hidden_size or (128 if small else 2048),
        args.num_layers or (4 if small else 16),
    )
    args.groups = ([2, 4, 8, 16] if small else []) if args.groups is None else args.groups
    args.budgets = ([1024, 2048, 4096, 8192] if small else []) if args.budgets is None else args.budgets
    machine, rows = measured.machine(), []
    with tempfile.TemporaryDirectory(prefix="verigrad-growth-") as folder:
        longest = PROMPT + max([256, *args.lengths])
        makers.model(
            Path(folder), seed=0, progress=lambda *_: None, hidden_size=args.hidden_size,
            num_layers=args.num_layers, vocab_size=96, ends=True, max_positions=longest,
        )  # fmt: skip
        for point in points(args):
            row = in_own_process(point, folder, args)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if args.out:
                measured.append_row(args.out, row | {"machine": machine})
    if args.plot:
        draw(rows, args.plot)


def points(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is varied, one thing at a time."""
    base = {"groups": 8, "group_size": 8, "length": 128, "budget": 4096, "settings": {}}
    found = [base | {"series": "groups", "groups": n} for n in args.groups]
    found += [base | {"series": "budget", "groups": 16, "budget": n} for n in args.budgets]
    variants: list[dict[str, Any]] = [{}, {"gradient_checkpointing": True}]
    if args.device == "cuda":
        variants = [
            {"gradient_checkpointing": True, "dtype": "bfloat16"},
            {"gradient_checkpointing": True, "offload_activations": True, "dtype": "bfloat16"},
        ]
    for settings in variants:
        for n in args.lengths:
            long = {"series": "length", "groups": 1, "group_size": 2, "length": n, "budget": PROMPT + n}
            found.append(base | long | {"settings": settings})
    return found


def in_own_process(point: dict[str, Any], folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """One point; on a CPU forked, so that no point's memory is another's; on a GPU here, its peak reset."""
    if args.device == "cuda":
        return measure(point, folder, args)
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        return pool.apply(measure, (point, folder, args))


def measure(point: dict[str, Any], folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Update a fresh policy on a point's rollouts."""
    if args.device == "cpu":
        torch.set_num_threads(1)
    longest = PROMPT + point["length"]
    cfg = resolve(
        Config.model_validate(
            {
                "policy": {"model": folder, "device": args.device, "tokens_per_batch": point["budget"]}
                | point["settings"],
                "data": {"path": "random tokens"},
                "rollout": {"max_prompt_tokens": PROMPT, "max_tokens": point["length"]},
                "algorithm": {"name": "dapo"},
            }
        )
    )
    assert longest <= point["budget"], point
    policy = Policy(cfg, folder, tokenizer=None, start_folder=folder)
    algorithm = algorithms.build(cfg)
    batches = pack(groups_of(point), algorithm.aggregate, max_tokens=point["budget"])
    tokens = sum(int(batch.loss_mask.sum()) for batch in batches)
    before = held(args.device, reset=True)
    seconds = []
    for _ in range(args.repeats + 1):
        start = now(args.device)
        done = policy.update(batches, algorithm.loss, algorithm.coefs, step=1, first=True)
        seconds.append(now(args.device) - start)
        assert done.applied
    return {
        **point,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "trained_tokens": tokens,
        "us_per_token": round(1e6 * min(seconds[1:]) / tokens, 2),
        "peak_mib": round((held(args.device) - before) / 2**20, 1),
        **pack_stats([batches], cfg.policy),
    }


def groups_of(point: dict[str, Any]) -> list[ScoredGroup]:
    """Random rollouts whose answers are from half to all of the length; the first has all of it."""
    rng = random.Random("growth")
    groups = []
    for index in range(point["groups"]):
        prompt, rows = [rng.randrange(3, 95) for _ in range(PROMPT)], []
        for number in range(point["group_size"]):
            num = point["length"] if number == 0 else rng.randint(point["length"] // 2, point["length"])
            rows.append(
                Rollout(
                    token_ids=[*prompt, *(rng.randrange(3, 95) for _ in range(num))],
                    loss_mask=[False] * PROMPT + [True] * num,
                    logprobs=[0.0] * PROMPT + [-4.5] * num,
                    policy_versions=[-1] * PROMPT + [0] * num,
                    text="", finish_reason="stop", seed=0,
                )
            )  # fmt: skip
        advantages = [rng.gauss(0, 1) for _ in rows]
        verdicts = [Verdict.right()] * len(rows)
        groups.append(ScoredGroup(Problem(str(index), "q", "a"), rows, verdicts, advantages))
    return groups


def now(device: str) -> float:
    """Processor seconds of this process; on a GPU seconds, all of its work done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def held(device: str, *, reset: bool = False) -> float:
    """Bytes held at the peak; with `reset` those held now, from which on the peak is looked for."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.max_memory_allocated())
    if reset:
        Path(f"/proc/{os.getpid()}/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{os.getpid()}/status").read_text())
    assert found is not None
    return 1024.0 * int(found[1])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Microseconds and bytes per trained token, one panel for what is varied."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series = list(dict.fromkeys(row["series"] for row in rows))
    names = {"groups": "groups", "budget": "policy.tokens_per_batch", "length": "tokens per answer"}
    figure, axes = plt.subplots(2, len(series), figsize=(3.4 * len(series), 5), squeeze=False, sharex="col")
    for column, name in enumerate(series):
        for settings in dict.fromkeys(json.dumps(row["settings"]) for row in rows if row["series"] == name):
            some = [r for r in rows if r["series"] == name and json.dumps(r["settings"]) == settings]
            x = [row["length" if name == "length" else name] for row in some]
            label = ", ".join(json.loads(settings)) or "default"
            axes[0][column].plot(x, [row["us_per_token"] for row in some], "o-", label=label)
            axes[1][column].plot(x, [row["peak_mib"] for row in some], "o-", label=label)
        axes[1][column].set_xlabel(names[name])
        axes[1][column].set_xscale("log", base=2)
        for axis in axes[:, column]:
            axis.margins(y=0.1)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("µs per trained token")
    axes[1][0].set_ylabel("peak memory, MiB")
    axes[1][-1].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
