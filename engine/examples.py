"""Rows of any source -> examples of one kind to learn from, some held out, and an endless stream of them.

What sft, prefer and reward share. Rows stay where they are and become examples when asked for. Which are held
out is decided as for problems (data.py): by a seeded hash of each prompt, and no prompt is on both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from verigrad.engine.config import ConfigError, DataConfig
from verigrad.engine.data import choose, digest, hash_of_all, normalised, path_of
from verigrad.engine.epochs import Epochs
from verigrad.engine.rows import BadRow, Rows, read_rows, short_name

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Item(Generic[E_co]):
    """What one row gives: mostly one example, several where a row holds several."""

    asked: str | Sequence[Mapping[str, Any]]  # the prompt, by which rows are held out together
    content: Any  # all that is learned from, for fingerprints
    examples: Sequence[E_co]
    longest: int  # tokens of the longest sequence


ReadItem = Callable[[Mapping[str, Any], Mapping[str, str]], Item[E]]
"""A row and data.columns -> what it gives; raises BadRow for a malformed one."""

MergeRows = Callable[[Rows, Mapping[str, str]], Rows]
"""All rows of a set and its own data.columns -> the rows to read."""

CheckRow = Callable[[Mapping[str, Any], Mapping[str, str]], object]
"""Raises BadRow for a row that a kind of examples cannot be read from; needs no tokenizer."""


class OpenRows(Protocol):
    """How a source's rows are found; rows.read_rows, or something that knows more sources."""

    def __call__(self, path: str, *, split: str, seed: int, options: Mapping[str, Any]) -> Rows:
        """See rows.read_rows."""
        ...


@dataclass(frozen=True, slots=True)
class Form(Generic[E]):
    """One kind of examples: how rows become them."""

    read: ReadItem[E]
    expected: str  # what a row is made of, for messages
    open_rows: OpenRows = read_rows
    merged: MergeRows | None = None  # rows and their columns -> fewer rows, those that belong together as one
    whole_prompts: bool = False  # hold out all examples of a held-out prompt, not one row of each


@dataclass(frozen=True, slots=True)
class Split(Generic[E]):
    """What a run learns from and is measured on."""

    train: "Examples[E]"
    held_out: "Examples[E] | None"
    held_out_name: str
    reserved: NDArray[np.uint64]  # digests of the prompts that nothing may be learned from
    num_skipped: int  # malformed rows left out
    first_skipped: str  # where the first of them is, and what is wrong with it
    num_overlap: int  # training examples left out because their prompt is held out
    longest: int  # tokens of the longest sequence
    fingerprint: str  # of every example on both sides, in order

    def notes(self) -> list[str]:
        """What was left out, for the log."""
        notes = []
        if self.num_skipped:
            notes.append(f"{self.num_skipped} malformed rows skipped, the first: {self.first_skipped}")
        if self.num_overlap:
            notes.append(f"{self.num_overlap} rows left out: their prompt is held out")
        return notes


@dataclass(frozen=True, slots=True)
class Table(Generic[E]):
    """The examples of a source."""

    rows: Rows
    read: Callable[[Mapping[str, Any]], Item[E]]
    good: NDArray[np.int64]  # [N] each example's row
    part: NDArray[np.int64]  # [N] which of its row's examples it is
    prompts: NDArray[np.uint64]  # [N] digests of the normalised prompts
    contents: NDArray[np.uint64]  # [N] digests of row and part
    num_skipped: int
    first_skipped: str
    longest: int


class Examples(Sequence[E]):
    """Examples read from their rows when asked for."""

    def __init__(self, table: Table[E], positions: NDArray[np.int64]) -> None:
        self._table, self._positions = table, positions
        self._rows, self._parts = table.good[positions], table.part[positions]  # [N]
        self.prompts = table.prompts[positions]  # [N] uint64, alike where the prompt is the same
        self.fingerprint = hash_of_all(table.contents[positions])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> list[E]: ...
    def __getitem__(self, index: int | slice) -> E | list[E]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item = self._table.read(self._table.rows.row(int(self._rows[index])))
        return item.examples[int(self._parts[index])]

    def without(self, prompts: NDArray[np.uint64]) -> "Examples[E]":
        """Those whose prompt is none of these."""
        return Examples(self._table, self._positions[~np.isin(self.prompts, prompts)])


