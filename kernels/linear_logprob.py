"""Hidden states times the output head to log-probabilities and entropies of chosen tokens.

N: tokens. H: hidden size. V: vocabulary. Logits [N, V] are the largest tensor of a training step and are
never held: they are computed for `chunk_tokens` tokens at a time, and once more in the backward pass.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_logprob(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    labels: Tensor,  # [N] int64 in [0, V)
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,  # [V]
    chunk_tokens: int = 1024,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability [N] of each label, and entropy [N] in nats, under softmax(logits / temperature).

    Both are float32 (float64 for float64 inputs), whatever the inputs and whatever autocast says, and
    both carry gradients to hidden, weight and bias, accumulated in that precision. With entropy=False
    the second result is NaN. Equal inputs give equal bits.
    """
    logprobs, entropies = _LinearLogprob.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, temperature, chunk_tokens, entropy
    )
    return logprobs, entropies


@torch.no_grad()
def linear_collision(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,  # [V]
    chunk_tokens: int = 1024,
) -> Tensor:
    """Sum over the vocabulary of squared probabilities [N]: the chance that two draws are the same token."""
    dtype = _precision(hidden)
    sums = hidden.new_empty(hidden.shape[0], dtype=dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        head = _Head(weight, bias, temperature=temperature, dtype=dtype)
        for rows in _chunks(hidden.shape[0], chunk_tokens):
            sums[rows] = head.logits(hidden[rows]).softmax(-1).square_().sum(-1)
    return sums


def linear_logprob_reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, temperature: float = 1.0, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same numbers the plain way, holding all logits: what linear_logprob is tested against."""
    dtype = _precision(hidden)
    logits = torch.nn.functional.linear(
        hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    )
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    return log_p.gather(-1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperature: float,
        chunk_tokens: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = _precision(hidden)
        normalizers = hidden.new_empty(hidden.shape[0], dtype=dtype)  # [N] log of the softmax's denominator
        logprobs = torch.empty_like(normalizers)
        entropies = torch.full_like(normalizers, torch.nan)
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(weight, bias, temperature=temperature, dtype=dtype)
            for rows in _chunks(hidden.shape[0], chunk_tokens):
                logits = head.logits(hidden[rows])  # [C, V]
                normalizers[rows] = logits.logsumexp(-1)
                log_p = logits.sub_(normalizers[rows, None])
                logprobs[rows] = log_p.gather(1, labels[rows, None])[:, 0]
                if entropy:
                    entropies[rows] = -log_p.exp().mul_(log_p).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, labels, normalizers, entropies)
        ctx.temperature, ctx.chunk_tokens, ctx.entropy = temperature, chunk_tokens, entropy
        ctx.set_materialize_grads(False)
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_logprobs: Tensor | None, d_entropies: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, normalizers, entropies = ctx.saved_tensors
        dtype = normalizers.dtype
        d_logprobs = torch.zeros_like(normalizers) if d_logprobs is None else d_logprobs
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=dtype) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=dtype) if need_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(weight, bias, temperature=ctx.temperature, dtype=dtype)
            for rows in _chunks(hidden.shape[0], ctx.chunk_tokens):
                log_p = head.logits(hidden[rows]).sub_(normalizers[rows, None])  # [C, V]
                d_logits = _d_logits(
                    log_p,
                    labels[rows],
                    entropies=entropies[rows],
                    d_logprobs=d_logprobs[rows],
                    d_entropies=None if d_entropies is None else d_entropies[rows],
                ).div_(ctx.temperature)
                if d_hidden is not None:
                    d_hidden[rows] = (d_logits @ head.weight).to(hidden.dtype)
                if d_weight is not None:
                    d_weight.addmm_(d_logits.T, hidden[rows].to(dtype))
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 4,
        )


def _d_logits(
    log_p: Tensor, labels: Tensor, *, entropies: Tensor, d_logprobs: Tensor, d_entropies: Tensor | None
) -> Tensor:
    """Gradient [C, V] with respect to logits / temperature; `log_p` is used up.

    For a log-probability it is onehot - p; for the entropy H it is -p (log p + H).
    """
    d_logits = log_p.exp()  # [C, V] p
    if d_entropies is None:
        d_logits.mul_(-d_logprobs[:, None])
    else:
        slope = log_p.add_(entropies[:, None]).mul_(d_entropies[:, None]).add_(d_logprobs[:, None])
        d_logits.mul_(slope).neg_()
    tokens = torch.arange(labels.shape[0], device=labels.device)
    d_logits[tokens, labels] += d_logprobs
    return d_logits


class _Head:
    """The output head in the precision of the computation."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, temperature: float, dtype: torch.dtype
    ) -> None:
        self.weight = weight.to(dtype)  # no copy when the weight already has it
        self.bias = None if bias is None else bias.to(dtype)
        self.temperature = temperature

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over temperature [C, V] of hidden states [C, H]."""
        logits = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return logits.div_(self.temperature)


def _chunks(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    for start in range(0, num_tokens, chunk_tokens):
        yield slice(start, start + chunk_tokens)


def _precision(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
