"""Files, hub data sets and makers -> problems to train on, problems held out, and an endless stream of them.

Rows stay where they are (an mmapped JSONL file, an Arrow table) and become `Problem`s one at a time: a large
data set costs some dozens of bytes per row.
"""

import difflib
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from verigrad.engine.config import ConfigError, DataConfig
from verigrad.engine.epochs import Epochs
from verigrad.engine.rows import BadRow, Rows, read_rows, short_name
from verigrad.verifiers.base import Problem

if TYPE_CHECKING:  # it holds tensors, and reading data needs no torch
    from verigrad.engine.schema import VerifiedGroup

ANSWER_COLUMNS = ("answer", "ground_truth", "solution")
ID_COLUMNS = ("id", "problem_id")
CHECK_COLUMNS = ("tests", "cases", "test_code", "check")
"""A row with one of these is judged by it, and needs no answer."""

Accept = Callable[[Problem], str | None]
"""None, or why this problem cannot be used."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a run trains on and is measured on."""

    train: "Problems"
    evals: Mapping[str, list[Problem]]
    num_skipped: int  # malformed rows left out
    first_skipped: str  # where the first of them is, and what is wrong with it
    num_overlap: int  # training rows left out because their prompt is held out
    fingerprint: str  # of every problem on both sides, in order


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One set of held-out problems."""

    problems: list[Problem]
    prompts: NDArray[np.uint64]  # digests of those that no training row may have
    num_skipped: int = 0  # malformed rows of its own source
    first_skipped: str = ""


def load(cfg: DataConfig, *, seed: int, accept: Accept | None = None) -> Dataset:
    """Read, check and split; no prompt, whatever its spacing and case, is on both sides.

    Which prompts are held out is decided by a seeded hash of each, not by the order of the rows.
    """
    path_of(cfg)
    table = scan_path(cfg, seed=seed, accept=accept)
    sets = held_out_of(cfg, table, seed=seed, accept=accept)
    prompts = [each.prompts for each in sets.values()]
    on_other_side = np.isin(table.prompts, np.concatenate(prompts) if prompts else np.zeros(0, np.uint64))
    if on_other_side.all():
        remedy = "Choose another data.eval_path" if cfg.eval_path else "Set a smaller data.num_eval"
        also = "".join(f", data.evals.{name}" for name in cfg.evals)
        raise ConfigError(
            f"{cfg.path} has {len(np.unique(table.prompts))} different prompts and all of them are held out "
            f"(data.num_eval = {cfg.num_eval}{also}): nothing is left to train on. {remedy}, or bring more "
            "data."
        )
    train = table.problems(np.flatnonzero(~on_other_side))
    num_own = 0 if cfg.eval_path or "held_out" not in sets else len(sets["held_out"].problems)
    skips = [(table.num_skipped, table.first_skipped)]
    skips += [(each.num_skipped, each.first_skipped) for each in sets.values()]
    evals = {name: each.problems for name, each in sets.items()}
    parts = [train.fingerprint, *(fingerprint_of(problems) for problems in evals.values())]
    return Dataset(
        train=train,
        evals=evals,
        num_skipped=sum(num for num, _ in skips),
        first_skipped=next((first for _, first in skips if first), ""),
        num_overlap=int(on_other_side.sum()) - num_own,
        fingerprint=f"{digest(parts):016x}",
    )


def load_evals(cfg: DataConfig, *, seed: int, accept: Accept | None = None) -> dict[str, HeldOut]:
    """The held-out sets alone, the same problems as `load` gives; `path` is read only if they are of it."""
    own = bool(cfg.path and cfg.num_eval and not cfg.eval_path)
    table = scan_path(cfg, seed=seed, accept=accept) if own else None
    return held_out_of(cfg, table, seed=seed, accept=accept)


def held_out_of(
    cfg: DataConfig, table: "Table | None", *, seed: int, accept: Accept | None
) -> dict[str, HeldOut]:
    """Every set by its name: of `path` (its good rows are `table`) or `eval_path`, then data.evals."""
    sets: dict[str, HeldOut] = {}
    if cfg.eval_path:
        rows = read_rows(cfg.eval_path, split=cfg.eval_split, seed=seed, options=cfg.options)
        found = scan(rows, cfg.columns, cfg.on_bad_row, name=cfg.eval_path, accept=accept)
        sets[short_name(cfg.eval_path)] = whole_or_some(found, cfg.num_eval, seed=seed)
    elif table is not None and cfg.num_eval:
        chosen = choose(table.prompts, cfg.num_eval, seed=seed)
        sets["held_out"] = HeldOut(list(table.problems(chosen)), table.prompts[chosen])
    for name, one in cfg.evals.items():
        if name in sets:
            where = "data.eval_path" if cfg.eval_path else "data.num_eval"
            raise ConfigError(
                f"data.evals.{name} has the name of the set of {where}. Call it something else."
            )
        rows = read_rows(one.path, split=one.split, seed=seed, options=one.options)
        found = scan(rows, one.columns, cfg.on_bad_row, name=one.path, accept=accept)
        sets[name] = whole_or_some(found, one.num, seed=seed)
    return sets


def whole_or_some(table: "Table", num_wanted: int, *, seed: int) -> HeldOut:
    """At most `num_wanted` problems (0 is all); a prompt left out of them may be measured by the next run."""
    some = 0 < num_wanted < len(table.good)
    positions = choose(table.prompts, num_wanted, seed=seed) if some else np.arange(len(table.good))
    return HeldOut(list(table.problems(positions)), table.prompts, table.num_skipped, table.first_skipped)


def first_problem(cfg: DataConfig, *, seed: int) -> Problem:
    """The first row that is a problem, read before anything expensive is done: the file is there and fits."""
    return first_of(read_rows(path_of(cfg), split=cfg.split, seed=seed, options=cfg.options), cfg)


def path_of(cfg: DataConfig) -> str:
    """Where the rows are; ConfigError when nothing says so."""
    if not cfg.path:
        raise ConfigError("data.path is empty: expected a file, a hub id or a maker. Set data.path.")
    return cfg.path


def first_of(rows: Rows, cfg: DataConfig) -> Problem:
    """The first row that is a problem; what comes of a malformed one before it is `on_bad_row`'s affair."""
    for index in range(len(rows)):
        try:
            return to_problem(rows.row(index), cfg.columns)
        except BadRow as error:
            if cfg.on_bad_row == "stop":
                report = f"{rows.place(index)}: {error}".rstrip(".")
                raise ConfigError(f"{report}. Correct it, or set data.on_bad_row = 'skip'.") from error
    raise ConfigError(f"{cfg.path} gives no problems. Expected rows with 'prompt' and 'answer'.")


