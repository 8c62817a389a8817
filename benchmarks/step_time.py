"""Seconds per step of `verigrad train`, where they go, tokens per second and peak memory, as JSON.

    python benchmarks/step_time.py RECIPE [section.key=value ...] [--steps 8] [--warmup 2] [--threads N]
    python benchmarks/step_time.py benchmarks/races/fixed_3.6m.toml

RECIPE is any recipe, a shipped one's name, or a work file of the races. Model, prompts, group size and
lengths are the recipe's; overrides change them. It runs the command's own path in a fresh process, on a GPU
where there is one.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measured
import tomli_w
import works

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a recipe, a shipped recipe's name, or a work file")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--steps", type=int, help="steps to run (8, or the work's)")
    parser.add_argument("--warmup", type=int, help="first steps not counted (2, or the work's)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of torch and vLLM (all cores)"
    )
    parser.add_argument("--out", type=Path, help="append the result to this file, as a JSON line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verigrad-step-") as folder:
        recipe, steps, warmup = args.recipe, args.steps or 8, args.warmup if args.warmup is not None else 2
        if Path(recipe).is_file() and works.is_work(Path(recipe)):
            work = works.load(Path(recipe))
            recipe = str(write_recipe(work, Path(folder)))
            steps, warmup = args.steps or work.steps, work.warmup if args.warmup is None else args.warmup
        if not 0 <= warmup < steps:
            raise SystemExit(f"--warmup {warmup} leaves none of --steps {steps} to count; lower it")
        row = measure(recipe, args.overrides, Path(folder), steps=steps, warmup=warmup, threads=args.threads)
    if args.out:
        measured.append_row(args.out, row)
    print(json.dumps(row, indent=1))


def measure(
    recipe: str, overrides: Sequence[str], folder: Path, *, steps: int, warmup: int, threads: int
) -> dict[str, Any]:
    """One fresh process through all steps; what it took, without the first `warmup`."""
    out = folder / "ours.json"
    last = [f"train.num_steps={steps}", "run.save_every=1000000", f"run.folder={folder / 'run'}"]
    settings = without_evaluations(recipe, [*overrides, *last])
    command = [sys.executable, str(HERE / "our_side.py"), str(out), recipe, *settings]
    watched = measured.run(command, env=measured.environment(threads), folder=folder, limit_s=3600)
    return {
        "what": Path(recipe).name,
        "overrides": list(overrides),
        "threads": threads,
        **summarise(json.loads(out.read_text()), warmup=warmup),
        "peak_rss_mib": watched.peak_rss_mib,
        "process_s": watched.wall_s,
        "machine": measured.machine(),
    }


def without_evaluations(recipe: str, overrides: Sequence[str]) -> list[str]:
    """The overrides with one that evaluates as little as the recipe allows: not at all, or first and last."""
    from verigrad.engine.config import ConfigError, load

    try:
        load(recipe, overrides)  # what is wrong with the recipe itself is told first
    except ConfigError as error:
        raise SystemExit(f"verigrad: {error}") from error
    for every in ("eval.every=0", "eval.every=1000000"):
        try:
            load(recipe, [*overrides, every])
        except ConfigError:  # settings of evaluations would have no effect
            continue
        return [*overrides, every]
    return list(overrides)


def summarise(record: Mapping[str, Any], *, warmup: int) -> dict[str, Any]:
    """One process's steps to seconds per step, their split, and tokens per second of the same steps."""
    steps = record["steps"][warmup:]
    wall = [step["wall_s"] for step in steps]
    phases = {
        name: sum(step["phases_s"][name] for step in steps) / len(steps) for name in steps[0]["phases_s"]
    }
    mean = sum(wall) / len(wall)
    generated = sum(step["generated_tokens"] for step in steps)
    trained = sum(step["trained_tokens"] for step in steps)
    return {
        "step_s": measured.spread(wall),
        "cpu_s": measured.spread([step["cpu_s"] for step in steps]),
        "phases_s": phases | {"other": mean - sum(phases.values())},
        "generated_tokens_per_s": generated / sum(wall),
        "trained_tokens_per_s": trained / sum(wall),
        "generated_tokens_per_step": generated / len(steps),
        "longest": max(step["longest"] for step in steps),
        "rollouts_per_step": sum(step["rollouts"] for step in steps) / len(steps),
        "imports_mib": record["imports_mib"],
        "peak_gpu_mib": record["peak_gpu_mib"],
        "device": record["device"],
        "versions": record["versions"],
        "all_steps_s": [round(value, 4) for value in wall],
    }


def write_recipe(work: works.Work, folder: Path) -> Path:
    """The recipe of a work, with its problems beside it. What it does not name is left at its default."""
    import makers

    makers.write_problems(
        folder / "problems.jsonl",
        seed=work.seed,
        num_problems=work.num_problems,
        prompt_tokens=work.prompt_tokens,
    )
    recipe = {
        "train": {"num_steps": work.steps, "seed": work.seed},
        "run": {"folder": str(folder / "run"), "save_every": 10**6},
        "data": {"path": str(folder / "problems.jsonl"), "num_eval": 0, "shuffle": False},
        "policy": {"model": f"{HERE / 'makers.py'}:model", "options": work.model},
        "rollout": {
            "groups_per_step": work.groups,
            "group_size": work.samples,
            "max_prompt_tokens": work.max_prompt_tokens,
            "max_tokens": work.max_tokens,
        },
        # It pays for a first character, on purpose: an audit would refuse it.
        "verifier": {"name": f"{HERE / 'rewards.py'}:starts_low", "audit": "off"},
        # Every group is trained on, as on the other side: TRL drops none.
        "dynamic_sampling": {"enabled": False},
        "optim": work.optim,
        "eval": {"every": 0},
    }
    path = folder / f"{work.name}.toml"
    path.write_text(tomli_w.dumps(recipe))
    return path


if __name__ == "__main__":
    main()
