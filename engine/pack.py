"""Scored groups to packed batches: rollouts end to end, no padding, one optimizer step weighted at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from verigrad.engine.aggregation import AggregateFn
from verigrad.engine.schema import PackedBatch, Rollout, ScoredGroup


@dataclass(frozen=True, slots=True)
class _Row:
    rollout: Rollout
    advantage: float
    weight: float  # of each of its trained tokens in the step's loss
    group: int = 0  # of the groups packed together


def pack(
    groups: Sequence[ScoredGroup],
    aggregate: AggregateFn,
    *,
    max_tokens: int,
    overlong_filter: bool = False,
    first_group: int = 0,
) -> list[PackedBatch]:
    """All that one optimizer step trains on, as batches of at most `max_tokens` tokens.

    Left out: rollouts with an undecided verdict and, with `overlong_filter`, truncated ones. Token weights
    are fixed here, over the whole step, so the loss does not depend on how the rollouts were packed. Groups
    are numbered from `first_group`.
    """
    members = [
        (rollout, advantage, index)
        for index, group in enumerate(groups)
        for rollout, verdict, advantage in zip(group.rollouts, group.verdicts, group.advantages, strict=True)
        if verdict.decided and not (overlong_filter and rollout.truncated) and any(rollout.loss_mask[1:])
    ]
    weights = aggregate([sum(rollout.loss_mask[1:]) for rollout, _, _ in members])
    rows = [
        _Row(rollout, advantage, weight, first_group + index)
        for (rollout, advantage, index), weight in zip(members, weights, strict=True)
    ]
    return [_lay_out(rows) for rows in _first_fit(rows, max_tokens)]


def lay_out(rollouts: Sequence[Rollout]) -> PackedBatch:
    """Rollouts as one batch to take log-probabilities of: no advantages, no weights in a loss."""
    return _lay_out([_Row(rollout, 0.0, 0.0) for rollout in sorted(rollouts, key=_length, reverse=True)])


def _first_fit(rows: Sequence[_Row], max_tokens: int) -> list[list[_Row]]:
    """First-fit decreasing: at most 11/9 of the fewest possible bins, and longest rows first in each."""
    bins: list[list[_Row]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: _length(row.rollout), reverse=True):
        length = _length(row.rollout)
        if length > max_tokens:
            raise ValueError(
                f"a rollout of {length} tokens does not fit policy.tokens_per_batch = {max_tokens}; raise it"
            )
        for i, free in enumerate(room):
            if length <= free:
                bins[i].append(row)
                room[i] -= length
                break
        else:
            bins.append([row])
            room.append(max_tokens - length)
    return bins


def _length(rollout: Rollout) -> int:
    return len(rollout.token_ids)


def _lay_out(rows: Sequence[_Row]) -> PackedBatch:
    """One batch. Label-aligned columns are shifted left by one; each rollout's last column has no label."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    advantages: list[float] = []
    weights: list[float] = []
    bounds = [0]
    for row in rows:
        rollout = row.rollout
        length = len(rollout.token_ids)
        ids += rollout.token_ids
        labels += [*rollout.token_ids[1:], 0]
        positions += range(length)
        mask += [*rollout.loss_mask[1:], False]
        logprobs += [*rollout.logprobs[1:], 0.0]
        advantages += [row.advantage] * length
        weights += [row.weight] * length
        bounds.append(bounds[-1] + length)
    rollout_logprobs = torch.tensor(logprobs, dtype=torch.float32)
    return PackedBatch(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        labels=torch.tensor(labels),
        loss_mask=torch.tensor(mask),
        rollout_logprobs=rollout_logprobs,
        old_logprobs=rollout_logprobs,
        ref_logprobs=None,
        advantages=torch.tensor(advantages, dtype=torch.float32),
        loss_weights=torch.tensor(weights, dtype=torch.float32),
        groups=torch.tensor([row.group for row in rows]),
    )