def sample(cfg: DataConfig, *, seed: int, num: int) -> list[Problem]:
    """`num` problems drawn from all over the rows of `path`, the first among them; all if there are fewer.

    Malformed rows are passed over, as `load` is there to report them; ConfigError as `first_problem`.
    """
    rows = read_rows(path_of(cfg), split=cfg.split, seed=seed, options=cfg.options)
    first = first_of(rows, cfg)
    order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    problems, ids = [first], {first.id}
    for index in order:
        if len(problems) == num:
            break
        try:
            problem = to_problem(rows.row(int(index)), cfg.columns)
        except BadRow:
            continue
        if problem.id not in ids:
            ids.add(problem.id)
            problems.append(problem)
    return problems


def choose(prompts: NDArray[np.uint64], num_wanted: int, *, seed: int) -> NDArray[np.int64]:
    """Positions, in order, of one row each of `num_wanted` prompts: those with the smallest seeded hash."""
    if num_wanted == 0:
        return np.zeros(0, np.int64)
    different, first = np.unique(prompts, return_index=True)
    rank = [digest([seed, int(prompt)]) for prompt in different]
    chosen = sorted(range(len(different)), key=rank.__getitem__)[:num_wanted]
    return np.sort(first[chosen]).astype(np.int64)


# Row -> problem --------------------------------------------------------------------------------------------


