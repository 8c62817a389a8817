"""Rows of pairs, rankings or labelled steps -> what a reward model learns from and is measured on.

{"prompt", "chosen", "rejected"}     pairs, as for `verigrad prefer`; p_chosen, a margin, an annotator beside
{"prompt", "chosen": [...], "rejected": [...]}   every chosen one better than every rejected one
{"prompt", "responses", "ranks"?}    rankings, best first; equal ranks are ties
{"prompt", "steps", "labels"}        steps, each right or wrong, or with the probability that it is right
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.engine.config import Config
from verigrad.engine.data import check_prompt, missing
from verigrad.engine.examples import Form, Item
from verigrad.engine.preference_rows import Answer, Prompt, check_answer, require_unicode, to_pair
from verigrad.engine.reward_text import Text, TextEncoder
from verigrad.engine.reward_votes import VotedRows
from verigrad.engine.rollout_pairs import RunRows, is_run, pairs_of_run
from verigrad.engine.rows import BadRow, Rows, read_rows
from verigrad.engine.sft_rows import renamed

EXPECTED = {
    "pairs": "rows with 'prompt', 'chosen' and 'rejected', or 'prompt' and 'responses'",
    "steps": "rows with 'prompt', 'steps' and 'labels'",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two or more answers, best first."""

    prompts: Sequence[Prompt]  # [K] what each was said to
    answers: Sequence[str]  # [K]
    texts: Sequence[Text]  # [K]
    ranks: Sequence[int]  # [K] 0 is best; equal ones are ties
    p_chosen: float = 1.0  # of a pair: probability that the first is the better one, at least 0.5
    margin: float = 0.0  # of a pair: by how much
    best_of: bool = False  # right only if every one of rank 0 beats all others
    category: str = ""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) positions of all answers that are not tied; of a tied pair both."""
        if len(self.texts) == 2:
            return [(0, 1)]
        places = range(len(self.ranks))
        return [(i, j) for i in places for j in places if self.ranks[i] < self.ranks[j]]


@dataclass(frozen=True, slots=True)
class LabelledSteps:
    """One answer in steps."""

    prompt: Prompt
    steps: Sequence[str]
    text: Text
    labels: Sequence[float]  # [N] probability that each step is right
    category: str = ""


@dataclass(frozen=True, slots=True)
class Plain:
    """What a row of answers says, before a tokenizer has seen it."""

    prompt: Prompt
    answers: Sequence[Answer]
    ranks: Sequence[int]
    p_chosen: float = 1.0
    margin: float = 0.0
    best_of: bool = False


def to_plain(row: Mapping[str, Any], columns: Mapping[str, str], *, margin_column: str = "") -> Plain:
    """Check a row of answers; BadRow for a malformed one. The more probable of a pair comes first."""
    values = renamed(row, columns)
    if values.get("responses") is not None:
        return _ranking(values, row, margin_column)
    sides = [values.get("chosen"), values.get("rejected")]
    if any(_is_list_of_texts(side) for side in sides):
        return _sides(values, row, margin_column)
    pair = to_pair(row, columns, margin_column=margin_column)
    answers, p, margin = [pair.chosen, pair.rejected], pair.p_chosen, pair.margin or 0.0
    if p < 0.5:
        answers, p, margin = answers[::-1], 1 - p, -margin
    return Plain(pair.prompt, answers, [0, 0] if p == 0.5 else [0, 1], p, margin)


def _ranking(values: Mapping[str, Any], row: Mapping[str, Any], margin_column: str) -> Plain:
    if margin_column:
        raise BadRow(f"is a ranking, and reward.margin_column = {margin_column!r} is for pairs; remove it")
    if values.get("prompt") is None:
        raise BadRow(missing("prompt", row, 'name it with data.columns = {prompt = "..."}'))
    given = values["responses"]
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise BadRow(f"has responses that are {given!r:.60}, expected a list of at least two answers")
    prompt, answers = check_prompt(values["prompt"]), [check_answer(each, "ranked") for each in given]
    require_unicode(prompt, *answers)
    ranks = values.get("ranks")
    if ranks is None:
        ranks = list(range(len(answers)))
    if not isinstance(ranks, list | tuple) or len(ranks) != len(answers) or not all(map(_is_number, ranks)):
        raise BadRow(
            f"has ranks that are {ranks!r:.60}, expected a number for each of {len(answers)} responses"
        )
    levels = sorted(set(ranks))
    if len(levels) < 2:
        raise BadRow("has equal ranks for all its responses, which prefers nothing")
    dense = [levels.index(rank) for rank in ranks]
    by_answer: dict[str, int] = {}
    for answer, rank in zip(answers, dense, strict=True):
        if by_answer.setdefault(repr(answer), rank) != rank:
            raise BadRow("has one response at two ranks; keep one of them")
    order = sorted(range(len(answers)), key=dense.__getitem__)
    return Plain(prompt, [answers[i] for i in order], [dense[i] for i in order])


def _sides(values: Mapping[str, Any], row: Mapping[str, Any], margin_column: str) -> Plain:
    """Lists of answers in `chosen` and `rejected`, as RewardBench 2 has them."""
    if margin_column:
        raise BadRow(
            f"is best of several, and reward.margin_column = {margin_column!r} is for pairs; remove it"
        )
    sides = []
    for name in ("chosen", "rejected"):
        if values.get(name) is None:
            raise BadRow(missing(name, row, f'name it with data.columns = {{{name} = "..."}}'))
        side = values[name]
        given = [side] if isinstance(side, str) or not _is_list_of_texts(side) else list(side)
        sides.append([check_answer(each, name) for each in given])
    if values.get("prompt") is None:
        raise BadRow(missing("prompt", row, 'name it with data.columns = {prompt = "..."}'))
    prompt = check_prompt(values["prompt"])
    chosen, rejected = sides
    require_unicode(prompt, *chosen, *rejected)
    if {repr(each) for each in chosen} & {repr(each) for each in rejected}:
        raise BadRow("has a chosen answer that is a rejected one, too, which prefers nothing")
    return Plain(prompt, [*chosen, *rejected], [0] * len(chosen) + [1] * len(rejected), best_of=True)


def to_steps(
    row: Mapping[str, Any], columns: Mapping[str, str], *, separator: str
) -> tuple[Prompt, list[str], list[float]]:
    """Prompt, steps and labels of a row; BadRow for a malformed one."""
    values = renamed(row, columns)
    for name in ("prompt", "steps", "labels"):
        if values.get(name) is None:
            raise BadRow(missing(name, row, f'name it with data.columns = {{{name} = "..."}}'))
    prompt, steps, labels = check_prompt(values["prompt"]), values["steps"], values["labels"]
    if not isinstance(steps, list | tuple) or not steps or not all(isinstance(step, str) for step in steps):
        raise BadRow(f"has steps that are {steps!r:.60}, expected a list of texts")
    if not isinstance(labels, list | tuple) or len(labels) != len(steps):
        raise BadRow(f"has labels that are {labels!r:.60}, expected one for each of {len(steps)} steps")
    for label in labels:
        if not (isinstance(label, bool) or _is_number(label)) or not 0 <= label <= 1:
            raise BadRow(f"has a label {label!r:.60}, expected true, false or a probability from 0 to 1")
    require_unicode(prompt, *steps)
    for number, step in enumerate(steps, 1):
        body = step.removesuffix(separator)
        if not body.strip():
            raise BadRow(f"has an empty step {number}")
        if separator in body:
            raise BadRow(
                f"has reward.step_separator = {separator!r} within step {number}, where an answer would be "
                "cut; cut the step there, or choose another separator"
            )
    return prompt, list(steps), [float(label) for label in labels]


def _is_list_of_texts(side: Any) -> bool:
    return isinstance(side, list | tuple) and bool(side) and isinstance(side[0], str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Rows -> examples -------------------------------------------------------------------------------------------


def comparisons(cfg: Config, encoder: TextEncoder) -> Form[Comparison]:
    """How rows become comparisons, annotators' votes about the same answers taken as reward.votes says."""
    reward, budget = cfg.reward, cfg.policy.tokens_per_batch

    def read(row: Mapping[str, Any], columns: Mapping[str, str]) -> Item[Comparison]:
        plain = to_plain(row, columns, margin_column=reward.margin_column)
        asked, said = zip(*(_flat(plain.prompt, answer) for answer in plain.answers), strict=True)
        texts = [encoder.answer(prompt, text) for prompt, text in zip(asked, said, strict=True)]
        num_tokens = sum(len(text.token_ids) for text in texts)
        if num_tokens > budget:
            raise BadRow(
                f"has {num_tokens} tokens in all its answers, more than policy.tokens_per_batch = {budget}. "
                "Raise it, or leave the row out"
            )
        comparison = Comparison(
            asked, said, texts, plain.ranks, plain.p_chosen, plain.margin, plain.best_of,
            category=_category(row, cfg.eval.by),
        )  # fmt: skip
        content = [plain.prompt, plain.answers, plain.ranks, plain.p_chosen, plain.margin]
        longest = max(len(text.token_ids) for text in texts)
        return Item(plain.prompt, content, [comparison], longest)

    def open_rows(path: str, *, split: str, seed: int, options: Mapping[str, Any]) -> Rows:
        if is_run(path):
            return pairs_of_run(path, most=reward.pairs_per_problem, seed=seed)
        return read_rows(path, split=split, seed=seed, options=options)

    def merged(rows: Rows, columns: Mapping[str, str]) -> Rows:
        if reward.votes == "each" or isinstance(rows, RunRows):
            return rows
        return VotedRows(rows, columns, how=reward.votes, margin_column=reward.margin_column)

    return Form(read, EXPECTED["pairs"], open_rows, merged=merged)


