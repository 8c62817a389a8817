"""Which tokens of a step are trained on, once the trainer's own view of them is known.

Rejection takes tokens or whole rollouts out of the loss and its denominator; the entropy filter only out of
the loss (arXiv 2506.01939 divides by all tokens); both before the first optimizer step of the rollout batch.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from verigrad.engine.aggregation import AggregateFn
from verigrad.engine.config import AlgorithmConfig
from verigrad.engine.correction import acceptable, importance_weights
from verigrad.engine.schema import LossInputs, Metrics, PackedBatch

Minibatch = Sequence[PackedBatch]
"""The batches of one optimizer step."""


class Selection:
    """The recipe's rejection, entropy filter and normalisation of importance weights."""

    def __init__(self, algorithm: AlgorithmConfig, aggregate: AggregateFn) -> None:
        self.algorithm, self.aggregate = algorithm, aggregate

    def __call__(self, minibatches: Sequence[Minibatch]) -> tuple[list[list[PackedBatch]], Metrics]:
        """The same batches with tokens taken out; metrics only of what the recipe asks for."""
        a, metrics = self.algorithm, {}
        chosen = [list(batches) for batches in minibatches]
        if a.reject != "none":
            before = _num_tokens(chosen)
            chosen = [self._reject(batches) for batches in chosen]
            metrics["rejected_frac"] = 1 - _num_tokens(chosen) / max(1, before)
        if a.top_entropy_frac is not None:
            threshold = _entropy_threshold(chosen, a.top_entropy_frac)
            chosen = [[_only_uncertain(batch, threshold) for batch in batches] for batches in chosen]
            metrics["entropy_threshold"] = threshold
        if a.correction_norm:
            chosen = [self._normalise(batches) for batches in chosen]
        return chosen, metrics

    def _reject(self, batches: Minibatch) -> list[PackedBatch]:
        a = self.algorithm
        assert a.reject != "none"
        assert a.reject_high is not None, "config.resolve fills it"
        done = []
        for batch in batches:
            mask = batch.loss_mask
            log_ratio = (batch.old_logprobs - batch.rollout_logprobs)[mask].double()
            keep = acceptable(
                torch.where(log_ratio.isfinite(), log_ratio, 0.0),
                _sequence(batch)[mask],
                level=a.reject,
                measure=a.reject_measure,
                low=a.reject_low or 0.0,
                high=a.reject_high,
            )
            kept = mask.clone()
            kept[mask] = keep
            done.append(dataclasses.replace(batch, loss_mask=kept))
        return reweigh(done, self.aggregate)

    def _normalise(self, batches: Minibatch) -> list[PackedBatch]:
        a = self.algorithm
        weights = [
            importance_weights(
                _as_inputs(batch), kind=a.correction, low=a.correction_low, high=a.correction_high
            )
            for batch in batches
        ]
        mean = float(torch.cat(weights).double().mean()) if weights else 1.0
        scale = 1.0 / mean if mean > 0 else 1.0
        return [dataclasses.replace(batch, correction_scale=scale) for batch in batches]


def reweigh(batches: Minibatch, aggregate: AggregateFn) -> list[PackedBatch]:
    """All weights of one optimizer step anew, from the tokens that are still trained on."""
    counts = [
        torch.zeros(batch.num_rollouts, dtype=torch.int64)
        .index_add_(0, _sequence(batch), batch.loss_mask.long())
        .tolist()
        for batch in batches
    ]
    weights = iter(aggregate([count for batch in counts for count in batch]))
    done = []
    for batch, of_batch in zip(batches, counts, strict=True):
        own = torch.tensor([next(weights) for _ in of_batch], dtype=torch.float32)
        done.append(dataclasses.replace(batch, loss_weights=own[_sequence(batch)]))
    return _reweigh_right(done)


def _reweigh_right(batches: Minibatch) -> list[PackedBatch]:
    right = [
        None if batch.nll_weights is None else (batch.nll_weights > 0) & batch.loss_mask for batch in batches
    ]
    total = max(1, sum(int(chosen.sum()) for chosen in right if chosen is not None))
    return [
        batch if chosen is None else dataclasses.replace(batch, nll_weights=chosen.float() / total)
        for batch, chosen in zip(batches, right, strict=True)
    ]


def _entropy_threshold(minibatches: Sequence[Minibatch], frac: float) -> float:
    """The entropy that `frac` of the step's trained tokens reach."""
    entropies = []
    for batches in minibatches:
        for batch in batches:
            assert batch.old_entropy is not None, "the entropy filter needs the trainer's entropies"
            entropies.append(batch.old_entropy[batch.loss_mask])
    ordered = torch.cat(entropies).sort(descending=True).values if entropies else torch.zeros(0)
    if not ordered.numel():
        return 0.0
    return float(ordered[max(1, round(frac * ordered.numel())) - 1])


def _only_uncertain(batch: PackedBatch, threshold: float) -> PackedBatch:
    assert batch.old_entropy is not None
    weights = torch.where(batch.old_entropy >= threshold, batch.loss_weights, 0.0)
    return dataclasses.replace(batch, loss_weights=weights)


def _as_inputs(batch: PackedBatch) -> LossInputs:
    mask = batch.loss_mask
    old = batch.old_logprobs[mask]
    return LossInputs(
        logprobs=old,
        old_logprobs=old,
        rollout_logprobs=batch.rollout_logprobs[mask],
        ref_logprobs=None,
        entropy=None,
        advantages=batch.advantages[mask],
        weights=batch.loss_weights[mask],
        sequence=_sequence(batch)[mask],
    )


def _sequence(batch: PackedBatch) -> Tensor:
    """Index of each column's rollout [T]."""
    return torch.repeat_interleave(torch.arange(batch.num_rollouts), batch.cu_seqlens.diff().long())


def _num_tokens(minibatches: Sequence[Minibatch]) -> int:
    return sum(int(batch.loss_mask.sum()) for batches in minibatches for batch in batches)
