"""Small random inputs for the kernels, the same on every machine, and how far results lie apart."""

from dataclasses import dataclass, replace

import torch

from verigrad.kernels.token_objective import TokenObjective

OBJECTIVES = {
    "clip": TokenObjective(),
    "clip_higher": TokenObjective(clip_high=0.28),
    "cispo": TokenObjective("cispo", ratio_floor=0.7, ratio_cap=1.3),
    "importance": TokenObjective("cispo", ratio_floor=0.0, ratio_cap=float("inf")),
    "truncated_importance": TokenObjective("cispo", ratio_floor=0.0, ratio_cap=1.2),
    "reinforce": TokenObjective("reinforce"),
    "tis": TokenObjective("reinforce", correction="tis", correction_high=1.1),
    "icepop": TokenObjective(
        correction="icepop", correction_low=0.8, correction_high=1.2, correction_scale=0.9
    ),
    "entropy": TokenObjective(entropy_coef=0.3),
    "kl_and_entropy": TokenObjective("cispo", kl_estimator="k3", kl_coef=0.2, entropy_coef=0.1),
    **{
        f"kl_{name}": TokenObjective(kl_estimator=name, kl_coef=0.3)
        for name in ("k1", "k2", "k3", "k3_plus", "k3_ratio", "abs")
    },
}


@dataclass(frozen=True)
class Inputs:
    """Arguments of linear_policy_loss. N tokens, some of them weighing nothing, some without an old value."""

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    bias: torch.Tensor | None
    columns: dict[str, torch.Tensor]
    temperature: torch.Tensor

    def to(self, dtype=None, device=None):
        """The same rounded to `dtype`; columns stay float32 at least."""
        wide = dtype if dtype == torch.float64 else torch.float32
        return Inputs(
            self.hidden.to(device, dtype),
            self.weight.to(device, dtype),
            self.labels.to(device),
            None if self.bias is None else self.bias.to(device, dtype),
            {name: column.to(device, wide) for name, column in self.columns.items()},
            self.temperature.to(device, wide),
        )

    def leaves(self):
        """With fresh leaves that take a gradient."""
        hidden, weight = (t.detach().clone().requires_grad_() for t in (self.hidden, self.weight))
        bias = None if self.bias is None else self.bias.detach().clone().requires_grad_()
        return replace(self, hidden=hidden, weight=weight, bias=bias)


def make(num_tokens=37, hidden_size=24, vocab=203, *, seed=0, bias=False, zero_weights=True):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight = normal(num_tokens, hidden_size), normal(vocab, hidden_size) * 0.5
    labels = torch.randint(vocab, (num_tokens,), generator=generator)
    temperature = torch.rand(num_tokens, generator=generator, dtype=torch.float64) + 0.5
    b = normal(vocab) if bias else None
    logits = (hidden @ weight.T + (0 if b is None else b)) / temperature[:, None]
    near = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    weights = torch.rand(num_tokens, generator=generator, dtype=torch.float64) / max(num_tokens, 1)
    advantages, old, ref, rollout = (normal(num_tokens) for _ in range(4))
    old, ref = near + 0.3 * old, near + 0.3 * ref
    rollout = old + 0.2 * rollout
    if num_tokens > 8:
        if zero_weights:
            weights[2], advantages[4] = 0.0, 0.0
        old[5], old[6] = float("nan"), near[6] - 50  # unknown; beyond the limit of log-ratios
        rollout[7] = float("nan")
    columns = {
        "advantages": advantages,
        "loss_weights": weights,
        "old_logprobs": old,
        "ref_logprobs": ref,
        "rollout_logprobs": rollout,
    }
    return Inputs(hidden, weight, labels, b, columns, temperature)


def distance(found, exact):
    """Norm of the difference over the norm of what is right."""
    exact = exact.double().cpu()
    return float((found.double().cpu() - exact).norm() / exact.norm().clamp(min=1e-30))