def load(cfg: DataConfig, form: Form[E], *, seed: int, setting: str = "data") -> Split[E]:
    """Read, check, tokenise and split one set; see `data.load` for what is held out.

    `setting` is where the set is named in the recipe, for messages. Of several sets: mixture.load.
    """
    table = scan_path(cfg, form, path=path_of(cfg), split=cfg.split, seed=seed)
    if cfg.eval_path:
        other = scan_path(cfg, form, path=cfg.eval_path, split=cfg.eval_split, seed=seed)
        some = 0 < cfg.num_eval < len(other.good)
        chosen = held_out_of(other, form, cfg.num_eval, seed=seed) if some else np.arange(len(other.good))
        held, prompts, name = Examples(other, chosen), other.prompts, short_name(cfg.eval_path)
        skipped = [table, other]
    else:
        chosen = held_out_of(table, form, cfg.num_eval, seed=seed)
        held, prompts, name = Examples(table, chosen), table.prompts[chosen], "held_out"
        skipped = [table]
    on_other_side = np.isin(table.prompts, prompts)
    if on_other_side.all():
        remedy = (
            f"Choose another {setting}.eval_path" if cfg.eval_path else f"Set a smaller {setting}.num_eval"
        )
        raise ConfigError(
            f"{cfg.path} has {len(np.unique(table.prompts))} different prompts and all of them are held out "
            f"({setting}.num_eval = {cfg.num_eval}): nothing is left to learn from. {remedy}, or bring more "
            "data."
        )
    train = Examples(table, np.flatnonzero(~on_other_side))
    return Split(
        train=train,
        held_out=held if len(held) else None,
        held_out_name=name,
        reserved=prompts,
        num_skipped=sum(one.num_skipped for one in skipped),
        first_skipped=next((one.first_skipped for one in skipped if one.first_skipped), ""),
        num_overlap=int(on_other_side.sum()) - (0 if cfg.eval_path else len(held)),
        longest=max(one.longest for one in skipped),
        fingerprint=f"{digest([train.fingerprint, held.fingerprint]):016x}",
    )


def held_out_of(table: Table[E], form: Form[E], num_prompts: int, *, seed: int) -> NDArray[np.int64]:
    """Positions of what is held out: of each chosen prompt the first example, or all of them."""
    chosen = choose(table.prompts, num_prompts, seed=seed)
    if form.whole_prompts:
        return np.flatnonzero(np.isin(table.prompts, table.prompts[chosen]))
    return chosen


def scan_path(cfg: DataConfig, form: Form[E], *, path: str, split: str, seed: int) -> Table[E]:
    """The examples of data.path or data.eval_path."""
    rows = form.open_rows(path, split=split, seed=seed, options=cfg.options)
    return scan(rows, form, columns=cfg.columns, on_bad_row=cfg.on_bad_row, name=path)


def scan(rows: Rows, form: Form[E], *, columns: Mapping[str, str], on_bad_row: str, name: str) -> Table[E]:
    """Check and tokenise every row once, keeping only digests; `name` is the source's, for messages."""
    rows = rows if form.merged is None else form.merged(rows, columns)
    good: list[int] = []
    part: list[int] = []
    prompts: list[int] = []
    contents: list[int] = []
    num_skipped, first_bad, longest = 0, "", 0
    for index in range(len(rows)):
        try:
            item = form.read(rows.row(index), columns)
        except BadRow as error:
            report = bad_row(rows, index, error, on_bad_row)
            num_skipped += 1
            first_bad = first_bad or report
            continue
        num, content = len(item.examples), digest(item.content)
        good += [index] * num
        part += range(num)
        prompts += [digest(normalised(item.asked))] * num
        contents += [content] if num == 1 else [digest([content, i]) for i in range(num)]
        longest = max(longest, item.longest)
    if not good:
        why = (
            f"all {num_skipped} rows are malformed; the first: {first_bad}"
            if num_skipped
            else "it has no rows"
        )
        raise ConfigError(f"{name} gives no examples: {why}. Expected {form.expected}.")
    return Table(
        rows=rows,
        read=lambda row: form.read(row, columns),
        good=np.array(good, np.int64),
        part=np.array(part, np.int64),
        prompts=np.array(prompts, np.uint64),
        contents=np.array(contents, np.uint64),
        num_skipped=num_skipped,
        first_skipped=first_bad,
        longest=longest,
    )


def bad_row(rows: Rows, index: int, error: BadRow, on_bad_row: str) -> str:
    """Where the row is and what is wrong with it; raises ConfigError where data.on_bad_row says stop."""
    report = f"{rows.place(index)}: {error}".rstrip(".")
    if on_bad_row == "stop":
        raise ConfigError(f"{report}. Correct it, or set data.on_bad_row = 'skip'.") from error
    return report


def require_row(
    cfg: DataConfig, check: CheckRow, expected: str, *, seed: int, open_rows: OpenRows = read_rows
) -> None:
    """Raise ConfigError when no row passes `check`, before anything expensive is done."""
    rows = open_rows(path_of(cfg), split=cfg.split, seed=seed, options=cfg.options)
    for index in range(len(rows)):
        try:
            check(rows.row(index), cfg.columns)
            return
        except BadRow as error:
            bad_row(rows, index, error, cfg.on_bad_row)
    raise ConfigError(f"{cfg.path} gives no examples. Expected {expected}.")


class Fingerprinted(Protocol[E_co]):
    """Examples by number, and a hash of all of them in order."""

    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> E_co: ...


class ExampleStream(Epochs[E]):
    """Examples without end."""

    def __init__(self, examples: Fingerprinted[E], *, seed: int, shuffle: bool) -> None:
        super().__init__(examples, seed=seed, shuffle=shuffle, fingerprint=examples.fingerprint)
