"""A loss whose gradients were found with it, as a function that autograd takes for any other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verigrad.kernels.logit_chunks import Gradients, Needs

Pass = Callable[[Needs], tuple[Tensor, Gradients]]
"""Goes over all chunks once: what needs a gradient -> (loss, its gradients)."""


def one_pass(run: Pass, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The loss of `run`, whose backward pass only multiplies the gradients found by its own gradient.

    They are held once and given away: a second backward pass, as retain_graph allows, raises RuntimeError.
    """
    if not torch.is_grad_enabled():
        return run((False, False, False))[0]
    loss: Tensor = _OnePass.apply(hidden, weight, bias, run)  # type: ignore[no-untyped-call]
    return loss


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, run: Pass) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            loss, found = run(ctx.needs_input_grad[:3])
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        # narrow already here, while no logits are held; float16 waits for the loss's own scale
        ctx.found = [
            None if grad is None else grad if dtype == torch.float16 else grad.to(dtype)
            for grad, dtype in zip((found.hidden, found.weight, found.bias), ctx.dtypes, strict=True)
        ]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.found is None:
            raise RuntimeError("a one-pass loss has one backward pass: its gradients were given away")
        found, ctx.found = ctx.found, None
        for i, (grad, dtype) in enumerate(zip(found, ctx.dtypes, strict=True)):
            if grad is not None:
                found[i] = scale_(grad, d_loss).to(dtype)
                del grad  # the last reference goes to autograd, which then needs no copy
        return (*found, None)


def scale_(gradient: Tensor, factor: Tensor) -> Tensor:
    """gradient * factor in place. A factor of 1 costs nothing, and on a GPU no wait for its value."""
    if gradient.is_cuda and has_triton():
        from verigrad.kernels.triton_rows import scale_

        scale_(gradient, factor)
    elif gradient.is_cuda or factor.item() != 1:
        gradient.mul_(factor)
    return gradient


def has_triton() -> bool:
    """Whether Triton can be imported: a GPU build of torch brings it, on Linux."""
    import importlib.util

    return importlib.util.find_spec("triton") is not None
