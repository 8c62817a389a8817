"""The optimizer and its learning rate."""

import math

import torch
from torch import nn

from verigrad.engine.config import OptimConfig


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) that decays matrices only, not biases or norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def learning_rate(cfg: OptimConfig, *, step: int, num_steps: int) -> float:
    """The rate of step 1..num_steps: a linear rise over `warmup_steps`, then the schedule.

    A pure function of the step, so a resumed run needs no scheduler state.
    """
    if step <= cfg.warmup_steps:
        return cfg.lr * step / cfg.warmup_steps
    if cfg.schedule == "constant":
        return cfg.lr
    done = (step - 1 - cfg.warmup_steps) / max(1, num_steps - cfg.warmup_steps)
    if cfg.schedule == "linear":
        return cfg.lr * (1 - done)
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * done))
