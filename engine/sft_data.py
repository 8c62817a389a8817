"""Files, hub data sets and makers -> examples to learn from, examples held out, an endless stream of them.

Rows stay where they are and become examples one at a time. Which are held out is decided as for problems
(data.py): by a seeded hash of each prompt, and no prompt is on both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from verigrad.engine.config import ConfigError, DataConfig
from verigrad.engine.data import choose, digest, hash_of_all, normalised
from verigrad.engine.rows import BadRow, Rows, read_rows, short_name
from verigrad.engine.sft_rows import Encoder, Example, to_source


@dataclass(frozen=True, slots=True)
class SftDataset:
    """What a run learns from and is measured on."""

    train: "Examples"
    held_out: "Examples | None"
    held_out_name: str
    num_skipped: int  # malformed rows left out
    first_skipped: str  # where the first of them is, and what is wrong with it
    num_overlap: int  # training rows left out because their prompt is held out
    longest: int  # tokens of the longest example
    fingerprint: str  # of every row on both sides, in order


@dataclass(frozen=True, slots=True)
class Table:
    """The good rows of a source of examples."""

    rows: Rows
    read: Callable[[Mapping[str, Any]], Example]
    good: NDArray[np.int64]  # [N] which rows
    prompts: NDArray[np.uint64]  # [N] digests of the normalised prompts
    contents: NDArray[np.uint64]  # [N] digests of the rows
    num_skipped: int
    first_skipped: str
    longest: int


class Examples(Sequence[Example]):
    """Examples read from their rows when asked for."""

    def __init__(self, table: Table, positions: NDArray[np.int64]) -> None:
        self._table = table
        self._rows = table.good[positions]  # [N]
        self.fingerprint = hash_of_all(table.contents[positions])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._table.read(self._table.rows.row(int(self._rows[index])))


def load(cfg: DataConfig, encoder: Encoder, *, seed: int) -> SftDataset:
    """Read, check, tokenise and split; see `data.load` for what is held out."""
    table = scan(cfg, encoder, path=cfg.path, split=cfg.split, seed=seed)
    if cfg.eval_path:
        other = scan(cfg, encoder, path=cfg.eval_path, split=cfg.eval_split, seed=seed)
        some = 0 < cfg.num_eval < len(other.good)
        chosen = choose(other.prompts, cfg.num_eval, seed=seed) if some else np.arange(len(other.good))
        held, prompts, name = Examples(other, chosen), other.prompts, short_name(cfg.eval_path)
        skipped = [table, other]
    else:
        chosen = choose(table.prompts, cfg.num_eval, seed=seed)
        held, prompts, name = Examples(table, chosen), table.prompts[chosen], "held_out"
        skipped = [table]
    on_other_side = np.isin(table.prompts, prompts)
    if on_other_side.all():
        remedy = "Choose another data.eval_path" if cfg.eval_path else "Set a smaller data.num_eval"
        raise ConfigError(
            f"{cfg.path} has {len(np.unique(table.prompts))} different prompts and all of them are held out "
            f"(data.num_eval = {cfg.num_eval}): nothing is left to learn from. {remedy}, or bring more data."
        )
    train = Examples(table, np.flatnonzero(~on_other_side))
    return SftDataset(
        train=train,
        held_out=held if len(held) else None,
        held_out_name=name,
        num_skipped=sum(one.num_skipped for one in skipped),
        first_skipped=next((one.first_skipped for one in skipped if one.first_skipped), ""),
        num_overlap=int(on_other_side.sum()) - (0 if cfg.eval_path else len(held)),
        longest=max(one.longest for one in skipped),
        fingerprint=f"{digest([train.fingerprint, held.fingerprint]):016x}",
    )


def scan(cfg: DataConfig, encoder: Encoder, *, path: str, split: str, seed: int) -> Table:
    """Check and tokenise every row once, keeping only digests."""
    rows = read_rows(path, split=split, seed=seed, options=cfg.options)
    good, prompts, contents, num_skipped, first_bad, longest = [], [], [], 0, "", 0
    for index in range(len(rows)):
        try:
            source = to_source(rows.row(index), cfg.columns)
            length = len(encoder(source).token_ids)
        except BadRow as error:
            report = bad_row(rows, index, error, cfg)
            num_skipped += 1
            first_bad = first_bad or report
            continue
        good.append(index)
        longest = max(longest, length)
        prompts.append(digest(normalised(source.asked)))
        contents.append(digest([source.prompt, source.completion]))
    if not good:
        why = (
            f"all {num_skipped} rows are malformed; the first: {first_bad}"
            if num_skipped
            else "it has no rows"
        )
        raise ConfigError(
            f"{path} gives no examples: {why}. Expected rows with 'messages', or 'prompt' and 'completion'."
        )
    return Table(
        rows=rows,
        read=lambda row: encoder(to_source(row, cfg.columns)),
        good=np.array(good, np.int64),
        prompts=np.array(prompts, np.uint64),
        contents=np.array(contents, np.uint64),
        num_skipped=num_skipped,
        first_skipped=first_bad,
        longest=longest,
    )


def bad_row(rows: Rows, index: int, error: BadRow, cfg: DataConfig) -> str:
    """Where the row is and what is wrong with it; raises ConfigError where data.on_bad_row says stop."""
    report = f"{rows.place(index)}: {error}".rstrip(".")
    if cfg.on_bad_row == "stop":
        raise ConfigError(f"{report}. Correct it, or set data.on_bad_row = 'skip'.") from error
    return report


def require_source(cfg: DataConfig, *, seed: int) -> None:
    """Raise ConfigError when no row reads as an example, before anything expensive is done."""
    rows = read_rows(cfg.path, split=cfg.split, seed=seed, options=cfg.options)
    for index in range(len(rows)):
        try:
            to_source(rows.row(index), cfg.columns)
            return
        except BadRow as error:
            bad_row(rows, index, error, cfg)
    raise ConfigError(
        f"{cfg.path} gives no examples. Expected rows with 'messages', or 'prompt' and 'completion'."
    )


class ExampleStream:
    """Examples without end: every epoch visits each once, in a seeded order of its own."""

    def __init__(self, examples: Examples, *, seed: int, shuffle: bool) -> None:
        self._examples, self._seed, self._shuffle = examples, seed, shuffle
        self._identity = {"seed": seed, "shuffle": shuffle, "fingerprint": examples.fingerprint}
        self._start(epoch=0, position=0)

    def _start(self, *, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = np.arange(len(self._examples))  # [N]
        if self._shuffle:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._order)

    @property
    def epoch(self) -> float:
        """Times all examples were drawn, the running one as its share."""
        return self._epoch + self._position / len(self._order)

    def next_batch(self, num: int) -> list[Example]:
        """The next examples; a batch may run from one epoch into the next."""
        batch = []
        for _ in range(num):
            if self._position == len(self._order):
                self._start(epoch=self._epoch + 1, position=0)
            batch.append(self._examples[int(self._order[self._position])])
            self._position += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Where the stream stands, for JSON."""
        return {**self._identity, "epoch": self._epoch, "position": self._position}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; refused if it belongs to other data or another order."""
        changed = [name for name, value in self._identity.items() if state.get(name) != value]
        if changed:
            raise ConfigError(
                f"the checkpoint's place in the data does not fit: {changed[0]} was "
                f"{state.get(changed[0])!r}, is {self._identity[changed[0]]!r}. "
                "Restore the run's data, or start a new run."
            )
        self._start(epoch=int(state["epoch"]), position=int(state["position"]))
