"""Scored groups to packed batches: rollouts end to end, no padding, one optimizer step weighted at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from verigrad.engine.aggregation import AggregateFn
from verigrad.engine.bins import Rows, pack_evenly, pack_rows, waste
from verigrad.engine.prefixes import layout_of, pays, size_of
from verigrad.engine.schema import Metrics, PackedBatch, Rollout, ScoredGroup
from verigrad.engine.settings import PolicyConfig


@dataclass(frozen=True, slots=True)
class _Row:
    rollout: Rollout
    advantage: float
    weight: float  # of each of its trained tokens in the step's loss
    group: int = 0  # of the groups packed together
    nll_weight: float = 0.0  # of each of its trained tokens in the likelihood of right rollouts


def pack(
    groups: Sequence[ScoredGroup],
    aggregate: AggregateFn,
    *,
    max_tokens: int,
    overlong_filter: bool = False,
    together: bool = False,
    share_prefixes: bool = True,
    first_group: int = 0,
    apart: bool = False,
    num_ranks: int = 1,
    pair_cost: float = 0.0,
) -> list[PackedBatch]:
    """All that one optimizer step trains on, as batches of which at most `max_tokens` tokens are computed.

    With `share_prefixes` a group's rollouts lie in as few batches as they fit in, and what they begin with
    alike counts once in each. Left out: rollouts with an undecided verdict and, with `overlong_filter`,
    truncated ones. Token weights are fixed here, over the whole step, so the loss does not depend on how the
    rollouts were packed. Groups are numbered from `first_group`. With `together` no group is divided between
    batches, and rollouts of advantage 0, of which no pair is made, are left out too. With `apart` rollouts of
    advantage 0 lie in batches of their own, after the others, where a backward pass saved is worth more than
    their prompt computed again.

    For several ranks: as many batches for each, of nearly equal cost, to be dealt out by `bins.balance`;
    `pair_cost` is bins.pair_cost of the model. Groups of pairs are not divided, nor evened out.
    """
    members = [
        (rollout, advantage, index, verdict.outcome == "right")
        for index, group in enumerate(groups)
        for rollout, verdict, advantage in zip(group.rollouts, group.verdicts, group.advantages, strict=True)
        if verdict.decided
        and not (overlong_filter and rollout.truncated)
        and not (together and advantage == 0)
        and any(rollout.loss_mask[1:])
    ]
    counts = [sum(rollout.loss_mask[1:]) for rollout, _, _, _ in members]
    num_right = sum(count for count, (_, _, _, right) in zip(counts, members, strict=True) if right)
    rows = [
        _Row(rollout, advantage, weight, first_group + index, 1.0 / num_right if right else 0.0)
        for (rollout, advantage, index, right), weight in zip(members, aggregate(counts), strict=True)
    ]
    if together:
        bins = _whole_groups(rows, max_tokens, share=share_prefixes)
    else:
        parts = _apart(rows, share=share_prefixes) if apart else [rows]
        bins = [
            one
            for part in parts
            for one in _divided(
                part, max_tokens, share=share_prefixes, num_ranks=num_ranks, pair_cost=pair_cost
            )
        ]
    return [_lay_out(rows) for rows in bins]


def pack_stats(minibatches: Sequence[Sequence[PackedBatch]], cfg: PolicyConfig) -> Metrics:
    """How a step was packed: passes, share of columns that were not computed once more, passes to spare."""
    batches = [batch for part in minibatches for batch in part]
    total = sum(batch.input_ids.numel() for batch in batches)
    sizes = [
        [len(layout_of(b.input_ids, b.cu_seqlens, share=cfg.share_prefixes).columns) for b in part]
        for part in minibatches
    ]
    computed = sum(map(sum, sizes))
    wasted = sum(waste(part, cfg.tokens_per_batch) * len(part) for part in sizes)
    return {
        "pack/micro_batches": float(len(batches)),
        "pack/shared": 1 - computed / total if total else 0.0,
        "pack/waste": wasted / max(1, len(batches)),
    }


def lay_out(rollouts: Sequence[Rollout]) -> PackedBatch:
    """Rollouts as one batch to take log-probabilities of: no advantages, no weights in a loss."""
    return _lay_out([_Row(rollout, 0.0, 0.0) for rollout in sorted(rollouts, key=_length, reverse=True)])


def _divided(
    rows: Sequence[_Row], max_tokens: int, *, share: bool, num_ranks: int, pair_cost: float
) -> list[list[_Row]]:
    """Rows in bins, a group's rows in as few as pays; longest first in each."""
    for row in rows:
        if _length(row.rollout) > max_tokens:
            first_fit([_length(row.rollout)], max_tokens, what="a rollout")  # says so
    if not rows:
        return []
    groups = _groups(rows)
    common = {group: _common(members) if share else 0 for group, members in groups.items()}
    given = Rows(
        lengths=[_length(row.rollout) for row in rows],
        groups=[row.group for row in rows],
        common=[common[row.group] for row in rows],
        max_tokens=max_tokens,
        pair_cost=pair_cost,
    )
    bins = pack_rows(given) if num_ranks == 1 else pack_evenly(given, num_ranks=num_ranks)
    return [[rows[index] for index in members] for members in bins]


