"""A recipe for `verigrad reward` -> the parts without weights: card, folds, agreement, scale of length."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verigrad.engine import reward_data, reward_votes
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.data import path_of
from verigrad.engine.examples import require_row
from verigrad.engine.reward_card import Card
from verigrad.engine.reward_sets import RewardData, fold_of
from verigrad.engine.rollout_pairs import files_of, is_run, require_run
from verigrad.engine.rows import read_rows

MOST_LOOKED_AT = 512  # examples that scales, folds and the audit are measured on


def require_source(cfg: Config) -> None:
    """Raise ConfigError when data.path gives nothing, before anything expensive is done."""
    require_run(cfg.data, cfg.reward.pairs_per_problem, setting="reward.pairs_per_problem")
    if cfg.reward.kind == "pairs" and is_run(path_of(cfg.data)):
        files_of(cfg.data.path)
        return
    expected = reward_data.EXPECTED[cfg.reward.kind]
    require_row(cfg.data, reward_data.check_row(cfg), expected, seed=cfg.train.seed)


def card_of(cfg: Config, *, eos_id: int) -> Card:
    """What reward.json will say, but for the scale of rewards."""
    settings = cfg.reward
    return Card(
        kind="steps" if settings.kind == "steps" else "ensemble" if settings.members > 1 else "pairs",
        prompts=cfg.prompts.model_dump(mode="json"),
        max_length=settings.max_length,
        eos_id=eos_id,
        separator=settings.step_separator,
        solution=settings.solution,
        members=settings.members,
        aggregate=settings.aggregate,
        std_coef=settings.std_coef,
    )


def member_folder(folder: Path, cfg: Config, number: int) -> Path:
    """Where a member's weights are: member_1, member_2, ...; one alone is the folder itself."""
    return folder / f"member_{number + 1}" if cfg.reward.members > 1 else folder


def folds_of(cfg: Config, data: RewardData[Any]) -> list[NDArray[np.int64]]:
    """What each member does not learn from; nothing where they differ in their seeds alone."""
    num = cfg.reward.members
    if num == 1 or cfg.reward.split == "seeds":
        return [np.zeros(0, np.int64)] * num
    folds = fold_of(data.train.prompts[data.kept], num)
    for k in range(num):
        if (folds == k).all():
            raise ConfigError(
                f"reward.split = 'folds': all {len(data.kept)} rows are in member {k + 1}'s own "
                "fold, so that nothing is left for it. Bring more prompts, or set reward.split = 'seeds'"
            )
    return [data.kept[folds == k] for k in range(num)]


def length_scale(data: RewardData[Any]) -> float:
    """Standard deviation of the difference in length of compared answers, in tokens; at least 1."""
    some, _ = data.subset(data.kept[:MOST_LOOKED_AT])
    gaps = [
        float(example.texts[i].num_answer - example.texts[j].num_answer)
        for example in (some[k] for k in range(len(some)))
        for i, j in example.pairs
    ]
    return max(1.0, math.sqrt(statistics.fmean(gap**2 for gap in gaps)))


def agreement_of(cfg: Config) -> Mapping[str, Any] | None:
    """How far the annotators of data.path agree, where it names them."""
    if cfg.reward.kind == "steps" or is_run(cfg.data.path):
        return None
    data = cfg.data
    rows = read_rows(data.path, split=data.split, seed=cfg.train.seed, options=data.options)
    return reward_votes.agreement(reward_votes.votes_of(rows, data.columns), seed=cfg.train.seed)


def tell_agreement(found: Mapping[str, Any] | None) -> list[str]:
    """The agreement in lines for the log."""
    if found is None:
        return []
    alpha = f"{found['alpha']:.3f} [{found['alpha_low']:.3f}, {found['alpha_high']:.3f}]"
    each = ", ".join(f"{name} {one['agrees']:.0%}" for name, one in found["by_annotator"].items())
    return [
        f"annotators agree with Krippendorff's alpha {alpha} on {found['num_pairs']} pairs; with the "
        f"majority of the others: {each or 'no majority to compare with'}"
    ]


def with_scale(card: Card, values: Sequence[float]) -> Card:
    """The card with mean and standard deviation of these rewards."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return dataclasses.replace(card, mean=None, std=None)
    return dataclasses.replace(card, mean=statistics.fmean(finite), std=statistics.pstdev(finite))