def to_problem(row: Mapping[str, Any], columns: Mapping[str, str]) -> Problem:
    """Name the columns, check the row; without an id of its own it is called by a hash of its content."""
    values = dict(row)
    for ours, theirs in columns.items():
        if theirs not in row:
            raise BadRow(missing(theirs, row, f"data.columns says it is the {ours}; correct that"))
        values.pop(theirs, None)
    values |= {ours: row[theirs] for ours, theirs in columns.items()}
    if "prompt" not in values:
        raise BadRow(missing("prompt", row, 'name it with data.columns = {prompt = "..."}'))
    prompt = check_prompt(values.pop("prompt"))
    if not is_unicode(prompt):
        raise BadRow("has a prompt with half a surrogate pair, which no tokenizer takes")
    answer = None
    named = next((name for name in ANSWER_COLUMNS if values.get(name) is not None), None)
    if named is not None:
        answer = values.pop(named)
    elif any(name in values for name in ANSWER_COLUMNS):
        raise BadRow("has an empty answer")
    elif not any(name in values for name in (*CHECK_COLUMNS, "meta")):
        raise BadRow(missing("answer", row, 'name it with data.columns = {answer = "..."}'))
    if isinstance(answer, str) and not answer.strip():
        raise BadRow("has an empty answer")
    nested = values.pop("meta", None)
    meta = {**values, **nested} if isinstance(nested, Mapping) else values
    given = next((str(values[name]) for name in ID_COLUMNS if values.get(name) is not None), "")
    return Problem(given or f"{digest([prompt, answer, meta]):016x}", prompt, answer, meta)


