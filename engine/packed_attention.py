"""Causal attention over packed rollouts, none of which sees another; common beginnings are computed once."""

import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from verigrad.engine.attention_backends import Backend, choose, flex, varlen
from verigrad.engine.attention_blocks import Block, Blocks, blocks_of
from verigrad.engine.config import ConfigError
from verigrad.engine.prefixes import Layout, layout_of

NAME = "verigrad_packed"
QUERIES = 1024  # attended to at once after a past: an explicit mask [QUERIES, past + length] stays small
MOST_KEPT = 2**22  # numbers of masks that are kept from layer to layer; larger ones are made anew


def last_hidden(
    model: Any, layout: Layout, *, input_ids: Tensor, position_ids: Tensor, attention: str = "auto"
) -> Tensor:
    """Last hidden states [C, H] of the computed columns; `layout.places` finds those of each column [T].

    `model` is a transformers model with a head, its attention NAME; `attention` is policy.attention.
    """
    device = next(model.parameters()).device
    layout = layout.to(device)
    dtype = compute_dtype(device.type) or torch.float32
    backend = choose(attention, device=device, dtype=dtype, shared=layout.shared > 0)
    if attention == "auto" and backend != "sdpa" and not agrees(backend, device, dtype):
        backend = "sdpa"
    columns = layout.columns
    hidden: Tensor = model.base_model(
        input_ids=input_ids.to(device)[columns][None],
        position_ids=position_ids.to(device)[columns][None],
        use_cache=False,
        packed_layout=layout,
        packed_backend=backend,
    ).last_hidden_state[0]
    return hidden


def require_packable(model: Any, folder: str) -> None:
    """Raise ConfigError for a kind of model whose layers carry a state from token to token.

    Packed sequences would be read as one: such layers take no boundaries from us.
    """
    if getattr(model, "_is_stateful", False):
        raise ConfigError(
            f"{folder} holds a {type(model).__name__}, whose recurrent layers would carry their state from "
            "one packed sequence into the next; use a model that has attention layers alone"
        )


def compute_dtype(device: str) -> torch.dtype | None:
    """What attention computes in under autocast; None leaves its inputs as they are.

    On CPUs float32: SDPA's backward pass takes several times longer in bfloat16 (torch 2.13).
    """
    if not torch.is_autocast_enabled(device):
        return None
    return torch.float32 if device == "cpu" else torch.get_autocast_dtype(device)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, heads, C, D]
    key: Tensor,  # [1, kv_heads, C, D]
    value: Tensor,  # [1, kv_heads, C, D]
    attention_mask: Tensor | None,
    *,
    packed_layout: Layout,
    packed_backend: Backend = "sdpa",
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The transformers attention function: [1, C, heads, D] out; dropout is never applied."""
    if softcap is not None or s_aux is not None:
        raise ConfigError(
            f"policy.model: {type(module).__name__} caps its attention scores or has attention sinks, which "
            "packed attention does not compute; use a model without them"
        )
    device, dtype = query.device.type, compute_dtype(query.device.type)
    if dtype is not None:  # autocast has its own mind about some of these calls, and none about others
        query, key, value = (x.to(dtype) for x in (query, key, value))
    attend = {"sdpa": _by_blocks, "flex": flex, "varlen": varlen}[packed_backend]
    with torch.autocast(device, enabled=False):
        out = attend(query, key, value, packed_layout, scaling=scaling, sliding_window=sliding_window or None)
    return out, None


@cache
@torch.enable_grad()
def agrees(backend: Backend, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a backend gives SDPA's values and gradients here, tried once on a small layout.

    Where it does not, or fails, a warning says so: kernels made for a GPU may be wrong on the next one.
    """
    ids, bounds = torch.tensor([1] * 149 + [1] * 140 + [2] * 5), torch.tensor([0, 149, 294])
    layout = layout_of(ids, bounds).to(device)
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, heads, len(layout.columns), 64) for heads in (4, 2, 2)]
    drawn = [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]
    seen = []
    try:
        for name in ("sdpa", backend):
            q, k, v = given = [x.clone().requires_grad_() for x in drawn]
            with torch.autocast(device.type, enabled=False):
                out, _ = packed_attention(
                    nn.Identity(), q, k, v, None, packed_layout=layout, packed_backend=name
                )
            out.float().square().sum().backward()  # type: ignore[no-untyped-call]
            seen.append([x.detach().float() for x in (out, *(x.grad for x in given if x.grad is not None))])
        close = all(float((a - b).norm() / a.norm()) < 0.02 for a, b in zip(*seen, strict=True))
        reason = "does not agree with SDPA"
    except Exception as error:  # whatever a compiler raises
        close, reason = False, f"failed with {type(error).__name__}"
    if not close:
        warnings.warn(f"attention: {backend} {reason} on {device}; sdpa is used instead", stacklevel=2)
    return close


