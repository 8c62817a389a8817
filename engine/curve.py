"""A run's metrics and evaluations to a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9")  # told apart by the colour-blind too


def draw(
    path: Path, metrics: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]], *, title: str
) -> None:
    """Write a PNG: held-out accuracy (95% interval) and training reward above, length and entropy below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 2))
    steps = [row["step"] for row in metrics]
    top.plot(steps, _column(metrics, "reward"), color="#999999", lw=1.2, label="training reward")
    for data, colour in zip(dict.fromkeys(row["data"] for row in evals), COLOURS, strict=False):
        rows = [row for row in evals if row["data"] == data]
        x = [row["step"] for row in rows]
        top.plot(x, _column(rows, "avg"), "o-", color=colour, label=f"{data}, 95% interval")
        top.fill_between(
            x,
            _column(rows, "avg_low"),
            _column(rows, "avg_high"),
            color=colour,
            alpha=0.2,
            lw=0,
        )
    bottom_of, top_of = top.get_ylim()
    top.set_ylim(min(-0.02, bottom_of), max(1.02, top_of))
    top.set_ylabel("reward (1 is right)")
    top.set_title(title)
    top.grid(alpha=0.3)
    top.legend(loc="best", frameon=False)
    bottom.plot(steps, _column(metrics, "completion_tokens_mean"), color="#009E73")
    bottom.set_ylabel("completion tokens (mean)", color="#009E73")
    bottom.set_xlabel("step")
    bottom.set_ylim(bottom=0)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.grid(alpha=0.3)
    right = bottom.twinx()
    right.plot(steps, _column(metrics, "entropy"), color="#CC79A7", ls="--")
    right.set_ylim(bottom=0)
    right.set_ylabel("entropy per token (nats)", color="#CC79A7")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """One number per row; what was not finite is null on disk, and a gap in the line."""
    return [math.nan if row[key] is None else row[key] for row in rows]
