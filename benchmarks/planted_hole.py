"""What a hole in the judge does to training: the same run, paid by exit statuses and paid by unit_tests.

    python benchmarks/planted_hole.py [--seed 0] [--out benchmarks/results]

Model, problems, algorithm and seeds are those of the recipe; only the judge that pays differs. Both runs'
held-out programs are judged by `unit_tests`. Draws docs/images/planted_hole.png.
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

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PICTURE = HERE.parent / "docs" / "images" / "planted_hole.png"
RECIPE = "quickstart_code"
EVERY = 5  # steps between evaluations
JUDGES = {
    # The audit before training would refuse the first: that is what it is for.
    "exit status": [f"verifier.name={HERE / 'naive_judge.py'}:exit_status", "verifier.audit=off"],
    "unit_tests": [],
}
GIVES_UP = "exit()"
COLOURS = {"exit status": "#D55E00", "unit_tests": "#0072B2"}


def main() -> None:
    """Train twice, append a row, draw the picture, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("settings", nargs="*", default=[], help="settings of both runs, to try it out small")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verigrad-hole-") as folder:
        curves = {
            name: train(Path(folder) / name.replace(" ", "_"), [*own, *args.settings], seed=args.seed)
            for name, own in JUDGES.items()
        }
    row = {"what": "planted_hole", "seed": args.seed, "machine": measured.machine(), "curves": curves}
    measured.append_row(args.out / "planted_hole.jsonl", row)
    draw(PICTURE if args.out == RESULTS else args.out / PICTURE.name, curves)
    print(table(curves))


def train(folder: Path, settings: Sequence[str], *, seed: int) -> dict[str, Any]:
    """One run's curves: reward paid and share of programs that give up by step, held-out accuracy."""
    command = [str(Path(sys.executable).parent / "verigrad"), "train", RECIPE, f"eval.every={EVERY}"]
    subprocess.run([*command, f"train.seed={seed}", f"run.folder={folder}", *settings], check=True)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    return {
        "reward": [row["reward"] for row in metrics],
        "gives_up": [gives_up(folder / "rollouts" / f"step_{row['step']:06d}.parquet") for row in metrics],
        "held_out": [{k: row[k] for k in ("step", "avg", "avg_low", "avg_high")} for row in evals],
    }


def gives_up(path: Path) -> float:
    """Share of a step's programs that end the process instead of answering."""
    import pyarrow.parquet as pq

    texts = pq.read_table(path, columns=["text"]).column("text").to_pylist()
    return sum(GIVES_UP in text for text in texts) / len(texts)


def draw(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Left what each judge paid, right what its model can do."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (paid, can) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for name, curve in curves.items():
        steps = range(1, len(curve["reward"]) + 1)
        paid.plot(steps, curve["reward"], color=COLOURS[name], label=f"paid by {name}")
        paid.plot(steps, curve["gives_up"], "--", color=COLOURS[name], label=f"its share of {GIVES_UP}")
        x, avg, low, high = (
            [row[k] for row in curve["held_out"]] for k in ("step", "avg", "avg_low", "avg_high")
        )
        can.plot(x, avg, "o-", color=COLOURS[name], label=f"trained by {name}")
        can.fill_between(x, low, high, color=COLOURS[name], alpha=0.2, lw=0)
    paid.set_title("what the judge paid")
    can.set_title("held-out programs that are right (95%)")
    for axes in (paid, can):
        axes.set_xlabel("step")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="center right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """First and last step of both runs."""
    lines = ["| judge | reward paid | programs that give up | held-out, right (95%) |", "|---|---|---|---|"]
    for name, curve in curves.items():
        first, last = curve["held_out"][0], curve["held_out"][-1]
        lines.append(
            f"| {name} | {curve['reward'][0]:.3f} -> {curve['reward'][-1]:.3f} "
            f"| {curve['gives_up'][0]:.3f} -> {curve['gives_up'][-1]:.3f} "
            f"| {first['avg']:.3f} -> {last['avg']:.3f} [{last['avg_low']:.3f}, {last['avg_high']:.3f}] |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