def missing(column: str, row: Mapping[str, Any], remedy: str) -> str:
    """Say that a column is not there, which are, and what to do."""
    names = [str(name) for name in row]
    close = difflib.get_close_matches(column, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"has no column {column!r}; it has {', '.join(names) or 'none'}; {hint}{remedy}"


def check_prompt(prompt: Any) -> str | list[dict[str, Any]]:
    """Text that is not blank, or messages that end with something to reply to."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadRow("has an empty prompt")
        return prompt
    if not isinstance(prompt, list | tuple) or not prompt:
        raise BadRow(f"has a prompt that is {prompt!r:.60}, expected text or a list of messages")
    for number, message in enumerate(prompt, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRow(
                f"has a prompt whose message {number} is {message!r:.60}, expected {{role, content}}"
            )
        if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            raise BadRow(f"has a prompt whose message {number} ({message['role']}) has no content")
    last = prompt[-1]
    if last["role"] == "assistant" or not last.get("content"):
        raise BadRow(f"has a prompt that ends with {last['role']!r} and nothing to reply to")
    # Arrow gives every message the keys of all, as None where it has none of its own
    return [{k: v for k, v in m.items() if v is not None or k == "content"} for m in prompt]


def normalised(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """The prompt without spacing, case, Unicode form and system message: none makes it another one."""
    if not isinstance(prompt, str):
        turns = [m.get("content") or m.get("tool_calls") for m in prompt if m["role"] != "system"]
        prompt = "\n".join(turn if isinstance(turn, str) else canonical(turn) for turn in turns)
    return "".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def is_unicode(prompt: str | Sequence[Mapping[str, Any]]) -> bool:
    """Whether it can be written as UTF-8; JSON's `\\ud800` alone cannot."""
    try:
        (prompt if isinstance(prompt, str) else canonical(prompt)).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def canonical(value: Any) -> str:
    """The same text for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def digest(value: Any) -> int:
    """64 bits of a hash: two of a million values are alike with probability 3e-8."""
    text = canonical(value).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


# Problems --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """The good rows of a source."""

    rows: Rows
    columns: Mapping[str, str]
    good: NDArray[np.int64]  # [P] which rows
    prompts: NDArray[np.uint64]  # [P] digests of the normalised prompts
    contents: NDArray[np.uint64]  # [P] digests of the problems
    repeats: Mapping[int, str]  # row -> the id it has because another had that id before
    num_skipped: int
    first_skipped: str

    def problems(self, positions: NDArray[np.int64]) -> "Problems":
        """Those of the good rows, in this order."""
        return Problems(self, positions)


class Problems(Sequence[Problem]):
    """Problems read from their rows when asked for."""

    def __init__(self, table: Table, positions: NDArray[np.int64]) -> None:
        self._table = table
        self._rows = table.good[positions]  # [P]
        self.fingerprint = hash_of_all(table.contents[positions])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self._rows[index])
        problem = to_problem(self._table.rows.row(row), self._table.columns)
        if row in self._table.repeats:
            return Problem(self._table.repeats[row], problem.prompt, problem.answer, problem.meta)
        return problem


def scan_path(cfg: DataConfig, *, seed: int, accept: Accept | None) -> Table:
    """The good rows of `path`."""
    rows = read_rows(cfg.path, split=cfg.split, seed=seed, options=cfg.options)
    return scan(rows, cfg.columns, cfg.on_bad_row, name=cfg.path, accept=accept)


def scan(
    rows: Rows, columns: Mapping[str, str], on_bad_row: str, *, name: str, accept: Accept | None
) -> Table:
    """Check every row once, keeping only digests."""
    good, prompts, contents, num_skipped, first_bad = [], [], [], 0, ""
    seen: Counter[str] = Counter()
    repeats: dict[int, str] = {}
    for index in range(len(rows)):
        try:
            problem = to_problem(rows.row(index), columns)
            if accept is not None and (reason := accept(problem)) is not None:
                raise BadRow(reason)
        except BadRow as error:
            report = f"{rows.place(index)}: {error}".rstrip(".")
            if on_bad_row == "stop":
                raise ConfigError(f"{report}. Correct it, or set data.on_bad_row = 'skip'.") from error
            num_skipped += 1
            first_bad = first_bad or report
            continue
        name = problem.id
        while name in seen:  # a row may itself be called what a repeat was
            seen[problem.id] += 1
            name = repeats[index] = f"{problem.id}#{seen[problem.id]}"
        seen[name] = 1
        good.append(index)
        prompts.append(digest(normalised(problem.prompt)))
        contents.append(digest_of(problem, repeats.get(index, problem.id)))
    if not good:
        why = (
            f"all {num_skipped} rows are malformed; the first: {first_bad}"
            if num_skipped
            else "it has no rows"
        )
        raise ConfigError(f"{name} gives no problems: {why}. Expected rows with 'prompt' and 'answer'.")
    return Table(
        rows=rows,
        columns=columns,
        good=np.array(good, np.int64),
        prompts=np.array(prompts, np.uint64),
        contents=np.array(contents, np.uint64),
        repeats=repeats,
        num_skipped=num_skipped,
        first_skipped=first_bad,
    )


def fingerprint_of(problems: Sequence[Problem]) -> str:
    """Of these problems in this order."""
    if isinstance(problems, Problems):
        return problems.fingerprint
    return hash_of_all(np.array([digest_of(p, p.id) for p in problems], np.uint64))


def digest_of(problem: Problem, name: str) -> int:
    """Of all that a problem holds, called `name`."""
    return digest([name, problem.prompt, problem.answer, dict(problem.meta)])


def hash_of_all(contents: NDArray[np.uint64]) -> str:
    """One hash of a sequence of digests."""
    return hashlib.blake2b(contents.astype("<u8").tobytes(), digest_size=8).hexdigest()


class ProblemStream(Epochs[Problem], Iterator[Problem]):
    """Problems without end."""

    def __init__(self, problems: Sequence[Problem], *, seed: int, shuffle: bool) -> None:
        if not problems:
            raise ConfigError("no problems to draw from. Bring data with at least one.")
        super().__init__(problems, seed=seed, shuffle=shuffle, fingerprint=fingerprint_of(problems))

    def __next__(self) -> Problem:
        return self.draw()

    def observe(self, groups: Sequence["VerifiedGroup"]) -> None:
        """What came of the problems; a plain stream does not mind."""

    def metrics(self) -> dict[str, float]:
        """Nothing to tell; a curriculum has more."""
        return {}
