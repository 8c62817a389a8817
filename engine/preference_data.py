"""Preference data of any source, a run folder among them -> pairs, or labelled single answers, as tokens.

What a row may say is in preference_rows.py, how rollouts become rows in rollout_pairs.py, and how rows are
held out and drawn in examples.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from verigrad.engine import examples
from verigrad.engine.config import Config, ConfigError, DataConfig
from verigrad.engine.data import digest
from verigrad.engine.examples import Form, Item, OpenRows
from verigrad.engine.preference_batch import LabelledExample, PairExample, mismatched
from verigrad.engine.preference_catalogue import PREFERENCES
from verigrad.engine.preference_rows import Labelled, Pair, encode, to_labelled, to_pair
from verigrad.engine.rollout_pairs import (
    RunRows,
    answers_of_run,
    files_of,
    is_run,
    pairs_of_run,
    require_run,
    require_same_prompts,
)
from verigrad.engine.rows import BadRow, Rows, read_rows
from verigrad.engine.settings import MixSet
from verigrad.engine.sft_rows import Encoder, Example

PAIRS = "rows with 'prompt', 'chosen' and 'rejected', or a run folder"
ANSWERS = "rows with 'prompt', 'completion' and 'label', or pairs, or a run folder"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Single:
    """One labelled answer as tokens, without the reference point that kto needs beside it."""

    answer: Example
    good: bool


def pair_form(encoder: Encoder, open_rows: OpenRows = read_rows) -> Form[PairExample]:
    """Rows -> pairs as tokens."""

    def read(row: Mapping[str, Any], columns: Mapping[str, str]) -> Item[PairExample]:
        return item_of_pair(to_pair(row, columns), encoder)

    return Form(read, PAIRS, open_rows, whole_prompts=True)


def item_of_pair(pair: Pair, encoder: Encoder) -> Item[PairExample]:
    """A pair as tokens; raises BadRow where its answers have the same, or too many."""
    chosen, rejected = (encode(encoder, pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
    if chosen.token_ids == rejected.token_ids:
        raise BadRow("has a chosen and a rejected answer of the same tokens, which prefers nothing")
    longest = max(len(chosen.token_ids), len(rejected.token_ids))
    content = [pair.prompt, pair.chosen, pair.rejected, pair.p_chosen]
    return Item(pair.prompt, content, [PairExample(chosen, rejected, pair.p_chosen)], longest)


def single_form(encoder: Encoder, open_rows: OpenRows = read_rows) -> Form[Single]:
    """Rows -> single labelled answers as tokens; of a pair both."""

    def read(row: Mapping[str, Any], columns: Mapping[str, str]) -> Item[Single]:
        return item_of_labelled(to_labelled(row, columns), encoder)

    return Form(read, ANSWERS, open_rows, whole_prompts=True)


def item_of_labelled(answers: Sequence[Labelled], encoder: Encoder) -> Item[Single]:
    """The labelled answers of one row as tokens."""
    singles = [Single(encode(encoder, one.prompt, one.answer), one.good) for one in answers]
    longest = max(len(one.answer.token_ids) for one in singles)
    content = [[one.prompt, one.answer, one.good] for one in answers]
    return Item(answers[0].prompt, content, singles, longest)


def sources(cfg: Config, *, opening: str = "", tell: Tell | None = None) -> OpenRows:
    """Opens what rows.read_rows knows, and rollouts of a run; `tell` hears what these gave.

    `opening` is what the prompt begins every answer with, see rollout_pairs.pairs_of_run.
    """
    make = pairs_of_run if PREFERENCES[cfg.prefer.loss].paired else answers_of_run

    def open_rows(path: str, *, split: str, seed: int, options: Mapping[str, Any]) -> Rows:
        if not is_run(path):
            return read_rows(path, split=split, seed=seed, options=options)
        refuse_row_settings(cfg.data, path)
        require_same_prompts(path, cfg.prompts)
        rows: RunRows = make(path, most=cfg.prefer.pairs_per_problem, seed=seed, opening=opening)
        if tell is not None:
            tell(f"{path}: {rows.told}")
        return rows

    return open_rows


def refuse_row_settings(data: DataConfig, path: str) -> None:
    """Raise ConfigError for settings that mean nothing of a source of rows at `path`, which is a run."""
    sources: list[tuple[str, DataConfig | MixSet]] = [("data", data)]
    sources += [(f"data.mix.{name}", one) for name, one in data.mix.items()]
    for where, source in sources:
        for name in ("columns", "options"):
            if path == source.path and getattr(source, name):
                raise ConfigError(
                    f"{where}.{name} has no effect where {where}.path is a run folder; remove it"
                )


def require_source(cfg: Config) -> None:
    """Raise ConfigError when data.path gives nothing, before anything expensive is done."""
    require_run(cfg.data, cfg.prefer.pairs_per_problem, setting="prefer.pairs_per_problem")
    paired = PREFERENCES[cfg.prefer.loss].paired
    if cfg.data.path and is_run(cfg.data.path):
        files_of(cfg.data.path)
        refuse_row_settings(cfg.data, cfg.data.path)
        require_same_prompts(cfg.data.path, cfg.prompts)
        return
    check = to_pair if paired else to_labelled
    examples.require_row(cfg.data, check, PAIRS if paired else ANSWERS, seed=cfg.train.seed)


# What a loss needs beside an example ------------------------------------------------------------------------


class Singles(Protocol):
    """Single answers of one set or of several, see examples.Examples and mixture.Joined."""

    fingerprint: str
    prompts: NDArray[np.uint64]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Single: ...


class WithTwins:
    """Single answers, each with the answer to another prompt that kto measures its reference point on.

    Twins are drawn once and for all, so that the reference's log-probabilities of them can be kept.
    """

    def __init__(self, singles: Singles, *, max_length: int) -> None:
        self._singles, self._max_length = singles, max_length
        self._twins = twins_of(singles.prompts)  # [N]
        self.fingerprint = f"{digest(['twins', singles.fingerprint, max_length]):016x}"
        self.prompts = singles.prompts

    def __len__(self) -> int:
        return len(self._singles)

    def __getitem__(self, index: int) -> LabelledExample:
        one, other = self._singles[index], self._singles[int(self._twins[index])]
        twin = mismatched(one.answer, other.answer, max_length=self._max_length)
        return LabelledExample(one.answer, one.good, twin)


def twins_of(prompts: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[N] for each answer one to another prompt: the next such in a shuffled order, so that none is favoured.

    `prompts` [N] are digests. Raises ConfigError where all are the same.
    """
    order = np.random.default_rng(len(prompts)).permutation(len(prompts))
    shuffled = prompts[order]
    changes = np.flatnonzero(shuffled != np.roll(shuffled, -1))  # after these comes another prompt
    if not len(changes):
        raise ConfigError(
            f"kto compares with answers to other prompts, and all {len(prompts)} answers of one side are to "
            "the same prompt. Bring more prompts, or take a loss of pairs."
        )
    nearest = changes[np.searchsorted(changes, np.arange(len(prompts))) % len(changes)]
    twins = np.empty(len(prompts), np.int64)
    twins[order] = order[(nearest + 1) % len(prompts)]
    return twins
