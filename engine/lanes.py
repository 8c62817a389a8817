"""A micro-batch -> two halves of equal cost, their gradients computed side by side on a CPU's cores.

Threads within one operation gain little where operations are small. Two Python threads, each with half of
the cores, run two operations at a time: torch gives up the interpreter's lock while it computes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from verigrad.engine.loss import LossSums
from verigrad.engine.schema import PackedBatch

MOST_WEIGHTS = 2**26  # trained: each lane holds a gradient of its own, and larger products use all cores well
LEAST_COLUMNS = 128  # of a batch: below it a second thread is not worth its start
MOST_OF_WHOLE = 0.75  # computed by the larger half: what else it costs to compute beginnings twice

T = TypeVar("T")

Part = Callable[[], tuple[Tensor, LossSums]]
"""Makes a loss, a scalar, and its sums."""


def halves(batch: PackedBatch, *, pair_cost: float) -> tuple[PackedBatch, PackedBatch] | None:
    """The batch's rollouts in two batches of nearly equal cost; None where that saves too little.

    Rollouts that begin alike stay together, but for those at the cut. `pair_cost` is bins.pair_cost.
    """
    bounds = batch.cu_seqlens.tolist()
    if len(bounds) < 3 or bounds[-1] < LEAST_COLUMNS:
        return None
    rows = np.split(batch.input_ids.cpu().numpy(), bounds[1:-1])
    order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">i8").tobytes())
    common = np.array([0, *(_num_common(rows[a], rows[b]) for a, b in pairwise(order)), 0])
    lengths = np.array([len(rows[i]) for i in order])

    def cost(tokens: np.ndarray) -> np.ndarray:
        return tokens + pair_cost * tokens**2 / 2

    new = (cost(lengths) - cost(common[:-1])).cumsum()  # of the first rows; what they share counts once
    larger = np.maximum(new[:-1], new[-1] - new[:-1] + cost(common[1:-1]))
    cut = int(larger.argmin())
    if larger[cut] > MOST_OF_WHOLE * new[-1]:
        return None
    first, second = (sorted(some) for some in (order[: cut + 1], order[cut + 1 :]))
    return _taken(batch, first), _taken(batch, second)


def _num_common(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def _taken(batch: PackedBatch, chosen: Sequence[int]) -> PackedBatch:
    """The batch of some of its rollouts, in their order."""
    lengths = batch.cu_seqlens.diff().long()
    taken = torch.zeros(batch.num_rollouts, dtype=torch.bool)
    taken[list(chosen)] = True
    columns = torch.repeat_interleave(taken, lengths)
    changed: dict[str, Any] = {
        column.name: value[taken if column.name == "groups" else columns]
        for column in dataclasses.fields(batch)
        if column.name != "cu_seqlens" and isinstance(value := getattr(batch, column.name), Tensor)
    }
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths[taken].cumsum(0)])
    return dataclasses.replace(batch, **changed, cu_seqlens=bounds.to(batch.cu_seqlens.dtype))


def side_by_side(first: Callable[[], T], second: Callable[[], T]) -> tuple[T, T]:
    """Both results, each computed with half of torch's threads; both have ended when one has failed."""
    total = torch.get_num_threads()
    each = max(1, total // 2)

    def narrowed() -> T:
        torch.set_num_threads(each)
        return second()

    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(max_workers=1) as other:
            waiting = other.submit(narrowed)
            return first(), waiting.result()
    finally:
        torch.set_num_threads(total)


def add_gradients(
    pair: tuple[Part, Part], parameters: Sequence[nn.Parameter]
) -> list[tuple[Tensor, LossSums]]:
    """Add both losses' gradients to the parameters', in this order: equal inputs give equal bits.

    The losses come back without a gradient, with their sums. One that has none adds none.
    """

    def found(part: Part) -> tuple[Tensor, LossSums, Sequence[Tensor | None]]:
        loss, sums = part()
        if not loss.requires_grad:
            return loss, sums, [None] * len(parameters)
        return loss.detach(), sums, torch.autograd.grad(loss, parameters, allow_unused=True)

    done = side_by_side(lambda: found(pair[0]), lambda: found(pair[1]))
    for weight, *gradients in zip(parameters, done[0][2], done[1][2], strict=True):
        there = [gradient for gradient in (weight.grad, *gradients) if gradient is not None]
        if there:
            total = there[0] if weight.grad is not None else there[0].clone()  # autograd's own may be shared
            for gradient in there[1:]:
                total += gradient
            weight.grad = total
    return [(loss, sums) for loss, sums, _ in done]
