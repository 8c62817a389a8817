"""Rewards of compared answers, scores of steps -> accuracy with interval, calibration, lean on length.

Prompts are the units of every interval: several pairs of one prompt are no independent draws.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verigrad.engine.intervals import Z_95, mean_interval
from verigrad.engine.reward_data import Comparison, LabelledSteps

NUM_BINS = 10
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judged:
    """One comparison with what was said of it."""

    comparison: Comparison
    prompt: int  # the same for the same prompt
    rewards: Sequence[float]  # [K] of its answers
    probs: Sequence[float]  # [pairs] probability that the better answer is the better one


def right(judged: Judged) -> float | None:
    """Share of a row's preferences that the rewards share; equal rewards are wrong. None for a tie."""
    one, rewards = judged.comparison, judged.rewards
    if one.p_chosen == 0.5:
        return None
    if one.best_of:
        best = min(r for r, rank in zip(rewards, one.ranks, strict=True) if rank == 0)
        return float(best > max(r for r, rank in zip(rewards, one.ranks, strict=True) if rank > 0))
    pairs = one.pairs
    return sum(rewards[i] > rewards[j] for i, j in pairs) / len(pairs)


def comparison_row(judged: Sequence[Judged], *, by: str = "") -> dict[str, Any]:
    """What eval.jsonl says of one held-out set of comparisons, `step` and `data` aside."""
    rewards = np.array([r for one in judged for r in one.rewards])
    lengths = np.array([float(t.num_answer) for one in judged for t in one.comparison.texts])
    probs, targets = probabilities(judged)
    row: dict[str, Any] = {
        "num_rows": len(judged),
        **_accuracy(judged),
        "loss": float(-np.mean(targets * np.log(probs) + (1 - targets) * np.log1p(-probs))),
        "ece": calibration_error(table := reliability(probs, targets)),
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "length_corr": correlation(rewards, lengths),
        **lean_on_length(judged),
        "reliability": table,
    }
    if by:
        found: dict[str, list[Judged]] = defaultdict(list)
        for one in judged:
            found[one.comparison.category].append(one)
        row["by"] = {
            name or "none": {"num_rows": len(s), **_accuracy(s)} for name, s in sorted(found.items())
        }
        scores = [each["accuracy"] for each in row["by"].values() if math.isfinite(each["accuracy"])]
        row["accuracy_of_categories"] = sum(scores) / len(scores) if scores else math.nan
    return row


def _accuracy(judged: Sequence[Judged]) -> dict[str, float]:
    """accuracy, accuracy_low, accuracy_high."""
    per_prompt: dict[int, list[float]] = defaultdict(list)
    for one in judged:
        if (share := right(one)) is not None:
            per_prompt[one.prompt].append(share)
    return interval_of(list(per_prompt.values()), "accuracy")


def interval_of(per_prompt: Sequence[Sequence[float]], name: str) -> dict[str, float]:
    """NAME, NAME_low, NAME_high; NaN where there is nothing."""
    ends = mean_interval(per_prompt) if per_prompt else (math.nan, math.nan, math.nan)
    return {f"{name}{end}": value for end, value in zip(("", "_low", "_high"), ends, strict=True)}


def probabilities(judged: Sequence[Judged]) -> tuple[Floats, Floats]:
    """[N] probability that the better one of each pair is better, and [N] what the labels say of it."""
    probs = [p for one in judged for p in one.probs]
    targets = [one.comparison.p_chosen for one in judged for _ in one.probs]
    return np.clip(np.array(probs), 1e-12, 1 - 1e-12), np.array(targets)