def _by_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """[1, C, heads, D], by one SDPA call for each block of stretches."""
    width = query.shape[1] * query.shape[3]
    made: Blocks = layout.kept(("blocks", width), lambda: blocks_of(layout, width=width))
    # Gathered and split all at once: the gradient of each slice would be as long as the whole batch.
    taken = ((query, made.queries), (key, made.keys), (value, made.keys))
    sizes = [
        [block.count * (block.total if of_keys else block.length) for block in made.blocks]
        for of_keys in (False, True, True)
    ]
    pieces = zip(
        *(torch.split_with_sizes(_rows(x, index), of) for (x, index), of in zip(taken, sizes, strict=True)),
        strict=True,
    )
    outputs = []
    for block, piece in zip(made.blocks, pieces, strict=True):
        q, k, v = (x.unflatten(0, (block.count, -1)).transpose(1, 2) for x in piece)
        out = _attend(
            q, k, v, block, scaling=scaling, sliding_window=sliding_window, most=MOST_KEPT // len(made.blocks)
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return (together if made.back is None else together.index_select(0, made.back))[None]


def _rows(x: Tensor, index: Tensor | None) -> Tensor:
    """[1, heads, C, D] -> [columns of the index, heads, D]."""
    rows = x[0].transpose(0, 1)
    return rows if index is None else rows.index_select(0, index)


def _attend(
    q: Tensor,  # [count, heads, length, D]
    k: Tensor,  # [count, kv_heads, past + length, D]
    v: Tensor,
    block: Block,
    *,
    scaling: float | None,
    sliding_window: int | None,
    most: int,
) -> Tensor:
    """[count, heads, length, D]; masks of up to `most` numbers are kept."""
    grouped = q.shape[1] != k.shape[1]
    window = sliding_window if sliding_window is not None and block.total > sliding_window else None
    if not block.past and window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
    parts = []
    for start in range(0, block.length, QUERIES):
        end = min(start + QUERIES, block.length)
        first = max(0, block.past + start - window + 1) if window else 0
        seen = slice(first, block.past + end)
        mask = _mask(block, q, start=block.past + start, seen=seen, window=window, most=most)
        part = (q[:, :, start:end], k[:, :, seen], v[:, :, seen])
        parts.append(F.scaled_dot_product_attention(*part, attn_mask=mask, scale=scaling, enable_gqa=grouped))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _mask(block: Block, q: Tensor, *, start: int, seen: slice, window: int | None, most: int) -> Tensor:
    """What is added to scores [queries, keys], or of padded stretches [count, 1, queries, keys]: 0 or -inf.

    Queries begin at `start` and end with the keys.
    """
    key = (start, seen.start, seen.stop, window, q.dtype)
    if key in block.masks:
        return block.masks[key]
    keys = torch.arange(seen.start, seen.stop, device=q.device)
    ages = torch.arange(start, seen.stop, device=q.device)[:, None] - keys
    hidden = ages < 0
    if window:
        hidden |= ages >= window
    if block.padding is not None:
        hidden = hidden | (keys < block.padding[:, None, None, None])
    mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
    if mask.numel() <= most:
        block.masks[key] = mask
    return mask


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
