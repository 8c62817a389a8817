"""PPO against a learned reward whose annotators liked length, with and without KL control: proxy and truth.

    python benchmarks/overoptimisation.py [--seed 0] [--out benchmarks/results] [rlhf_ppo's settings ...]

One reward model, two runs that differ by their KL coefficient alone. Afterwards all rollouts are judged by
the true reward, which small_talk knows. During the runs monitor.verifier asks it of a few rollouts of each
step: that is what trips. Draws docs/images/overoptimisation.png.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measured

from verigrad.engine import config, stage_recipe
from verigrad.engine.recipes.small_talk_gold import gold

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PICTURE = HERE.parent / "docs" / "images" / "overoptimisation.png"
RECIPE = "rlhf_ppo"
TRUTH = "verigrad.engine.recipes.small_talk:true_reward"
NO_CONTROL = 1e-9  # a reference is kept and measured, and pulls at nothing
WATCHED = {
    "verifier": TRUTH,
    "max_proxy_gap": 1000.0,  # a learned reward and the truth have no unit in common
    "max_second_drop": 0.1,
    "patience": 3,
    "action": "warn",  # so that the curve goes on
}
COLOURS = {"with KL control": "#0072B2", "without": "#D55E00"}


def main() -> None:
    """Train one reward model and two policies, append a row, draw the picture, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("settings", nargs="*", default=[], help="overrides of the recipe")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verigrad-overoptimisation-") as folder:
        curves = race(Path(folder), args.settings, seed=args.seed)
    row = {"what": "overoptimisation", "seed": args.seed, "machine": measured.machine(), "curves": curves}
    measured.append_row(args.out / "overoptimisation.jsonl", row)
    draw(PICTURE if args.out == RESULTS else args.out / PICTURE.name, curves)
    print(table(curves))


def race(folder: Path, settings: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Name of a run -> its curves."""
    overrides = [f"run.folder={folder / 'run'}", f"train.seed={seed}", *settings]
    recipe = stage_recipe.load(RECIPE, overrides)
    rewards, policy = recipe.stages
    start(folder, "rewards", rewards.cfg, "reward")
    watched = policy.cfg.model_copy(
        update={"monitor": policy.cfg.monitor.model_validate(policy.cfg.monitor.model_dump() | WATCHED)}
    )
    curves = {}
    for name, coef in {"with KL control": policy.cfg.algorithm.kl_coef, "without": NO_CONTROL}.items():
        run = folder / name.replace(" ", "_")
        cfg = watched.model_copy(
            update={
                "run": watched.run.model_copy(update={"folder": str(run)}),
                "algorithm": watched.algorithm.model_copy(update={"kl_coef": coef}),
            }
        )
        start(folder, run.name, cfg, "train")
        curves[name] = curves_of(run, kl_coef=coef)
    return curves


def start(folder: Path, name: str, cfg: config.Config, verb: str) -> None:
    """Run one stage to its end."""
    path = folder / f"{name}.toml"
    path.write_text(config.to_toml(cfg))
    subprocess.run([str(Path(sys.executable).parent / "verigrad"), verb, str(path)], check=True)


def curves_of(run: Path, *, kl_coef: float) -> dict[str, Any]:
    """By step: proxy, truth of every rollout, distance, length; evaluations; where the monitor tripped."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evals = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    truths = [truth(run / "rollouts" / f"step_{row['step']:06d}.parquet") for row in metrics]
    tripped = sorted(
        int(path.stem.removeprefix("step_")) for path in (run / "tripped").glob("step_*.parquet")
    )
    return {
        "kl_coef": kl_coef,
        "proxy": [row["reward"] for row in metrics],
        "truth": truths,
        "kl": [row["kl_ref"] * row["completion_tokens_mean"] for row in metrics],
        "length": [row["completion_tokens_mean"] for row in metrics],
        "held_out": [{k: row[k] for k in ("step", "avg", "avg_low", "avg_high")} for row in evals],
        "tripped": tripped,
    }


def truth(path: Path) -> float:
    """Mean true reward of a step's rollouts."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path, columns=["text", "prompt"]).to_pylist()
    return sum(gold(row["text"], row["prompt"]) for row in rows) / len(rows)


def draw(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Proxy and truth over steps, and over the distance from the start; where the monitor tripped, a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), sharex="col", sharey="row")
    for name, curve in curves.items():
        colour = COLOURS[name]
        steps = list(range(1, len(curve["proxy"]) + 1))
        distance = [max(value, 0.0) ** 0.5 for value in curve["kl"]]
        for row, key in enumerate(("proxy", "truth")):
            axes[row][0].plot(steps, curve[key], color=colour, label=name)
            axes[row][1].plot(distance, curve[key], ".-", color=colour, label=name, lw=0.8, ms=4)
        if curve["tripped"]:
            for row in (0, 1):
                axes[row][0].axvline(curve["tripped"][0], color=colour, ls=":", label="the monitor trips")
    axes[0][0].set_ylabel("proxy: the learned reward")
    axes[1][0].set_ylabel("truth: mean true reward")
    axes[1][0].set_xlabel("step")
    axes[1][1].set_xlabel("root of KL from the start, in nats per answer")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def table(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """First, best and last of both runs."""
    lines = [
        "| run | proxy, first -> last step | truth of rollouts, first -> best (step) -> last "
        "| held-out truth before -> after (95%) | KL, nats per answer | tokens | trips at |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        truths, first, last = curve["truth"], curve["held_out"][0], curve["held_out"][-1]
        best = max(range(len(truths)), key=truths.__getitem__)
        trips = str(curve["tripped"][0]) if curve["tripped"] else "never"
        lines.append(
            f"| {name} (kl_coef {curve['kl_coef']:g}) | {curve['proxy'][0]:.2f} -> {curve['proxy'][-1]:.2f} "
            f"| {truths[0]:.3f} -> {truths[best]:.3f} ({best + 1}) -> {truths[-1]:.3f} "
            f"| {first['avg']:.3f} -> {last['avg']:.3f} [{last['avg_low']:.3f}, {last['avg_high']:.3f}] "
            f"| {curve['kl'][-1]:.1f} | {curve['length'][0]:.0f} -> {curve['length'][-1]:.0f} | {trips} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