def labelled_steps(cfg: Config, encoder: TextEncoder) -> Form[LabelledSteps]:
    """How rows become labelled steps."""

    def read(row: Mapping[str, Any], columns: Mapping[str, str]) -> Item[LabelledSteps]:
        prompt, steps, labels = to_steps(row, columns, separator=cfg.reward.step_separator)
        text = encoder.steps(prompt, steps)
        example = LabelledSteps(prompt, steps, text, labels, _category(row, cfg.eval.by))
        return Item(prompt, [prompt, steps, labels], [example], len(text.token_ids))

    return Form(read, EXPECTED["steps"])


def check_row(cfg: Config) -> Any:
    """What looks at one row without a tokenizer; raises BadRow."""
    if cfg.reward.kind == "steps":
        separator = cfg.reward.step_separator
        return lambda row, columns: to_steps(row, columns, separator=separator)
    return lambda row, columns: to_plain(row, columns, margin_column=cfg.reward.margin_column)


def _flat(prompt: Prompt, answer: Answer) -> tuple[Prompt, str]:
    """An answer of several messages as its last one, what comes before it as part of the prompt."""
    if isinstance(answer, str):
        return prompt, answer
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*asked, *answer[:-1]], answer[-1]["content"]


def _category(row: Mapping[str, Any], by: str) -> str:
    return str(row[by]) if by and row.get(by) is not None else ""
