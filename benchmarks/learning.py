"""Held-out accuracy against training time on the quickstart: the recipe as it is, and TRL on the same task.

Both start from the same model and are paid by the same verifier for the same training problems, with the same
optimizer, clip bounds, group size, completions and optimizer steps per batch. Ours draws problems by what
they teach and drops groups that teach nothing, as the recipe says; TRL 1.16.0 has neither. The clock runs
while a side samples, judges, trains and syncs; it stands still while it starts, evaluates and saves.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measured
import trl_env

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PICTURE = HERE.parent / "docs" / "images" / "against_trl.png"
RECIPE = "quickstart"
EVALS = ["eval.every=4", "eval.temperature=1.0"]  # greedy answers jump as soon as the balance has tipped
STEPS = 40  # of ours; the learning rate is constant, so TRL may take more
LEVELS = (0.5, 0.8, 0.9)  # accuracies whose first evaluation is told
PATIENCE = 1.25  # TRL is given this many times our training time,
BAR = 4.2  # or, if that is more, this many times ours to the last level
COLOURS = {"verigrad": "#0072B2", "TRL": "#D55E00"}
MARKERS = {"verigrad": "o", "TRL": "s"}


def race(python: Path, *, seeds: int, threads: int, out: Path, steps: int) -> None:
    """Train both sides for each seed, append the curves to OUT/learning.jsonl, draw them, print the table."""
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="verigrad-learning-") as folder:
            place = Path(folder)
            ours = run_ours(place, seed=seed, threads=threads, steps=steps)
            limit_s = max(PATIENCE * ours[-1]["train_s"], BAR * seconds_to(LEVELS[-1], ours))
            theirs = run_trl(place, python, seed=seed, threads=threads, steps=steps, limit_s=limit_s)
        row = {"race": "learning", "seed": seed, "threads": threads, "machine": measured.machine()}
        row["curves"] = {"verigrad": ours, "TRL": theirs}
        measured.append_row(out / "learning.jsonl", row)
        rows.append(row)
    draw(PICTURE if out == RESULTS else out / PICTURE.name, rows)
    print(table(rows), flush=True)


def run_ours(folder: Path, *, seed: int, threads: int, steps: int) -> list[dict[str, Any]]:
    """The recipe's evaluations, each with the training seconds that went before."""
    import sys

    command = [sys.executable, str(HERE / "our_side.py"), str(folder / "ours.json"), RECIPE]
    command += [*EVALS, f"train.seed={seed}", f"train.num_steps={steps}", f"run.folder={folder / 'run'}"]
    measured.run(command, env=measured.environment(threads), folder=folder, limit_s=3600)
    record = json.loads((folder / "ours.json").read_text())
    clock = running(step["loop_s"] for step in record["steps"])
    return [
        {"step": row["step"], "train_s": clock[row["step"]]}
        | {name: row[name] for name in ("avg", "avg_low", "avg_high")}
        for row in record["evals"]
    ]


def run_trl(
    folder: Path, python: Path, *, seed: int, threads: int, steps: int, limit_s: float
) -> list[dict[str, Any]]:
    """The same from TRL, as it comes."""
    from verigrad.engine.intervals import mean_interval

    job = job_of(folder, seed=seed, steps=2 * steps) | {"limit_s": limit_s}
    record, _ = trl_env.run(job, folder, python, threads=threads, limit_s=3600)
    clock = running(step["wall_s"] for step in record["steps"])
    curve = []
    for row in record["evals"]:
        avg, low, high = mean_interval([[score] for score in row["scores"]])
        times = {"step": row["step"], "train_s": clock[row["step"]]}
        curve.append({**times, "avg": avg, "avg_low": low, "avg_high": high})
    return curve


def job_of(folder: Path, *, seed: int, steps: int) -> dict[str, Any]:
    """The recipe as TRL's settings; its problems, held-out ones and starting model as files."""
    from verigrad.engine import config, data, makers

    cfg = config.load(RECIPE, [*EVALS, f"train.seed={seed}"])
    dataset = data.load(cfg.data, seed=seed)
    (held_out,) = dataset.evals.values()
    for name, problems in (("train", dataset.train), ("held_out", held_out)):
        rows = [{"prompt": f"{p.prompt}{cfg.prompts.prefill}", "answer": str(p.answer)} for p in problems]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "engine": "transformers",
        "model": str(makers.make_model(cfg.policy.model, seed=seed, options=cfg.policy.options)),
        "problems": str(folder / "train.jsonl"),
        "held_out": str(folder / "held_out.jsonl"),
        "prefill": cfg.prompts.prefill,
        "verifier": cfg.verifier.name,
        "shuffle": True,
        "groups": cfg.rollout.groups_per_step,
        "samples": cfg.rollout.group_size,
        "minibatches": cfg.train.num_minibatches,
        "max_tokens": cfg.rollout.max_tokens,
        "max_prompt_tokens": cfg.rollout.max_prompt_tokens,
        "steps": steps,
        "eval_every": cfg.eval.every,
        "eval_temperature": cfg.eval.temperature,
        "seed": seed,
        "clip": [cfg.algorithm.clip_low, cfg.algorithm.clip_high],
        "optim": cfg.optim.model_dump(mode="json"),
    }


def running(seconds: Any) -> list[float]:
    """Seconds of training before the first step, and after each."""
    total = [0.0]
    for value in seconds:
        total.append(total[-1] + value)
    return total


def seconds_to(level: float, curve: Sequence[Mapping[str, Any]]) -> float:
    """Training seconds until the first evaluation of `level`; all of them where it was not reached."""
    reached = (point["train_s"] for point in curve if point["avg"] >= level)
    return float(next(reached, curve[-1]["train_s"]))


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per side and seed, with 95% intervals; sides differ in colour, marker and line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for row in rows:
        for side, curve in row["curves"].items():
            x, avg, low, high = (
                [point[k] for point in curve] for k in ("train_s", "avg", "avg_low", "avg_high")
            )
            style = "-" if side == "verigrad" else "--"
            label = side if row is rows[0] else None
            axes.plot(x, avg, style, marker=MARKERS[side], color=COLOURS[side], label=label)
            axes.fill_between(x, low, high, color=COLOURS[side], alpha=0.2, lw=0)
    axes.set_xlabel("training time, s (start and evaluations not counted)")
    axes.set_ylabel("held-out accuracy, one sample each")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title=f"95% intervals, {len(rows)} seed{'s' * (len(rows) > 1)}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """When each side's evaluations first reached an accuracy, and where it ended."""
    heads = " | ".join(f"s to {level:g}" for level in LEVELS)
    lines = [
        f"| seed | side | {heads} | last accuracy (95%) | at s, steps |",
        "|---" * (len(LEVELS) + 4) + "|",
    ]
    for row in rows:
        for side, curve in row["curves"].items():
            reached = [
                next((f"{point['train_s']:.0f}" for point in curve if point["avg"] >= level), "not reached")
                for level in LEVELS
            ]
            last = curve[-1]
            lines.append(
                f"| {row['seed']} | {side} | {' | '.join(reached)} | {last['avg']:.3f} "
                f"[{last['avg_low']:.3f}, {last['avg_high']:.3f}] | {last['train_s']:.0f}, {last['step']} |"
            )
    return "\n".join(lines)