def _whole_groups(rows: Sequence[_Row], max_tokens: int, *, share: bool) -> list[list[_Row]]:
    """Whole groups in bins; longest rows first in each."""
    units = list(_groups(rows).values())
    sizes = [_size(unit, share=share) for unit in units]
    bins = first_fit(sizes, max_tokens, what="a group's paired rollouts")
    return [
        sorted((row for index in members for row in units[index]), key=lambda r: -_length(r.rollout))
        for members in bins
    ]


def _apart(rows: Sequence[_Row], *, share: bool) -> list[list[_Row]]:
    """Rows that have a gradient and, where moving them away pays, those of advantage 0.

    A backward pass costs twice a forward pass: a group's rows are moved where their forward pass alone, its
    beginning computed again, costs less than all three passes beside the others.
    """
    near: list[_Row] = []
    far: list[_Row] = []
    for members in _groups(rows).values():
        idle = [row for row in members if row.advantage == 0]
        rest = [row for row in members if row.advantage != 0]
        together, divided = (
            3 * _size(members, share=share),
            3 * _size(rest, share=share) + _size(idle, share=share),
        )
        if divided < together:
            near, far = near + rest, far + idle
        else:
            near += members
    return [near, far]


def _groups(rows: Sequence[_Row]) -> dict[int, list[_Row]]:
    groups: dict[int, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def _common(rows: Sequence[_Row]) -> int:
    """Tokens that all begin with, 0 where sharing them does not pay."""
    sequences = [row.rollout.token_ids for row in rows]
    saved = sum(map(len, sequences)) - size_of(sequences)
    common = saved // max(1, len(rows) - 1)
    return common if pays(common, len(rows)) else 0


def _size(rows: Sequence[_Row], *, share: bool) -> int:
    return size_of([row.rollout.token_ids for row in rows], share=share)


def first_fit(sizes: Sequence[int], max_tokens: int, *, what: str) -> list[list[int]]:
    """First-fit decreasing: at most 11/9 of the fewest possible bins, and longest first in each.

    Indices into `sizes`, in tokens. Raises ValueError for `what` (such as "a rollout") that fits no bin.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        size = sizes[index]
        if size > max_tokens:
            raise ValueError(
                f"{what} of {size} tokens does not fit policy.tokens_per_batch = {max_tokens}; raise it"
            )
        for i, free in enumerate(room):
            if size <= free:
                bins[i].append(index)
                room[i] -= size
                break
        else:
            bins.append([index])
            room.append(max_tokens - size)
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
    nll_weights: list[float] = []
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
        nll_weights += [row.nll_weight] * length
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
        nll_weights=torch.tensor(nll_weights, dtype=torch.float32),
    )
