"""data.path, data.mix and data.evals -> what every member learns from, its fold, and the held-out sets.

No prompt of a held-out set is learned from, and no prompt is in two folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from verigrad.engine import mixture
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.data import choose, digest, hash_of_all
from verigrad.engine.examples import Examples, Form, scan
from verigrad.engine.mixture import Joined, MixtureStream, Part

E = TypeVar("E")


class Subset(Sequence[E], Generic[E]):
    """Some of the examples of all sets."""

    def __init__(self, examples: Joined[E], positions: NDArray[np.int64]) -> None:
        self._examples, self._positions = examples, positions
        self.prompts = examples.prompts[positions]  # [N] uint64
        own = [examples.fingerprint, hash_of_all(positions.astype(np.uint64))]
        self.fingerprint = f"{digest(own):016x}"

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> list[E]: ...
    def __getitem__(self, index: int | slice) -> E | list[E]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._examples[int(self._positions[index])]


@dataclass(frozen=True, slots=True)
class RewardData(Generic[E]):
    """What all members learn from and are measured on."""

    train: Joined[E]
    parts: Sequence[Part]  # of `train`
    kept: NDArray[np.int64]  # [N] positions in `train` that are no held-out prompt's
    evals: Mapping[str, Examples[E]]  # by name; rewards are standardised on the first
    notes: Sequence[str]
    longest: int
    fingerprint: str

    def subset(self, positions: NDArray[np.int64]) -> tuple[Subset[E], list[Part]]:
        """Some of the training examples, and how the sets divide them; empty sets are left out."""
        parts, start = [], 0
        for part in self.parts:
            num = int(((positions >= part.start) & (positions < part.stop)).sum())
            if num:
                parts.append(Part(part.name, start, start + num, part.weight))
            start += num
        return Subset(self.train, positions), parts

    def stream(self, positions: NDArray[np.int64], *, seed: int, shuffle: bool) -> MixtureStream[E]:
        """These examples without end, drawn of each set by its weight."""
        some, parts = self.subset(positions)
        return MixtureStream(some, parts, seed=seed, shuffle=shuffle)


def read_sets(cfg: Config, form: Form[E]) -> RewardData[E]:
    """Training examples and every held-out set, data.evals read with their own columns."""
    seed = cfg.train.seed
    mixed = mixture.load(cfg.data, form, seed=seed)
    evals: dict[str, Examples[E]] = dict(mixed.held_out)
    notes, prints, longest = mixed.notes(), [mixed.fingerprint], mixed.longest
    prompts = [np.zeros(0, np.uint64)]
    for name, one in cfg.data.evals.items():
        if name in evals:
            raise ConfigError(
                f"data.evals.{name} has the name of another held-out set; call it something else"
            )
        rows = form.open_rows(one.path, split=one.split, seed=seed, options=one.options)
        table = scan(rows, form, columns=one.columns, on_bad_row=cfg.data.on_bad_row, name=one.path)
        if table.num_skipped:
            notes.append(f"{name}: {table.num_skipped} malformed rows skipped: {table.first_skipped}")
        some = 0 < one.num < len(table.good)
        chosen = choose(table.prompts, one.num, seed=seed) if some else np.arange(len(table.good))
        evals[name] = Examples(table, chosen)
        prompts.append(table.prompts)
        prints.append(evals[name].fingerprint)
        longest = max(longest, table.longest)
    apart = np.isin(mixed.train.prompts, np.concatenate(prompts))
    if apart.all():
        raise ConfigError(f"all prompts of {cfg.data.path} are in data.evals; bring other data to learn from")
    if apart.any():
        notes.append(f"{int(apart.sum())} rows left out: their prompt is in data.evals")
    require_categories(cfg.eval.by, evals)
    kept = np.flatnonzero(~apart)
    return RewardData(mixed.train, mixed.parts, kept, evals, notes, longest, f"{digest(prints):016x}")


def fold_of(prompts: NDArray[np.uint64], num_folds: int) -> NDArray[np.int64]:
    """[N] the fold of each example, by its prompt alone: 0 to num_folds - 1."""
    return (prompts % np.uint64(num_folds)).astype(np.int64)


def require_categories(by: str, evals: Mapping[str, Sequence[Any]]) -> None:
    """Refuse eval.by where no held-out row has that column."""
    if by and evals and not any(example.category for some in evals.values() for example in some):
        raise ConfigError(f"eval.by = {by!r}: no held-out row has this column; correct or remove it")
