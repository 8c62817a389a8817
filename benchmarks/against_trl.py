"""Verigrad and TRL on the same work, in turn, each run in a fresh process: ratios with their spread.

    python benchmarks/against_trl.py --all                 all that follows
    python benchmarks/against_trl.py ragged [--rounds 1]   one of benchmarks/races/
    python benchmarks/against_trl.py learning              accuracy against time on the quickstart

A round is one run of each side, one after the other, so that a machine that grows slower does so for all.
Results are appended to benchmarks/results/, one JSON line per race, with the machine and every step in it.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measured
import step_time
import trl_env
import works

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
Runs = dict[str, list[dict[str, Any]]]  # side -> its runs, in the order of the rounds


def main() -> None:
    """Run what is asked for; exit status 1 when a bar is missed."""
    names = sorted(path.stem for path in works.RACES.glob("*.toml"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help=f"of {', '.join(names)}, learning")
    parser.add_argument("--all", action="store_true", help="everything: 25 minutes on two cores")
    parser.add_argument("--rounds", type=int, help="rounds of each work (else the work's)")
    parser.add_argument("--steps", type=int, help="steps of each run (else the work's); for trying it out")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of each side (all cores)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="seeds of `learning`")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go (benchmarks/results)")
    args = parser.parse_args()
    if unknown := sorted(set(args.what) - {*names, "learning"}):
        parser.error(f"{unknown[0]!r} is none of {', '.join(names)}, learning")
    if not (args.what or args.all):
        parser.error("name a work, or --all")
    if args.threads < 1 or args.seeds < 1:
        parser.error("--threads and --seeds are at least 1")
    python, missed = trl_env.ensure(), []
    for name in names if args.all else [name for name in args.what if name != "learning"]:
        work = works.load(works.RACES / f"{name}.toml")
        row = race(work, python, rounds=args.rounds, steps=args.steps, threads=args.threads)
        measured.append_row(args.out / "against_trl.jsonl", row)
        print(table(row), flush=True)
        missed += [name] if row["held"] is False else []
    if args.all or "learning" in args.what:
        import learning  # torch comes with it

        learning.race(
            python, seeds=args.seeds, threads=args.threads, out=args.out, steps=args.steps or learning.STEPS
        )
    if missed:
        raise SystemExit(f"bar missed: {', '.join(missed)}")


def race(
    work: works.Work, python: Path, *, rounds: int | None, steps: int | None, threads: int
) -> dict[str, Any]:
    """All rounds of one work, summed up."""
    work = works.changed(work, rounds=rounds, steps=steps)
    runs: Runs = {side: [] for side in works.SIDES}
    began = time.perf_counter()
    for number in range(work.rounds):
        spent = time.perf_counter() - began
        if number and spent * (number + 1) / number > 60 * work.minutes:
            print(f"{work.name}: no time for round {number + 1}: {work.minutes:g} minutes in all", flush=True)
            break
        for side in works.SIDES:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="verigrad-race-") as folder:
                one = run_ours if side == "verigrad" else run_trl
                runs[side].append(one(work, Path(folder), python, side=side, threads=threads))
            median = runs[side][-1]["step_s"]["median"]
            took = time.perf_counter() - start
            print(
                f"{work.name} {number + 1}/{work.rounds} {side}: {median:.3f} s a step ({took:.0f} s)",
                flush=True,
            )
    return {
        "race": work.name,
        "title": work.title,
        "machine": measured.machine(),
        "threads": threads,
        "work": works.as_dict(work),
        **summarise(work, runs),
        "runs": runs,
    }


def run_ours(work: works.Work, folder: Path, python: Path, *, side: str, threads: int) -> dict[str, Any]:
    """One run of `verigrad train`."""
    recipe = step_time.write_recipe(work, folder)
    return step_time.measure(str(recipe), [], folder, steps=work.steps, warmup=work.warmup, threads=threads)


def run_trl(work: works.Work, folder: Path, python: Path, *, side: str, threads: int) -> dict[str, Any]:
    """One run of TRL on the same model, problems and check."""
    from verigrad.engine import makers

    step_time.write_recipe(work, folder)  # for its problems
    model = makers.make_model(f"{HERE / 'makers.py'}:model", seed=work.seed, options=work.model)
    job = works.as_dict(work) | {
        "engine": side.removeprefix("trl_"),
        "model": str(model),
        "problems": str(folder / "problems.jsonl"),
        "shuffle": False,
        "verifier": "starts_low",
        "minibatches": 1,
        "clip": [0.2, 0.28],  # dapo's, as ours
        "max_prompt_tokens": work.max_prompt_tokens,
    }
    record, watched = trl_env.run(job, folder, python, threads=threads)
    return {
        **step_time.summarise(record, warmup=work.warmup),
        "peak_rss_mib": watched.peak_rss_mib,
        "process_s": watched.wall_s,
    }


def summarise(work: works.Work, runs: Runs) -> dict[str, Any]:
    """Seconds per step of each side over all counted steps, and TRL's over ours, per step and per token."""
    steps = {side: [s for run in of for s in run["all_steps_s"]] for side, of in runs.items()}
    seconds = {side: measured.spread(values) for side, values in steps.items()}
    per_token = {
        side: measured.spread([run["step_s"]["median"] / run["generated_tokens_per_step"] for run in of])
        for side, of in runs.items()
    }
    shipped = "trl_transformers"
    best = min((side for side in runs if side != "verigrad"), key=lambda side: seconds[side]["median"])
    ratios = {side: ratio_of(runs, side) for side in runs if side != "verigrad"}
    against = best if work.against == "best" else shipped
    held = None if work.bar is None else ratios[against]["per_step"]["median"] >= work.bar
    if held and work.model["ends"]:  # who samples fewer tokens is not faster
        held = ratios[against]["per_token"]["median"] >= (work.bar or 0)
    if held and work.bar_vllm is not None:
        held = min(ratios["trl_vllm"][name]["median"] for name in ("per_step", "per_token")) >= work.bar_vllm
    memory = {side: memory_of(runs, side) for side in ratios}
    if held and work.bar_memory is not None:
        held = memory[shipped]["median"] <= work.bar_memory
    return {
        "step_s": seconds,
        "s_per_generated_token": per_token,
        "best_mode": best,
        "against": against,
        "ratios": ratios,
        "memory": memory,
        "bar": work.bar,
        "bar_vllm": work.bar_vllm,
        "bar_memory": work.bar_memory,
        "held": held,
    }


