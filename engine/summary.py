"""A run folder to the table and the picture at its end."""

import statistics
from collections.abc import Mapping
from typing import Any

from verigrad.engine import curve, rollout_file, tripped
from verigrad.engine.catalogue import ROWS
from verigrad.engine.checkpoint import name_of
from verigrad.engine.intervals import paired_gain
from verigrad.engine.run import Run
from verigrad.engine.scoring import Judges
from verigrad.engine.screen import Screen, name_of_score, relative

PHASES = ("start", "rollout", "verify", "train", "sync", "eval", "save")


def show(run: Run, screen: Screen) -> int:
    """Print the table, write curve.png beside it, and return exit status 0."""
    evals, metrics = run.evaluations(), run.metrics()
    rows: list[tuple[str, str]] = []
    for data in dict.fromkeys(row["data"] for row in evals):
        rows += _gain(run, data, [row for row in evals if row["data"] == data])
    if metrics:
        rows.append(
            ("training reward", f"{_number(metrics[0], 'reward')} -> {_number(metrics[-1], 'reward')}")
        )
        first, last = metrics[0]["completion_tokens_mean"], metrics[-1]["completion_tokens_mean"]
        rows.append(("completion length", f"{first:.1f} -> {last:.1f} tokens"))
        undecided = statistics.fmean(row["undecided_frac"] for row in metrics)
        if undecided:
            rows.append(("undecided verdicts", f"{undecided:.1%} of all; see `reason` in rollouts/"))
        rows += _verifier(metrics)
        idle = sum(row["entropy"] is None for row in metrics)
        if idle:
            rows.append(("steps with nothing to train on", f"{idle} of {len(metrics)}"))
    if run.environment().get("control"):
        rows.append(("CONTROL", f"{run.cfg.verifier.name} pays whatever is answered"))
    if trips := tripped.recorded(run.folder):
        more = f"; and {len(trips) - 1} more" if len(trips) > 1 else ""
        rows.append(("TRIPPED", f"see tripped/: {trips[0].said}{more}"))
    rows.append(("what was trained", _method(run)))
    rows.append(("where the time went", _time_split(run.total_seconds())))
    picture = run.folder / "curve.png"
    sets = dict.fromkeys(row["data"] for row in evals)
    verifier, judges = run.cfg.verifier, Judges(run.cfg)
    curve.draw(
        picture,
        metrics,
        evals,
        title=run.folder.name,
        paid_by=curve.Judge.of(verifier.name, verifier.options),
        judged_by={data: curve.Judge.of(*judges.choice(data)[:2]) for data in sets},
    )
    rows += [("run folder", relative(run.folder)), ("curve", relative(picture))]
    screen.summary(rows, title=f"{run.folder.name}: {len(metrics)} steps")
    return 0


def _verifier(metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How the verifier fared over the recorded steps; nothing of runs from before this was recorded."""
    steps = [row for row in metrics if "verify/p50_s" in row]
    if not steps:
        return []

    def mean(name: str) -> float:
        return statistics.fmean(row[f"verify/{name}"] for row in steps)

    words = [f"{1000 * statistics.median(row['verify/p50_s'] for row in steps):.1f} ms a check"]
    words.append(f"slowest {max(row['verify/slowest_s'] for row in steps):.2f} s")
    if mean("timeout_frac"):
        words.append(f"{mean('timeout_frac'):.1%} timed out")
    if killed := sum(row["verify/restarts"] for row in steps):
        words.append(f"{killed:.0f} workers killed and replaced")
    if mean("cache_hit_frac"):
        words.append(f"{mean('cache_hit_frac'):.0%} taken from memory")
    return [("verifier", ", ".join(words))]


def _method(run: Run) -> str:
    """The algorithm, its parts where they are not its own, and adapters."""
    chosen, adapters = run.cfg.algorithm, run.cfg.lora
    row = ROWS[chosen.name]
    own = (row.advantage, row.loss, row.aggregation)
    mixed = [part for part in (chosen.advantage, chosen.loss, chosen.aggregation) if part not in own]
    words = [chosen.name, *(f"with {part}" for part in mixed)]
    return ", ".join([*words, f"LoRA of rank {adapters.rank}" if adapters.rank else "all weights"])


def _gain(run: Run, data: str, evals: list[dict[str, Any]]) -> list[tuple[str, str]]:
    before, after = evals[0], evals[-1]
    old, new = (
        rollout_file.correctness(run.folder / "evals" / f"{name_of(row['step'])}_{data}.parquet")
        for row in (before, after)
    )
    score = name_of_score(r for rewards in (*old.values(), *new.values()) for r in rewards)
    rows = [
        (f"{data} {score} {when}", f"{_interval(row)}  on {row['num_problems']} unseen problems")
        for when, row in (("before", before), ("after", after))
    ]
    if before["step"] == after["step"]:
        return rows[:1]
    both = [problem for problem in old if old[problem] and new.get(problem)]
    if len(both) < 2:
        return rows
    gain, low, high = paired_gain([_mean(old[p]) for p in both], [_mean(new[p]) for p in both])
    return [*rows, (f"{data} gain", f"{gain:+.3f}  [{low:+.3f}, {high:+.3f}]  (95%, paired by problem)")]


def _time_split(seconds: dict[str, float]) -> str:
    known = {name: seconds[name] for name in PHASES if seconds.get(name, 0) >= 0.05}
    total = sum(known.values())
    parts = [f"{name} {value:.0f} s ({value / total:.0%})" for name, value in known.items()]
    return f"{total:.0f} s: {', '.join(parts)}" if parts else "not recorded"


def _number(row: Mapping[str, Any], key: str) -> str:
    """A number that may not have been finite, which is null on disk."""
    return "undefined" if row[key] is None else f"{row[key]:.3f}"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_number(row, 'avg')}  [{_number(row, 'avg_low')}, {_number(row, 'avg_high')}]"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
