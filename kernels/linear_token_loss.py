"""Hidden states times the output head to any loss of tokens and its gradients, in one pass over the logits.

N: tokens. H: hidden size. V: vocabulary. C: tokens of a chunk. The loss is a function of log-probabilities
and entropies that looks at each token by itself, so that a chunk's gradient is known when its logits are.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from verigrad.kernels.logit_chunks import Gradients, LogitChunks, Needs, TorchRows, precision
from verigrad.kernels.one_pass import has_triton, one_pass

Backend = Literal["auto", "triton", "torch"]

TokenLossFn = Callable[[slice, Tensor, Tensor], Tensor]
"""(tokens, their log-probabilities [C], their entropies [C], both with gradient) -> their loss, a scalar."""


def linear_token_loss(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    labels: Tensor,  # [N] int64 in [0, V)
    token_loss: TokenLossFn,
    *,
    temperature: float | Tensor = 1.0,  # one number, or [N]
    bias: Tensor | None = None,  # [V]
    chunk_tokens: int | None = None,
    needs_dw: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum over chunks of `token_loss`, log-probabilities [N], entropies [N]); only the loss has a gradient.

    `token_loss` is called once for each chunk, in order. A token's loss must not depend on tokens of another
    chunk. The rest is as in linear_policy_loss.
    """
    weight = weight if needs_dw else weight.detach()
    logprobs = hidden.new_empty(hidden.shape[0], dtype=precision(hidden))
    entropies = torch.empty_like(logprobs)
    use_triton = chosen(hidden, backend) == "triton"

    def run(needs: Needs) -> tuple[Tensor, Gradients]:
        chunks = LogitChunks(
            hidden, weight, bias, temperature=temperature, chunk_tokens=chunk_tokens, narrow=use_triton
        )
        steps = row_steps(chunks, labels)
        total = hidden.new_zeros((), dtype=chunks.dtype)

        def row_step(rows: slice, logits: Tensor) -> Tensor:
            nonlocal total
            logprobs[rows], entropies[rows], _ = steps.statistics(rows, logits)
            loss, d_logprobs, d_entropies = _differentiated(token_loss, rows, logprobs[rows], entropies[rows])
            total = total + loss
            return steps.d_logits(  # type: ignore[no-any-return]
                rows,
                logits,
                entropies=entropies[rows],
                d_logprobs=d_logprobs,
                d_entropies=d_entropies,
            )

        if any(needs):
            gradients = chunks.backward(row_step, needs=needs)
            return total, gradients
        for rows in chunks.chunks():
            logprobs[rows], entropies[rows], _ = steps.statistics(rows, chunks.logits(rows))
            total = total + token_loss(rows, logprobs[rows], entropies[rows]).detach()
        return total, Gradients(None, None, None)

    return one_pass(run, hidden, weight, bias), logprobs, entropies


def _differentiated(
    token_loss: TokenLossFn, rows: slice, logprobs: Tensor, entropies: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss of a chunk, and its gradient [C] to log-probabilities and, if it has one, to entropies."""
    with torch.enable_grad():
        leaves = [column.detach().requires_grad_() for column in (logprobs, entropies)]
        loss = token_loss(rows, leaves[0], leaves[1])
        if not loss.requires_grad:
            return loss, torch.zeros_like(logprobs), None
        d_logprobs, d_entropies = torch.autograd.grad(loss, leaves, allow_unused=True)
    return loss.detach(), torch.zeros_like(logprobs) if d_logprobs is None else d_logprobs, d_entropies


def row_steps(chunks: LogitChunks, labels: Tensor, *, entropy: bool = True) -> Any:
    """What turns a chunk's logits into statistics and gradients: Triton's kernels or torch."""
    if not chunks.narrow:
        return TorchRows(chunks, labels, entropy=entropy)
    from verigrad.kernels.triton_rows import TritonRows

    return TritonRows(chunks, labels)


def chosen(hidden: Tensor, backend: str) -> str:
    """The backend by name; "auto" is Triton on a GPU, where it can be imported. ValueError for no name."""
    if backend == "auto":
        return "triton" if hidden.is_cuda and hidden.dtype != torch.float64 and has_triton() else "torch"
    if backend not in ("triton", "torch", "reference"):
        raise ValueError(f"backend = {backend!r}: expected auto, triton, torch or reference")
    if backend == "triton" and hidden.dtype == torch.float64:
        raise ValueError("backend = 'triton' computes in float32; give float64 inputs to 'torch'")
    return backend
