"""Runs of stretches -> blocks that one attention call each computes, those of nearly one shape padded to it.

A call costs time however little it computes, so stretches are padded where that costs less than more calls:
pasts at their left, so that keys stay as far from queries as they are, and stretches at their right, where
causality hides the padding. It repeats columns of the same stretch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from verigrad.engine.prefixes import Layout, Run

CALL_COST = 2**20  # of a call, forward and backward: pairs of query and key, times heads times their size
MOST_PAIRS = 2**20  # of a padded block: its mask has one number for each
LOOK_BACK = 64  # runs that a block may be made of


@dataclass(frozen=True, slots=True)
class Block:
    """Stretches of one shape, or padded to one."""

    count: int
    past: int  # keys before each
    length: int  # queries of each
    padding: Tensor | None = None  # [count] int64 keys at the left that are none; None: of no stretch
    masks: dict[object, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def total(self) -> int:
        """Keys of each stretch."""
        return self.past + self.length


@dataclass(frozen=True, slots=True)
class Blocks:
    """All of a layout's, and which of its columns [C] their queries and keys are."""

    blocks: Sequence[Block]
    queries: Tensor | None  # int64: block after block, stretch after stretch; None: the columns as they are
    keys: Tensor | None  # int64 likewise
    back: Tensor | None  # [C] int64: the query of each column


def blocks_of(layout: Layout, *, width: int) -> Blocks:
    """The blocks of a layout's runs, for attention of `width`: heads times their size."""
    parts = segments(layout.runs, call_cost=CALL_COST // width)
    if all(end - start == 1 for start, end in parts) and not len(layout.pasts):
        return Blocks([Block(run.count, 0, run.length) for run in layout.runs], None, None, None)
    device, pasts = layout.columns.device, layout.pasts.cpu().numpy()
    blocks, queries, keys, back = [], [], [], []
    taken = column = placed = 0
    for start, end in parts:
        runs = layout.runs[start:end]
        past, length = max(run.past for run in runs), max(run.length for run in runs)
        padding = []
        for run in runs:
            begins = column + run.length * np.arange(run.count)[:, None]  # [count, 1]
            own = begins + np.minimum(np.arange(length), run.length - 1)
            before = pasts[taken : taken + run.count * run.past].reshape(run.count, run.past)
            filler = np.repeat(begins, past - run.past, axis=1)
            queries.append(own.ravel())
            keys.append(np.concatenate([filler, before, own], axis=1).ravel())
            rows = placed + length * np.arange(run.count)[:, None]
            back.append((rows + np.arange(run.length)).ravel())
            padding += [past - run.past] * run.count
            taken, column = taken + run.count * run.past, column + run.count * run.length
            placed += run.count * length
        padded = torch.tensor(padding, device=device) if any(padding) else None
        blocks.append(Block(len(padding), past, length, padded))
    as_they_are = placed == column
    taken_queries, taken_keys, given_back = (
        torch.from_numpy(np.concatenate(part)).to(device) for part in (queries, keys, back)
    )
    return Blocks(
        blocks, None if as_they_are else taken_queries, taken_keys, None if as_they_are else given_back
    )


def segments(runs: Sequence[Run], *, call_cost: float) -> list[tuple[int, int]]:
    """Neighbouring runs that are computed together, as bounds: where calls and padded pairs cost least."""
    least: list[tuple[float, int]] = [
        (0.0, 0)
    ]  # of the first runs: the cost, and where the last block begins
    for end in range(1, len(runs) + 1):
        best = (math.inf, end - 1)
        count = past = length = 0
        for start in range(end - 1, max(-1, end - 1 - LOOK_BACK), -1):
            run = runs[start]
            count, past, length = count + run.count, max(past, run.past), max(length, run.length)
            pairs = count * length * (past + length)
            if start < end - 1 and pairs > MOST_PAIRS:
                break
            best = min(best, (least[start][0] + call_cost + pairs, start))
        least.append(best)
    bounds: list[tuple[int, int]] = []
    end = len(runs)
    while end:
        bounds.append((least[end][1], end))
        end = least[end][1]
    return bounds[::-1]
