"""A layout with queries, keys and values -> attention in one call: FlexAttention, variable-length kernels.

packed_attention.py has the third way, one scaled_dot_product_attention call per run of equal shape, which
runs everywhere. All three see the same: a column attends to the columns before it in its own sequence.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from verigrad.engine.config import ConfigError
from verigrad.engine.prefixes import Layout

Backend = Literal["sdpa", "flex", "varlen"]
BLOCK = 128  # columns that FlexAttention keeps or skips at once
AMPERE = (8, 0)  # the oldest CUDA capability that variable-length kernels run on


def choose(wanted: str, *, device: torch.device, dtype: torch.dtype, shared: bool) -> Backend:
    """The backend for a layout: `wanted`, or with "auto" the one made for it that is there.

    On CUDA that is flex where beginnings are shared and varlen where none are; SDPA everywhere else.
    Raises ConfigError for a backend that is not there.
    """
    if wanted == "auto":
        best: Backend = "flex" if shared else "varlen"
        return best if device.type == "cuda" and not lacking(best, device=device, dtype=dtype) else "sdpa"
    if why := lacking(wanted, device=device, dtype=dtype):
        raise ConfigError(f"policy.attention = {wanted!r} {why}; use 'auto' or 'sdpa'")
    return wanted  # type: ignore[return-value]


def lacking(backend: str, *, device: torch.device, dtype: torch.dtype) -> str:
    """What keeps a backend from running, as the end of a sentence; empty where nothing does."""
    if backend == "flex" and device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "is compiled by Triton, which is not installed"
    if backend != "varlen":
        return ""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"is not in torch {torch.__version__}, which needs to be 2.10 or newer"
    if device.type != "cuda":
        return f"runs on CUDA alone, and the trainer computes on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return "needs policy.dtype or policy.update_dtype = 'bfloat16'"
    if torch.cuda.get_device_capability(device) < AMPERE:
        return f"needs a GPU of compute capability 8.0, and {torch.cuda.get_device_name(device)} is older"
    return ""


def flex(
    query: Tensor,  # [1, heads, C, D]
    key: Tensor,  # [1, kv_heads, C, D]
    value: Tensor,  # [1, kv_heads, C, D]
    layout: Layout,
    *,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """[1, C, heads, D]. Compiled on a GPU; on a CPU the same mask, held as a whole [C, C], goes to SDPA.

    FlexAttention has no backward pass on CPUs (torch 2.13); there this is for tests.
    """
    grouped = query.shape[1] != key.shape[1]
    if query.device.type == "cuda":
        blocks = layout.kept(("flex", sliding_window), lambda: block_mask(layout, sliding_window))
        out: Tensor = _compiled_flex()(
            query, key, value, block_mask=blocks, scale=scaling, enable_gqa=grouped
        )
    else:
        mask = layout.kept(("dense", sliding_window), lambda: dense_mask(layout, sliding_window))
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped
        )
    return out.transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


def mask_of(layout: Layout, sliding_window: int | None) -> Callable[..., Tensor]:
    """FlexAttention's mask_mod: whether column i attends to column j."""
    enters, exits, depths = layout.enters, layout.exits, layout.depths

    def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        on_its_path = (enters[j] <= enters[i]) & (enters[i] < exits[j])
        seen = on_its_path & (depths[j] <= depths[i])
        return seen & (depths[i] - depths[j] < sliding_window) if sliding_window else seen

    return sees


def dense_mask(layout: Layout, sliding_window: int | None) -> Tensor:
    """[C, C] bool: the mask as a whole."""
    columns = torch.arange(len(layout.columns), device=layout.columns.device)
    return mask_of(layout, sliding_window)(columns, columns, columns[:, None], columns[None, :])


