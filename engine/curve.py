"""A run's metrics and evaluations to a picture.

Of `train` rewards, one panel for each judge; of `sft`, `prefer` and `reward` accuracy and loss.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9")  # told apart by the colour-blind too
GREY = "#999999"
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judge:
    """Who gave rewards: numbers of two judges have no unit in common."""

    name: str
    options: str = "{}"  # as JSON

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> "Judge":
        """A verifier as a recipe names it."""
        return cls(name, json.dumps(dict(options), sort_keys=True, default=str))

    @property
    def label(self) -> str:
        """The name without the folders or packages it is in."""
        module, colon, function = self.name.rpartition(":")
        place = module.rpartition("/")[2] if module.endswith(".py") else module.rpartition(".")[2]
        return f"{place}{colon}{function}"


def draw(
    path: Path,
    metrics: Sequence[Row],
    evals: Sequence[Row],
    *,
    title: str,
    paid_by: Judge,
    judged_by: Mapping[str, Judge],
) -> None:
    """Write a PNG: rewards above, one panel for each judge; completion length and entropy below.

    `judged_by`: held-out set -> who judges it. Held-out sets come first, with 95% intervals; in grey the
    training reward, in the panel of its own judge.
    """
    sets = list(dict.fromkeys(row["data"] for row in evals))
    panels = panels_of({data: judged_by.get(data, paid_by) for data in sets}, paid_by)
    figure, axes = _figure(len(panels) + 1, title)
    names = [judge.label for judge in panels]
    for axis, (judge, shown) in zip(axes, panels.items(), strict=False):
        who = (
            judge.label
            if names.count(judge.label) == 1 or judge == paid_by
            else f"{judge.label}, other options"
        )
        if judge == paid_by:
            values = _column(metrics, "reward")
            axis.plot(_steps(metrics), values, color=GREY, lw=1.2, label=f"training, by {who}")
        for data in shown:
            of_set = [row for row in evals if row["data"] == data]
            _interval(axis, of_set, "avg", COLOURS[sets.index(data) % len(COLOURS)], f"{data}, by {who}")
        seen = [y for line in axis.get_lines() for y in line.get_ydata() if math.isfinite(y)]
        of_right = all(0 <= y <= 1 for y in seen)
        if of_right:
            axis.set_ylim(-0.02, 1.02)
        alone = (
            judge == paid_by and not shown and len(panels) > 1
        )  # what others measure as right is not its own
        axis.set_ylabel("reward (1 is right)" if of_right and not alone else "reward")
        _legend(axis)
    bottom = axes[-1]
    bottom.plot(_steps(metrics), _column(metrics, "completion_tokens_mean"), color="#009E73")
    bottom.set_ylabel("completion tokens (mean)", color="#009E73")
    bottom.set_ylim(bottom=0)
    right = bottom.twinx()
    right.plot(_steps(metrics), _column(metrics, "entropy"), color="#CC79A7", ls="--")
    right.set_ylim(bottom=0)
    right.set_ylabel("entropy per token (nats)", color="#CC79A7")
    _write(figure, path)


def draw_offline(path: Path, metrics: Sequence[Row], evals: Sequence[Row], *, title: str) -> None:
    """Write a PNG: the accuracy, where there is one, and the loss, in training and on each held-out set."""
    known = [name for name in ("accuracy", "loss") if any(name in row for row in (*metrics, *evals))]
    figure, axes = _figure(max(1, len(known)), title)
    for axis, name in zip(axes, known, strict=False):
        rows = [row for row in metrics if name in row]
        axis.plot(_steps(rows), _column(rows, name), color=GREY, lw=1.2, label="training")
        of_name = [row for row in evals if name in row]
        for number, data in enumerate(dict.fromkeys(row["data"] for row in of_name)):
            of_set = [row for row in of_name if row["data"] == data]
            _interval(axis, of_set, name, COLOURS[number % len(COLOURS)], str(data))
        axis.set_ylabel(name)
        if name == "accuracy":
            axis.set_ylim(-0.02, 1.02)
        _legend(axis)
    _write(figure, path)


def panels_of(judged_by: Mapping[str, Judge], paid_by: Judge) -> dict[Judge, list[str]]:
    """Judge -> the held-out sets it judges, that of training last where it judges none."""
    panels: dict[Judge, list[str]] = {}
    for data, judge in judged_by.items():
        panels.setdefault(judge, []).append(data)
    panels.setdefault(paid_by, [])
    return panels


def _figure(num: int, title: str) -> tuple[Any, Sequence[Any]]:
    """A figure of `num` panels over the same steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    heights = [3] * (num - 1) + [2] if num > 1 else [3]
    figure, axes = plt.subplots(
        num, 1, figsize=(8, 1 + 1.2 * sum(heights)), sharex=True, height_ratios=heights, squeeze=False
    )
    panels = list(axes[:, 0])
    panels[0].set_title(title)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure, panels


def _write(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _legend(axis: Any) -> None:
    if axis.get_lines():
        axis.legend(loc="best", frameon=False)


def _interval(axis: Any, rows: Sequence[Row], name: str, colour: str, label: str) -> None:
    """A measured column, with its interval where that was recorded."""
    ends = f"{name}_low", f"{name}_high"
    sure = all(end in row for row in rows for end in ends)
    axis.plot(
        _steps(rows), _column(rows, name), "o-", color=colour, label=f"{label}{', 95% interval' * sure}"
    )
    if sure:
        low, high = (_column(rows, end) for end in ends)
        axis.fill_between(_steps(rows), low, high, color=colour, alpha=0.2, lw=0)


def _steps(rows: Sequence[Row]) -> list[int]:
    return [row["step"] for row in rows]


def _column(rows: Sequence[Row], key: str) -> list[float]:
    """One number per row; what was not finite is null on disk, and a gap in the line."""
    return [math.nan if row[key] is None else row[key] for row in rows]
