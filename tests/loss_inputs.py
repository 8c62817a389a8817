"""LossInputs for tests: from a reference vector's padded arrays, from short lists, or at random."""

import dataclasses

import torch

from verigrad.engine.aggregation import constant, seq_mean_token_mean, seq_mean_token_sum, token_mean
from verigrad.engine.schema import LossInputs

AGGREGATIONS = {
    "token-mean": token_mean,
    "seq-mean-token-mean": seq_mean_token_mean,
    "seq-mean-token-sum": seq_mean_token_sum,
    "dr-grpo": constant(8),
}


def batch(vector, aggregate=token_mean, rows=None):
    """A vector's [B, T] tensors as LossInputs of the chosen rows, and logp [B, T] to read gradients from.

    Weights come from all rows, as the optimizer step sees them.
    """
    mask = vector.tensor("mask").bool()
    weights = torch.tensor(aggregate(mask.sum(1).tolist()), dtype=torch.float64)
    first = "logp" if "logp" in vector.inputs else "old_logp"
    logp = vector.tensor(first).requires_grad_()
    chosen = torch.zeros_like(mask)
    chosen[list(range(len(mask)) if rows is None else rows)] = True
    chosen &= mask

    def select(*names):
        return next(vector.tensor(name)[chosen] for name in names if name in vector.inputs)

    row = torch.arange(len(mask))[:, None].expand_as(mask)[chosen]
    adv = vector.tensor("adv") if "adv" in vector.inputs else torch.zeros(len(mask)).double()
    inputs = LossInputs(
        logprobs=logp[chosen],
        old_logprobs=select("old_logp", "logp"),
        rollout_logprobs=select("rollout_logp", "old_logp", "logp"),
        ref_logprobs=select("ref_logp") if "ref_logp" in vector.inputs else None,
        entropy=None,
        advantages=adv[row],
        weights=weights[row],
        sequence=row,
    )
    return inputs, logp


def padded(vector, values):
    """[N] values back at their places in [B, T], 0 elsewhere."""
    mask = vector.tensor("mask").bool()
    return torch.zeros(mask.shape).double().masked_scatter(mask, values.double())


def spoiled(vector, garbage):
    """The vector with other values, six numbers repeated, wherever its mask is 0."""
    mask = vector.tensor("mask").bool()
    inputs = dict(vector.inputs)
    for name in ("logp", "old_logp", "rollout_logp", "ref_logp"):
        if name in inputs:
            values = vector.tensor(name)
            values[~mask] = torch.tensor(garbage).double()
            inputs[name] = values.tolist()
    return dataclasses.replace(vector, inputs=inputs)


def tokens(**fields):
    """LossInputs from short lists; whatever is not given is on-policy, advantage 1, weight 1, one rollout."""
    logprobs = torch.tensor(fields.pop("logprobs", [-1.0]), dtype=torch.float64, requires_grad=True)
    old = torch.tensor(fields.pop("old_logprobs", logprobs.tolist()), dtype=torch.float64)
    sequence = torch.tensor(fields.pop("sequence", [0] * len(old)), dtype=torch.int64)
    scale = fields.pop("correction_scale", 1.0)
    defaults = {
        "rollout_logprobs": old.tolist(),
        "advantages": [1.0] * len(old),
        "weights": [1.0] * len(old),
    }
    values = {k: torch.tensor(v, dtype=torch.float64) for k, v in (defaults | fields).items()}
    rest = {"ref_logprobs": None, "entropy": None} | values
    return LossInputs(logprobs=logprobs, old_logprobs=old, sequence=sequence, correction_scale=scale, **rest)


def random_step(*, seed=0, lengths=(1, 5, 2, 9, 3, 7, 4, 6), on_policy=False, aggregate=seq_mean_token_mean):
    """One optimizer step of rollouts of these lengths, with both signs of advantage and ratios around 1."""
    made = torch.Generator().manual_seed(seed)

    def noise(scale):
        return scale * torch.randn(sum(lengths), generator=made, dtype=torch.float64)

    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    old = -noise(1.0).abs() - 0.05
    logprobs = old.clone() if on_policy else torch.minimum(old + noise(0.4), torch.tensor(-0.01).double())
    advantages = torch.tensor([(-1.0) ** i * (0.3 + 0.2 * i) for i in range(len(lengths))]).double()
    return LossInputs(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=old,
        rollout_logprobs=old.clone() if on_policy else old + noise(0.2),
        ref_logprobs=old + noise(0.3),
        entropy=noise(1.0).abs(),
        advantages=advantages[sequence],
        weights=torch.tensor(aggregate(lengths), dtype=torch.float64)[sequence],
        sequence=sequence,
    )


def part(inputs, rollouts):
    """The micro-batch of these rollouts, renumbered from 0; its logprobs are a leaf of their own."""
    chosen = torch.isin(inputs.sequence, torch.tensor(rollouts, dtype=torch.int64))
    _, sequence = inputs.sequence[chosen].unique(return_inverse=True)
    picked = {
        field.name: value[chosen]
        for field in dataclasses.fields(inputs)
        if isinstance(value := getattr(inputs, field.name), torch.Tensor)
    }
    picked |= {"logprobs": picked["logprobs"].detach().requires_grad_(), "sequence": sequence}
    return dataclasses.replace(inputs, **picked)