def block_mask(layout: Layout, sliding_window: int | None) -> Any:
    """FlexAttention's BlockMask, from what each block of BLOCK columns spans: never [C, C].

    A block pair is skipped where no column can see another, and goes without a mask where each sees all.
    """
    from torch.nn.attention.flex_attention import BlockMask

    some, every = (torch.from_numpy(x) for x in _block_pairs(layout, sliding_window))
    counts, indices = [], []
    for pairs in (some & ~every, every):
        counts.append(pairs.sum(1, dtype=torch.int32)[None, None])
        # chosen blocks first, in their order
        indices.append(pairs.int().argsort(dim=1, descending=True, stable=True).int()[None, None])
    device, length = layout.columns.device, len(layout.columns)
    return BlockMask.from_kv_blocks(
        counts[0].to(device), indices[0].to(device), counts[1].to(device), indices[1].to(device),
        BLOCK_SIZE=BLOCK, mask_mod=mask_of(layout, sliding_window), seq_lengths=(length, length),
    )  # fmt: skip


def _block_pairs(layout: Layout, sliding_window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """[B, B] bool twice: whether a column of block i may see one of block j; whether all see all."""
    length = len(layout.columns)
    starts = np.arange(0, length, BLOCK)
    low, high = {}, {}
    for name in ("enters", "exits", "depths"):
        values = getattr(layout, name).cpu().numpy()
        low[name], high[name] = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)

    def pairs(of_query: np.ndarray, of_key: np.ndarray) -> np.ndarray:
        return np.asarray(of_query[:, None] - of_key[None, :])

    some = np.tri(len(starts), dtype=bool)  # what a column sees lies before it, in every order of stretches
    some &= pairs(high["enters"], low["enters"]) >= 0
    some &= pairs(low["enters"], high["exits"]) < 0
    some &= pairs(high["depths"], low["depths"]) >= 0
    every = pairs(low["enters"], high["enters"]) >= 0
    every &= pairs(high["enters"], low["exits"]) < 0
    every &= pairs(low["depths"], high["depths"]) >= 0
    if sliding_window:
        some &= pairs(low["depths"], high["depths"]) < sliding_window
        every &= pairs(high["depths"], low["depths"]) < sliding_window
    if length % BLOCK:
        every[:, -1] = every[-1] = False  # partly beyond the end
    return some, every & some


def varlen(
    query: Tensor,  # [1, heads, C, D]
    key: Tensor,  # [1, kv_heads, C, D]
    value: Tensor,  # [1, kv_heads, C, D]
    layout: Layout,
    *,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """[1, C, heads, D], by one call of torch's variable-length kernel.

    Keys and values before a stretch are gathered in front of its own. The kernel aligns a causal mask with
    the last key, so each query sees its stretch's whole past and what of the stretch lies before it.
    """
    from torch.nn.attention.varlen import varlen_attn

    seen, bounds, longest = layout.kept("varlen", lambda: _bounds(layout))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if seen is not None:
        k, v = k.index_select(0, seen), v.index_select(0, seen)
    out: Tensor = varlen_attn(
        q.contiguous(), k.contiguous(), v.contiguous(), *bounds, *longest,
        scale=scaling,
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )  # type: ignore[assignment] # fmt: skip
    return out[None]


def _bounds(layout: Layout) -> tuple[Tensor | None, tuple[Tensor, Tensor], tuple[int, int]]:
    """The columns each stretch sees, end to end (None: its own), and both sides' cu_seqlens and maxima."""
    device, pasts = layout.columns.device, layout.pasts.cpu()
    shapes = [(run.past, run.length) for run in layout.runs for _ in range(run.count)]
    parts, taken, column = [], 0, 0
    for past, length in shapes:
        parts += [pasts[taken : taken + past], torch.arange(column, column + length)]
        taken, column = taken + past, column + length
    queries, keys = (
        torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device)
        for sizes in ([length for _, length in shapes], [past + length for past, length in shapes])
    )
    longest = max(length for _, length in shapes), max(past + length for past, length in shapes)
    seen = torch.cat(parts).to(device) if taken else None
    return seen, (queries, keys), longest
