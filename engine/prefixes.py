"""Sequences that begin alike -> a layout that computes each common beginning once.

A causal model's states over a common beginning are the same in every sequence that has it: the prompt of a
group of rollouts, of a pair of answers, a system prompt before everything. The layout is a tree of stretches
of tokens; a stretch attends to the stretches on its path and to itself, so values and gradients are those of
sequences computed one by one.

T: columns of all sequences end to end. C: columns that are computed. Sharing prefixes among a group's
rollouts is PrefixGrouper's idea (arXiv 2506.05433).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

MIN_SHARED = 4  # tokens of a common beginning that is worth a stretch of its own
MIN_SAVED = 32  # tokens it must save in all: a further attention call costs about as much


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring stretches of equal shape, attended to in one call."""

    count: int  # stretches
    past: int  # tokens before each
    length: int  # tokens in each


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns are computed, and where each sequence finds its own."""

    columns: Tensor  # [C] int64: one of the columns that each computed one stands for
    places: Tensor  # [T] int64: the computed column of each column
    runs: Sequence[Run]  # in the order of the computed columns
    pasts: Tensor  # int64: run after run, stretch after stretch, the computed columns before it
    depths: Tensor  # [C] int32: tokens before it in its sequence
    # A stretch is before another on a path where enters <= the other's enters < exits: numbers in tree order.
    enters: Tensor  # [C] int32
    exits: Tensor  # [C] int32
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device) -> "Layout":
        """With its tensors there, and nothing kept yet."""
        names = ("columns", "places", "pasts", "depths", "enters", "exits")
        return replace(self, cache={}, **{name: getattr(self, name).to(device) for name in names})

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time: masks and indices are the same in every layer."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    @property
    def shared(self) -> float:
        """Share of the columns that were not computed once more, in [0, 1)."""
        return 1 - len(self.columns) / max(1, len(self.places))


@dataclass(frozen=True, slots=True)
class _Stretch:
    owner: int  # a sequence that has it
    start: int  # in tokens of the sequence
    end: int
    path: tuple[int, ...]  # the stretches before it, by number


def layout_of(input_ids: Tensor, cu_seqlens: Tensor, *, share: bool = True, by_shape: bool = True) -> Layout:
    """The layout of sequences [T] with boundaries [S+1]; without `share` each is computed as a whole.

    Stretches of equal shape are neighbours; without `by_shape` those of one path are, which attention in one
    call prefers. What a stretch attends to lies before it either way. The same tensor of ids gives the same
    layout for as long as it lives: several passes over a batch look for beginnings once.
    """
    bounds = cu_seqlens.tolist()
    known = _layouts.setdefault(input_ids, {})
    key = (tuple(bounds), share, by_shape)
    if key not in known:
        known[key] = _laid_out(input_ids, bounds, share=share, by_shape=by_shape)
    found: Layout = known[key]
    return found


_layouts: Any = WeakIdKeyDictionary()


def _laid_out(input_ids: Tensor, bounds: Sequence[int], *, share: bool, by_shape: bool) -> Layout:
    sequences = list(np.split(input_ids.cpu().numpy(), bounds[1:-1])) if len(bounds) > 1 else []
    stretches, paths = _tree(sequences, share=share)

    def past(index: int) -> int:
        return stretches[index].start

    def shape(index: int) -> tuple[int, int]:
        return past(index), stretches[index].end - stretches[index].start

    order = list(range(len(stretches)))  # along the tree
    if by_shape:
        # Stable: equal inputs are laid out equally. Stretches without a past come first, the longest first.
        order.sort(key=lambda i: (past(i), -shape(i)[1]))
    begins: dict[int, int] = {}
    columns, pasts, depths, runs, num = [], [], [], [], 0
    for index in order:
        stretch = stretches[index]
        begins[index] = num
        depths.append(np.arange(stretch.start, stretch.end))
        columns.append(depths[-1] + bounds[stretch.owner])
        num += stretch.end - stretch.start
    for (num_past, length), members in groupby(order, key=shape):
        alike = list(members)
        runs.append(Run(len(alike), num_past, length))
        for index in alike:
            pasts += [_columns(stretches[before], begins[before]) for before in stretches[index].path]
    places = [np.concatenate([_columns(stretches[index], begins[index]) for index in path]) for path in paths]
    exits = list(range(1, len(stretches) + 1))
    for index, stretch in enumerate(stretches):
        for before in stretch.path:
            exits[before] = index + 1  # stretches are numbered along the tree: the last one counts
    lengths = [shape(index)[1] for index in order]
    return Layout(
        _tensor(columns),
        _tensor(places),
        runs,
        _tensor(pasts),
        depths=_tensor(depths).int(),
        enters=_tensor([np.repeat(order, lengths)]).int(),
        exits=_tensor([np.repeat([exits[index] for index in order], lengths)]).int(),
    )


def size_of(sequences: Sequence[Sequence[int]], *, share: bool = True) -> int:
    """Columns that are computed where these sequences share a batch: what they take of its token budget.

    Only what all of them begin with is counted as shared; a batch may share more.
    """
    total = sum(len(ids) for ids in sequences)
    if not share or len(sequences) < 2:
        return total
    extremes = (pick(list(ids) for ids in sequences) for pick in (min, max))  # all others lie between them
    common = _num_common([np.asarray(ids) for ids in extremes])
    return total - common * (len(sequences) - 1) if pays(common, len(sequences)) else total


def pays(common: int, count: int) -> bool:
    """Whether a beginning of so many tokens that `count` sequences have is worth a stretch of its own."""
    return common >= MIN_SHARED and common * (count - 1) >= MIN_SAVED


def _tree(sequences: Sequence[np.ndarray], *, share: bool) -> tuple[list[_Stretch], list[tuple[int, ...]]]:
    """The stretches, and for each sequence those it is made of, first to last."""
    stretches: list[_Stretch] = []
    paths: list[tuple[int, ...]] = [()] * len(sequences)

    def add(owner: int, start: int, end: int, path: tuple[int, ...]) -> tuple[int, ...]:
        if start == end:
            return path
        stretches.append(_Stretch(owner, start, end, path))
        return (*path, len(stretches) - 1)

    if not share:
        for index, row in enumerate(sequences):
            paths[index] = add(index, 0, len(row), ())
        return stretches, paths
    # As lists of ids compare: each id has as many bytes, the highest first.
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">i8").tobytes())
    common = [_num_common([sequences[a], sequences[b]]) for a, b in pairwise(order)]
    # Neighbours in this order have the longest beginnings in common; a slice of it is one node of the tree.
    waiting: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(order), 0, ())]
    while waiting:
        low, high, depth, path = waiting.pop()
        if high - low <= 1:
            for index in order[low:high]:
                paths[index] = add(index, depth, len(sequences[index]), path)
            continue
        least = min(common[low : high - 1])
        if pays(least - depth, high - low):
            path, depth = add(order[low], depth, least, path), least
        cuts = [low, *(i + 1 for i in range(low, high - 1) if common[i] == least), high]
        waiting += [(a, b, depth, path) for a, b in pairwise(cuts)]
    return stretches, paths


def _num_common(pair: Sequence[np.ndarray]) -> int:
    length = min(len(row) for row in pair)
    differs = pair[0][:length] != pair[1][:length]
    return int(differs.argmax()) if differs.any() else length


def _columns(stretch: _Stretch, begin: int) -> np.ndarray:
    return np.arange(begin, begin + stretch.end - stretch.start)


def _tensor(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64))
