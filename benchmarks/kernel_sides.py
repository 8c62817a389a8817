"""The same work on the loss layer, by our kernels and by others': what kernels.py races."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verigrad.kernels.linear_logprob import linear_logprob, linear_logprob_reference
from verigrad.kernels.linear_policy_loss import linear_policy_loss
from verigrad.kernels.token_objective import TokenObjective

CLIP_LOW, CLIP_HIGH, ENTROPY_COEF = 0.2, 0.28, 1e-3
SEQUENCE = 512  # tokens of a row, for those who take rows

Run = Callable[[], Tensor]
"""Does the work once, gradients included, and gives its loss."""


class CannotRun(Exception):
    """Why a side is not measured here."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One work's tensors."""

    work: str
    hidden: Tensor  # [M, H]
    weight: Tensor  # [V, H]
    labels: Tensor  # [M]
    advantages: Tensor  # [M] float32
    old_logprobs: Tensor  # [M] float32

    @property
    def entropy_coef(self) -> float:
        return ENTROPY_COEF if self.work == "policy" else 0.0

    def loss(self, logprobs: Tensor, entropies: Tensor | None) -> Tensor:
        """The policy loss from log-probabilities, for those who stop there; their mean for "forward"."""
        if self.work == "forward":
            return (logprobs if entropies is None else logprobs + entropies).float().mean()
        ratio = (logprobs.float() - self.old_logprobs).exp()
        inside = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
        loss = torch.maximum(-self.advantages * ratio, -self.advantages * inside).mean()
        if entropies is None or not self.entropy_coef:
            return loss
        return loss - self.entropy_coef * entropies.float().mean()


def ours(inputs: Inputs, *, backend: str) -> Run:
    """linear_policy_loss, in one pass; for "forward" linear_logprob."""
    needs_triton(backend, inputs)
    if inputs.work == "forward":
        return two_passes(inputs, backend=backend)
    objective = TokenObjective(clip_low=CLIP_LOW, clip_high=CLIP_HIGH, entropy_coef=inputs.entropy_coef)
    weights = torch.full_like(inputs.advantages, 1 / len(inputs.labels))

    def run() -> Tensor:
        found = linear_policy_loss(
            inputs.hidden,
            inputs.weight,
            inputs.labels,
            objective=objective,
            advantages=inputs.advantages,
            loss_weights=weights,
            old_logprobs=inputs.old_logprobs,
            backend=backend,  # type: ignore[arg-type]
        )
        found.loss.backward()
        return found.loss.detach()

    return run


def two_passes(inputs: Inputs, *, backend: str) -> Run:
    """linear_logprob, whose backward pass computes logits again, and the loss by torch."""
    needs_triton(backend, inputs)

    def logprobs() -> tuple[Tensor, Tensor]:
        return linear_logprob(
            inputs.hidden,
            inputs.weight,
            inputs.labels,
            chunk_tokens=None,
            entropy=inputs.work != "policy_no_entropy",
            backend=backend,  # type: ignore[arg-type]
        )

    return finished(inputs, logprobs)


def needs_triton(backend: str, inputs: Inputs) -> None:
    """Triton's kernels run on CUDA alone; its interpreter on a CPU measures nothing."""
    if backend == "triton" and not inputs.hidden.is_cuda:
        raise CannotRun("needs a CUDA device")


def finished(inputs: Inputs, logprobs: Callable[[], tuple[Tensor, Tensor | None]]) -> Run:
    """Log-probabilities, and entropies if the side has them, to the loss and its backward pass."""

    def run() -> Tensor:
        with torch.set_grad_enabled(inputs.work != "forward"):
            loss = inputs.loss(*logprobs())
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    return run


def plain(inputs: Inputs, *, compiled: bool) -> Run:
    """PyTorch's operations, holding all logits, in float32 as ours are."""

    def logprobs(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not hidden.is_cuda:
            return linear_logprob_reference(hidden, weight, labels)
        log_p = (hidden @ weight.T).float().log_softmax(-1)  # logits rounded to bfloat16, as is usual
        return log_p.gather(1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

    function = torch.compile(logprobs) if compiled else logprobs
    return finished(inputs, lambda: function(inputs.hidden, inputs.weight, inputs.labels))


def liger_scaled(inputs: Inputs) -> Run:
    """Liger-Kernel's fused scaled cross entropy: per-token likelihoods and entropies, differentiable."""
    module = needs("liger_kernel", "liger_kernel.ops.fused_linear_scaled_cross_entropy")
    apply = module.LigerFusedLinearScaledCrossEntropyFunction.apply
    with_entropy = inputs.work != "policy_no_entropy"

    def logprobs() -> tuple[Tensor, Tensor | None]:
        found = apply(inputs.hidden, inputs.weight, inputs.labels, 1.0, -100, 1, with_entropy)
        return (-found[0], found[1]) if with_entropy else (-found, None)

    return finished(inputs, logprobs)


def liger_grpo(inputs: Inputs) -> Run:
    """Liger-Kernel's chunked GRPO loss, which TRL uses; it has no entropy."""
    module = needs("liger_kernel", "liger_kernel.chunked_loss")
    if inputs.work != "policy_no_entropy":
        raise CannotRun("it has no entropy, and no forward pass alone")
    rows = max(len(inputs.labels) // SEQUENCE, 1)
    layer = module.LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH, loss_type="dapo"
    )

    def run() -> Tensor:
        found = layer(
            inputs.hidden.view(rows, -1, inputs.hidden.shape[1]),
            inputs.weight,
            inputs.labels.view(rows, -1),
            torch.ones_like(inputs.labels).view(rows, -1),
            inputs.advantages.view(rows, -1),
            old_per_token_logps=inputs.old_logprobs.view(rows, -1),
        )
        loss: Tensor = found[0]
        loss.backward()
        return loss.detach()

    return run


def cut_cross_entropy(inputs: Inputs) -> Run:
    """cut-cross-entropy: per-token likelihoods in Triton; it has no entropy."""
    module = needs("cut_cross_entropy", "cut_cross_entropy")
    if inputs.work != "policy_no_entropy":
        raise CannotRun("it has no entropy")
    if not inputs.hidden.is_cuda:
        raise CannotRun("needs a CUDA device")
    entropy = module.linear_cross_entropy
    return finished(
        inputs,
        lambda: (-entropy(inputs.hidden, inputs.weight, inputs.labels, reduction="none"), None),
    )


def needs(package: str, module: str) -> Any:
    """The module, or why there is none."""
    if importlib.util.find_spec(package) is None:
        raise CannotRun(f"{package} is not installed")
    return importlib.import_module(module)


SIDES: Mapping[str, Callable[[Inputs], Run]] = {
    "ours_triton": functools.partial(ours, backend="triton"),
    "ours_torch": functools.partial(ours, backend="torch"),
    "ours_two_pass_triton": functools.partial(two_passes, backend="triton"),
    "ours_two_pass_torch": functools.partial(two_passes, backend="torch"),
    "pytorch": functools.partial(plain, compiled=False),
    "torch_compile": functools.partial(plain, compiled=True),
    "liger_scaled_cross_entropy": liger_scaled,
    "liger_grpo": liger_grpo,
    "cut_cross_entropy": cut_cross_entropy,
}
