"""Hidden states times the output head to log-probabilities and entropies of chosen tokens.

N: tokens. H: hidden size. V: vocabulary. Logits [N, V] are the largest tensor of a training step and are
not held as a whole: they are computed for `chunk_tokens` tokens at a time, and once more in the backward
pass. Only where one chunk is all there is, and small, it is kept for the backward pass instead.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verigrad.kernels.linear_token_loss import chosen, row_steps
from verigrad.kernels.logit_chunks import LogitChunks, precision

KEPT_BYTES = 2**28  # of logits [N, V] that may wait for the backward pass

Backend = Literal["auto", "triton", "torch"]


def linear_logprob(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    labels: Tensor,  # [N] int64 in [0, V)
    *,
    temperature: float | Tensor = 1.0,  # one number, or [N]; no gradient goes to it
    bias: Tensor | None = None,  # [V]
    chunk_tokens: int | None = 1024,  # None: as many as fit the budget of logit_chunks.py
    entropy: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-probability [N] of each label, and entropy [N] in nats, under softmax(logits / temperature).

    Both are float32 (float64 for float64 inputs), whatever the inputs and whatever autocast says, and
    both carry gradients to hidden, weight and bias, accumulated in that precision. An input that needs no
    gradient costs no product, and without any nothing is kept. With entropy=False the second result is NaN.
    Equal inputs give equal bits. Triton's kernels, the "auto" of CUDA, take products of bfloat16 and float16
    hidden states in that type, and a bfloat16 gradient of the logits.
    """
    layer = _Layer(temperature, chunk_tokens, entropy, narrow=chosen(hidden, backend) == "triton")
    logprobs, entropies = _LinearLogprob.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, layer, torch.is_grad_enabled()
    )
    return logprobs, entropies


@torch.no_grad()
def linear_collision(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,  # [V]
    chunk_tokens: int | None = 1024,
) -> Tensor:
    """Sum over the vocabulary of squared probabilities [N]: the chance that two draws are the same token."""
    sums = hidden.new_empty(hidden.shape[0], dtype=precision(hidden))
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = LogitChunks(
            hidden, weight, bias, temperature=temperature, chunk_tokens=chunk_tokens, narrow=False
        )
        for rows in chunks.chunks():
            sums[rows] = chunks.logits(rows).softmax(-1).square_().sum(-1)
    return sums


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same numbers the plain way, holding all logits: what linear_logprob is tested against."""
    dtype = precision(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = torch.nn.functional.linear(
            hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        )
        if isinstance(temperature, Tensor):
            temperature = temperature.to(logits).expand(hidden.shape[0])[:, None]
        log_p = torch.log_softmax(logits / temperature, dim=-1)
    return log_p.gather(-1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


class _Layer:
    """How to go over the head."""

    def __init__(
        self, temperature: float | Tensor, chunk_tokens: int | None, entropy: bool, *, narrow: bool
    ) -> None:
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self.entropy = entropy
        self.narrow = narrow

    def chunks(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> LogitChunks:
        return LogitChunks(
            hidden,
            weight,
            bias,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            narrow=self.narrow,
        )


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        layer: _Layer,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        needed = grad_enabled and any(ctx.needs_input_grad)
        with torch.autocast(hidden.device.type, enabled=False):
            seen = _fused(hidden, weight, bias, labels, layer) if layer.narrow else None
            logprobs, entropies, normalizers, kept = (
                _in_chunks(layer, hidden, weight, bias, labels, keep=needed)
                if seen is None
                else (*seen, None)
            )
        if not layer.entropy:
            entropies.fill_(torch.nan)
        if needed:
            ctx.save_for_backward(hidden, weight, bias, labels, normalizers, entropies, kept)
        ctx.layer = layer
        ctx.set_materialize_grads(False)
        if not layer.entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_logprobs: Tensor | None, d_entropies: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, normalizers, entropies, kept = ctx.saved_tensors
        d_logprobs = torch.zeros_like(normalizers) if d_logprobs is None else d_logprobs
        needs: tuple[bool, bool, bool] = ctx.needs_input_grad[:3]
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = ctx.layer.chunks(hidden, weight, bias)
            steps = row_steps(chunks, labels)

            def row_step(rows: slice, logits: Tensor) -> Tensor:
                steps.restore(rows, logits, normalizers[rows])
                return steps.d_logits(  # type: ignore[no-any-return]
                    rows,
                    logits,
                    entropies=entropies[rows],
                    d_logprobs=d_logprobs[rows],
                    d_entropies=None if d_entropies is None else d_entropies[rows],
                )

            def kept_step(rows: slice) -> Tensor:
                steps.restore(rows, kept, normalizers)
                return steps.d_logits(  # type: ignore[no-any-return]
                    rows,
                    kept,
                    entropies=entropies,
                    d_logprobs=d_logprobs,
                    d_entropies=d_entropies,
                    out=torch.empty_like(kept),  # there may be another backward pass
                )

            gradients = (
                chunks.backward(row_step, needs=needs)
                if kept is None
                else chunks.spread(kept_step, needs=needs)
            )
        inputs = (hidden, weight, bias)
        found = (gradients.hidden, gradients.weight, gradients.bias)
        narrow = (None if g is None else g.to(x.dtype) for g, x in zip(found, inputs, strict=True))
        return (*narrow, None, None, None)


def _in_chunks(
    layer: _Layer, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(log-probabilities, entropies, denominators) [N], and what is kept for the backward pass."""
    chunks = layer.chunks(hidden, weight, bias)
    steps = row_steps(chunks, labels, entropy=layer.entropy)
    columns = [hidden.new_empty(hidden.shape[0], dtype=chunks.dtype) for _ in range(3)]
    logits = None
    for rows in chunks.chunks():
        logits = chunks.logits(rows)
        for column, values in zip(columns, steps.statistics(rows, logits), strict=True):
            column[rows] = values
    small = hidden.shape[0] * chunks.vocab * chunks.dtype.itemsize <= KEPT_BYTES
    one = hidden.shape[0] <= chunks.chunk_tokens
    kept = logits if keep and small and one and not layer.narrow else None
    return columns[0], columns[1], columns[2], kept


def _fused(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, layer: _Layer
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The statistics without any logits in memory, where that pays; None where it does not or cannot."""
    from verigrad.kernels import triton_forward

    if not triton_forward.pays(hidden, weight, bias):
        return None
    return triton_forward.statistics(hidden, weight, labels, temperature=layer.temperature)
