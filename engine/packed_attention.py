"""Causal attention over packed rollouts, none of which sees another; common beginnings are computed once."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from verigrad.engine.attention_backends import Backend, choose, flex, varlen
from verigrad.engine.config import ConfigError
from verigrad.engine.prefixes import Layout, Run, layout_of

NAME = "verigrad_packed"
QUERIES = 1024  # attended to at once after a past: an explicit mask [QUERIES, past + length] stays small
MOST_KEPT = 2**22  # numbers of a mask that is kept from layer to layer; a larger one is made anew


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
    attend = {"sdpa": _by_runs, "flex": flex, "varlen": varlen}[packed_backend]
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


def _by_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """[1, C, heads, D], by one SDPA call for each run of stretches of equal shape."""
    runs = layout.runs
    outputs = []
    # Split, not sliced one by one: each slice's gradient would be as long as the whole batch.
    sizes = [run.count * run.length for run in runs]
    pieces = zip(*(torch.split_with_sizes(x[0], sizes, dim=1) for x in (query, key, value)), strict=True)
    pasts = zip(*(_pasts(x[0], layout) for x in (key, value)), strict=True)
    for run, (q, k, v), (k_past, v_past) in zip(runs, pieces, pasts, strict=True):
        q = _split(q, run.count)
        k, v = (_after(past, own, run) for past, own in ((k_past, k), (v_past, v)))
        out = _attend(q, k, v, run, layout, scaling=scaling, sliding_window=sliding_window)
        outputs.append(out.permute(0, 2, 1, 3).reshape(run.count * run.length, q.shape[1], q.shape[3]))
    return torch.cat(outputs)[None]


def _attend(
    q: Tensor,  # [count, heads, length, D]
    k: Tensor,  # [count, kv_heads, past + length, D]
    v: Tensor,
    run: Run,
    layout: Layout,
    *,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """[count, heads, length, D]."""
    grouped, total = q.shape[1] != k.shape[1], run.past + run.length
    window = sliding_window if sliding_window is not None and total > sliding_window else None
    if not run.past and window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
    parts = []
    for start in range(0, run.length, QUERIES):
        end = min(start + QUERIES, run.length)
        first = max(0, run.past + start - window + 1) if window else 0
        seen = slice(first, run.past + end)
        mask = _mask(layout, q, start=run.past + start, seen=seen, window=window)
        part = (q[:, :, start:end], k[:, :, seen], v[:, :, seen])
        parts.append(F.scaled_dot_product_attention(*part, attn_mask=mask, scale=scaling, enable_gqa=grouped))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _mask(layout: Layout, q: Tensor, *, start: int, seen: slice, window: int | None) -> Tensor:
    """What is added to scores [queries, keys]: 0 or -inf. Queries begin at `start` and end with the keys."""

    def made() -> Tensor:
        ages = (
            torch.arange(start, seen.stop, device=q.device)[:, None]
            - torch.arange(seen.start, seen.stop, device=q.device)[None, :]
        )
        hidden = ages < 0
        if window:
            hidden |= ages >= window
        return torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)

    if (seen.stop - start) * (seen.stop - seen.start) > MOST_KEPT // max(1, len(layout.runs)):
        return made()
    kept: Tensor = layout.kept((start, seen.start, seen.stop, window, q.dtype), made)
    return kept


def _pasts(x: Tensor, layout: Layout) -> Sequence[Tensor | None]:
    """Of each run what comes before its stretches, [kv_heads, count*past, D]; None where nothing does."""
    sizes = [run.count * run.past for run in layout.runs]
    if not any(sizes):
        return [None] * len(sizes)
    # Gathered at once, for the same reason.
    return torch.split_with_sizes(x.index_select(1, layout.pasts), sizes, dim=1)


def _after(past: Tensor | None, own: Tensor, run: Run) -> Tensor:
    """[count, kv_heads, past + length, D]."""
    own = _split(own, run.count)
    return own if not run.past or past is None else torch.cat([_split(past, run.count), own], dim=2)


def _split(x: Tensor, count: int) -> Tensor:
    """[heads, count*length, D] -> [count, heads, length, D]."""
    return x.reshape(x.shape[0], count, -1, x.shape[2]).transpose(0, 1)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
