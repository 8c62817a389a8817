"""A run folder to the table and the picture at its end."""

from typing import Any

from verigrad.engine import curve, rollout_file
from verigrad.engine.checkpoint import name_of
from verigrad.engine.intervals import paired_gain
from verigrad.engine.run import Run
from verigrad.engine.screen import Screen, relative

PHASES = ("start", "rollout", "verify", "train", "sync", "eval", "save")


def show(run: Run, screen: Screen) -> int:
    """Print the table, write curve.png beside it, and return exit status 0."""
    evals, metrics = run.evaluations(), run.metrics()
    rows: list[tuple[str, str]] = []
    for data in dict.fromkeys(row["data"] for row in evals):
        rows += _gain(run, data, [row for row in evals if row["data"] == data])
    if metrics:
        rows.append(("training reward", f"{metrics[0]['reward']:.3f} -> {metrics[-1]['reward']:.3f}"))
        first, last = metrics[0]["completion_tokens_mean"], metrics[-1]["completion_tokens_mean"]
        rows.append(("completion length", f"{first:.1f} -> {last:.1f} tokens"))
    rows.append(("where the time went", _time_split(run.total_seconds())))
    picture = run.folder / "curve.png"
    curve.draw(picture, metrics, evals, title=run.folder.name)
    rows += [("run folder", relative(run.folder)), ("curve", relative(picture))]
    screen.summary(rows, title=f"{run.folder.name}: {len(metrics)} steps")
    return 0


def _gain(run: Run, data: str, evals: list[dict[str, Any]]) -> list[tuple[str, str]]:
    before, after = evals[0], evals[-1]
    rows = [
        (f"{data} accuracy {when}", f"{row['avg']:.3f}  [{row['avg_low']:.3f}, {row['avg_high']:.3f}]"
         f"  on {row['num_problems']} unseen problems")
        for when, row in (("before", before), ("after", after))
    ]  # fmt: skip
    if before["step"] == after["step"]:
        return rows[:1]
    old, new = (
        rollout_file.correctness(run.folder / "evals" / f"{name_of(row['step'])}_{data}.parquet")
        for row in (before, after)
    )
    both = [problem for problem in old if old[problem] and new.get(problem)]
    gain, low, high = paired_gain([_mean(old[p]) for p in both], [_mean(new[p]) for p in both])
    return [*rows, (f"{data} gain", f"{gain:+.3f}  [{low:+.3f}, {high:+.3f}]  (95%, paired by problem)")]


def _time_split(seconds: dict[str, float]) -> str:
    known = {name: seconds[name] for name in PHASES if seconds.get(name, 0) >= 0.05}
    total = sum(known.values())
    parts = [f"{name} {value:.0f} s ({value / total:.0%})" for name, value in known.items()]
    return f"{total:.0f} s: {', '.join(parts)}" if parts else "not recorded"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
