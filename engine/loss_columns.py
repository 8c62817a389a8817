"""A packed batch -> its loss as a function of its columns' log-probabilities, of all or of some at a time."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from verigrad.engine.loss import LossFn, LossSums, mismatch_sums
from verigrad.engine.schema import Coefs, LossInputs, PackedBatch

ColumnLoss = Callable[[slice, Tensor, Tensor | None], tuple[Tensor, LossSums]]
"""(columns of the N trained ones, their log-probabilities and entropies with gradient) -> (loss, sums)."""


def column_loss(
    batch: PackedBatch, loss_fn: LossFn, coefs: Coefs, *, device: torch.device, own_old: bool, compare: bool
) -> ColumnLoss:
    """The batch's loss as a function of what the trainer computes.

    `own_old`: the log-probabilities given are the old ones as well, so that every ratio is 1. `compare`: the
    mismatch is that of the log-probabilities given and the sampler's, whatever the loss was given as old.
    """
    mask = batch.loss_mask
    sequence = torch.repeat_interleave(torch.arange(batch.num_rollouts), batch.cu_seqlens.diff().long())

    def chosen(column: Tensor | None) -> Tensor | None:
        return None if column is None else column[mask].to(device)

    columns = {
        "old_logprobs": None if own_old else chosen(batch.old_logprobs),
        "rollout_logprobs": chosen(batch.rollout_logprobs),
        "ref_logprobs": chosen(batch.ref_logprobs),
        "advantages": chosen(batch.advantages),
        "weights": chosen(batch.loss_weights),
        "sequence": chosen(sequence),
        "nll_weights": chosen(batch.nll_weights),
        "groups": None if batch.groups is None else chosen(batch.groups[sequence]),
    }

    def loss(rows: slice, logprobs: Tensor, entropy: Tensor | None) -> tuple[Tensor, LossSums]:
        there = {name: None if column is None else column[rows] for name, column in columns.items()}
        if own_old:
            there["old_logprobs"] = logprobs.detach()
        inputs = LossInputs(
            logprobs=logprobs,
            entropy=entropy,
            correction_scale=batch.correction_scale,
            **there,  # type: ignore[arg-type]
        )
        value, sums = loss_fn(inputs, coefs)
        if compare:
            sums = sums | mismatch_sums(dataclasses.replace(inputs, old_logprobs=logprobs.detach()))
        return value, sums

    return loss
