"""Causal attention over packed rollouts, none of which sees another."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from verigrad.engine.config import ConfigError

NAME = "verigrad_packed"
Run = tuple[
    int, int, int
]  # (start, rollouts, tokens in each): neighbours of equal length, attended in one call


def runs_of(cu_seqlens: Tensor) -> list[Run]:
    """Boundaries [S+1] to runs of neighbouring rollouts of equal length."""
    bounds = cu_seqlens.tolist()
    runs: list[Run] = []
    for start, end in pairwise(bounds):
        length = end - start
        if runs and runs[-1][2] == length:
            first, count, _ = runs[-1]
            runs[-1] = (first, count + 1, length)
        else:
            runs.append((start, 1, length))
    return runs


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, heads, T, D]
    key: Tensor,  # [1, kv_heads, T, D]
    value: Tensor,  # [1, kv_heads, T, D]
    attention_mask: Tensor | None,
    *,
    packed_runs: Sequence[Run],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The transformers attention function: [1, T, heads, D] out; dropout is never applied."""
    if softcap is not None or s_aux is not None:
        raise ConfigError(
            f"policy.model: {type(module).__name__} caps its attention scores or has attention sinks, which "
            "packed attention does not compute; use a model without them"
        )
    outputs = []
    # Split, not sliced one by one: each slice's gradient would be as long as the whole batch.
    sizes = [run[1] * run[2] for run in packed_runs]
    pieces = zip(*(torch.split_with_sizes(x[0], sizes, dim=1) for x in (query, key, value)), strict=True)
    for (_start, count, length), piece in zip(packed_runs, pieces, strict=True):
        q, k, v = (_split(x, count, length) for x in piece)
        mask = None
        if sliding_window is not None and length > sliding_window:
            ahead = torch.arange(length, device=q.device)
            distance = ahead[:, None] - ahead[None, :]
            mask = (distance >= 0) & (distance < sliding_window)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outputs.append(out.permute(0, 2, 1, 3).reshape(count * length, q.shape[1], q.shape[3]))
    return torch.cat(outputs)[None], None


def _split(x: Tensor, count: int, length: int) -> Tensor:
    """[heads, count*length, D] -> [count, heads, length, D]."""
    return x.reshape(x.shape[0], count, length, x.shape[2]).transpose(0, 1)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