def reliability(probs: Floats, targets: Floats, *, low: float = 0.5) -> list[dict[str, float]]:
    """Bins of equal width by confidence, but empty ones: mean confidence, share that was right, how many.

    With `low` = 0.5 a prediction's confidence is that in the side it takes; with 0 it is the probability.
    """
    confidence = np.maximum(probs, 1 - probs) if low else probs
    hit = np.where(probs >= 0.5, targets, 1 - targets) if low else targets
    place = np.clip(((confidence - low) / (1 - low) * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    return [
        {
            "confidence": float(confidence[place == k].mean()),
            "right": float(hit[place == k].mean()),
            "num": int((place == k).sum()),
        }
        for k in range(NUM_BINS)
        if (place == k).any()
    ]


def calibration_error(table: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error: mean gap of confidence and share right (arXiv 1706.04599, eq. 3)."""
    total = sum(each["num"] for each in table)
    gaps = sum(each["num"] * abs(each["confidence"] - each["right"]) for each in table)
    return gaps / total if total else math.nan


# Length ----------------------------------------------------------------------------------------------------


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's; NaN where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 1e-12 else math.nan


def lean_on_length(judged: Sequence[Judged]) -> dict[str, float]:
    """How the difference of two rewards goes with that of the answers' lengths, over pairs.

    "length_corr_within": whatever the preference, among answers to one prompt. "length_corr_equal": at equal
    preference, both differences, better less worse, freed of what the preference (2 p_chosen - 1; a tie is 0)
    explains of them. Where annotators themselves like length, only the first shows it: of two answers
    preferred alike the longer one is then the worse one. Both with a 95% interval (Fisher's z, prompts as
    units). "num_ties": pairs without a preference, which show the second most directly.
    """
    rewards, lengths, preferred, prompts, num_ties = [], [], [], set(), 0
    for one in judged:
        texts = one.comparison.texts
        for i, j in one.comparison.pairs:
            rewards.append(one.rewards[i] - one.rewards[j])
            lengths.append(float(texts[i].num_answer - texts[j].num_answer))
            preferred.append(2 * one.comparison.p_chosen - 1)
            num_ties += one.comparison.p_chosen == 0.5
            prompts.add(one.prompt)
    a, b, x = np.array(rewards), np.array(lengths), np.array(preferred)[:, None]
    row: dict[str, float] = {"num_ties": num_ties}
    for name, corr in (
        ("length_corr_within", through_origin(a, b)),
        ("length_corr_equal", through_origin(_residual(a, x), _residual(b, x))),
    ):
        low, high = fisher_interval(corr, len(prompts))
        row |= {name: corr, f"{name}_low": low, f"{name}_high": high}
    return row


def partial_correlation(a: Floats, b: Floats, given: Floats) -> float:
    """Correlation [N], [N] of what is left of both after a linear fit on `given` [N] and a constant."""
    x = np.column_stack([np.ones(len(a)), given])
    return through_origin(_residual(a, x), _residual(b, x))


def through_origin(a: Floats, b: Floats) -> float:
    """Cosine of two vectors: Pearson's correlation of what has mean 0; NaN where one vanishes."""
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 1e-12 else math.nan


def _residual(y: Floats, x: Floats) -> Floats:
    rest: Floats = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return rest


def fisher_interval(corr: float, num: int) -> tuple[float, float]:
    """95% interval of a correlation of `num` units (Fisher 1921); NaN for fewer than four."""
    if num < 4 or not math.isfinite(corr):
        return math.nan, math.nan
    if abs(corr) >= 1:
        return corr, corr
    half = Z_95 / math.sqrt(num - 3)
    return math.tanh(math.atanh(corr) - half), math.tanh(math.atanh(corr) + half)


# Steps -----------------------------------------------------------------------------------------------------


def steps_row(
    examples: Sequence[LabelledSteps],
    scores: Sequence[Sequence[float]],
    solutions: Sequence[float],
    prompts: Sequence[int],
    *,
    by: str = "",
) -> dict[str, Any]:
    """What eval.jsonl says of one held-out set of labelled steps.

    scores [N][steps] probabilities; solutions [N] the answers' scores made of them. A step is told rightly
    when both its score and its label are above a half, or neither.
    """
    probs = np.clip(np.array([p for each in scores for p in each]), 1e-12, 1 - 1e-12)
    targets = np.array([label for example in examples for label in example.labels])
    whole = np.array([min(example.labels) for example in examples])
    lengths = np.array([float(example.text.num_answer) for example in examples])
    corr = partial_correlation(np.array(solutions), lengths, whole)
    low, high = fisher_interval(corr, len(set(prompts)))

    def accuracy(places: Sequence[int]) -> dict[str, float]:
        found: dict[int, list[float]] = defaultdict(list)
        for k in places:
            pairs = zip(scores[k], examples[k].labels, strict=True)
            found[prompts[k]] += [float((p > 0.5) == (label > 0.5)) for p, label in pairs]
        return interval_of(list(found.values()), "accuracy")

    row: dict[str, Any] = {
        "num_rows": len(examples),
        "num_steps": len(probs),
        **accuracy(range(len(examples))),
        "loss": float(-np.mean(targets * np.log(probs) + (1 - targets) * np.log1p(-probs))),
        "ece": calibration_error(table := reliability(probs, targets, low=0.0)),
        "reward_mean": float(np.mean(solutions)),
        "reward_std": float(np.std(solutions)),
        "length_corr": correlation(np.array(solutions), lengths),
        "length_corr_equal": corr,
        "length_corr_equal_low": low,
        "length_corr_equal_high": high,
        "reliability": table,
    }
    if by:
        names = sorted({example.category for example in examples})
        places = {n: [k for k, e in enumerate(examples) if e.category == n] for n in names}
        row["by"] = {n or "none": {"num_rows": len(some), **accuracy(some)} for n, some in places.items()}
    return row