def ratio_of(runs: Runs, side: str) -> dict[str, dict[str, float]]:
    """Of each round: the side's median step over ours, of the same round."""
    per_step, per_token = [], []
    for ours, theirs in zip(runs["verigrad"], runs[side], strict=True):
        ratio = theirs["step_s"]["median"] / ours["step_s"]["median"]
        per_step.append(ratio)
        tokens = theirs["generated_tokens_per_step"] / ours["generated_tokens_per_step"]
        per_token.append(ratio / tokens)
    return {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name, values in (("per_step", per_step), ("per_token", per_token))
    }


def memory_of(runs: Runs, side: str) -> dict[str, float]:
    """Of each round: our peak memory over the side's, each above what its imports alone take."""
    shares = [
        (ours["peak_rss_mib"] - ours["imports_mib"]) / (theirs["peak_rss_mib"] - theirs["imports_mib"])
        for ours, theirs in zip(runs["verigrad"], runs[side], strict=True)
    ]
    return {"median": statistics.median(shares), "low": min(shares), "high": max(shares)}


def table(row: Mapping[str, Any]) -> str:
    """The race as a table for documents."""
    lines = [
        f"### {row['title']}",
        "",
        "| side | s/step, median [quartiles] | x ours per step [rounds] | per token [rounds] | "
        "generated tok/s | generate, update, rest s | processor s/step | MiB above imports | ours of it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side, of in row["runs"].items():
        seconds = row["step_s"][side]
        ratios = row["ratios"].get(side)
        told = [shown(ratios[name]) if ratios else "1" for name in ("per_step", "per_token")]
        phases = {name: statistics.median(run["phases_s"][name] for run in of) for name in of[0]["phases_s"]}
        rest = sum(value for name, value in phases.items() if name not in ("generate", "update"))
        lines.append(
            f"| {side} | {seconds['median']:.3f} [{seconds['q1']:.3f}, {seconds['q3']:.3f}] | "
            f"{told[0]} | {told[1]} | "
            f"{statistics.median(run['generated_tokens_per_s'] for run in of):,.0f} | "
            f"{phases['generate']:.2f}, {phases['update']:.2f}, {rest:.2f} | "
            f"{statistics.median(run['cpu_s']['median'] for run in of):.2f} | "
            f"{max(run['peak_rss_mib'] - run['imports_mib'] for run in of):,.0f} | "
            f"{shown(row['memory'][side]) if side in row['memory'] else 1} |"
        )
    bar = {None: "no bar", True: "held", False: "MISSED"}[row["held"]]
    wanted = f" of {row['bar']:g} against {row['against']}" if row["bar"] else ""
    wanted += f", {row['bar_vllm']:g} against trl_vllm" if row["bar_vllm"] else ""
    wanted += f", {row['bar_memory']:g} of its memory" if row["bar_memory"] else ""
    return "\n".join(
        [*lines, "", f"Bar{wanted}: {bar}. Load before the end: {row['machine']['load_1min']}.", ""]
    )


def shown(ratio: Mapping[str, float]) -> str:
    """A ratio with its least and largest round."""
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


if __name__ == "__main__":
    main()
