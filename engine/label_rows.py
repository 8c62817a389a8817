"""Rows, a constitution, a rubric -> prompts to label, with the answers that they bring."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.data import ID_COLUMNS, check_prompt, digest, is_unicode, missing, path_of
from verigrad.engine.label_settings import file_of
from verigrad.engine.rows import BadRow, read_rows
from verigrad.verifiers import rubric_criteria
from verigrad.verifiers.judge_prompts import GENERAL
from verigrad.verifiers.rubric_criteria import Criterion

Messages = list[dict[str, Any]]
MAX_PRINCIPLES = 1000


@dataclass(frozen=True, slots=True)
class Item:
    """One row to be labelled."""

    index: int  # among those labelled, from 0
    id: str
    prompt: str | Messages
    answers: tuple[str, ...] | None  # None: to be sampled
    chosen: str | None = None  # what the row itself says is better
    criteria: tuple[Criterion, ...] = ()  # of the row's own rubric

    @property
    def request(self) -> str:
        """The prompt as the judge reads it."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) == 1:
            return text_of(self.prompt[0])
        return "\n\n".join(f"{message['role']}: {text_of(message)}" for message in self.prompt)


@dataclass(frozen=True, slots=True)
class ToLabel:
    """All that the rows and files say."""

    items: Sequence[Item]
    principles: tuple[str, ...]
    criteria: tuple[Criterion, ...]  # of label.rubric
    preface: str  # label.few_shot
    fingerprint: str
    num_skipped: int
    first_skipped: str


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, of its text parts where it has several."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content or () if isinstance(part, Mapping))


def read(cfg: Config) -> ToLabel:
    """Every row to label, in the order in which training would draw them; ConfigError for what cannot be."""
    path = path_of(cfg.data)
    rows = read_rows(path, split=cfg.data.split, seed=cfg.train.seed, options=cfg.data.options)
    order = np.arange(len(rows))
    if cfg.data.shuffle:
        order = np.random.default_rng([cfg.train.seed, 0]).permutation(order)
    items: list[Item] = []
    num_skipped, first_skipped = 0, ""
    for position in order:
        if cfg.label.num_rows and len(items) == cfg.label.num_rows:
            break
        try:
            items.append(to_item(rows.row(int(position)), cfg, len(items)))
        except BadRow as error:
            report = f"{rows.place(int(position))}: {error}".rstrip(".")
            if cfg.data.on_bad_row == "stop":
                raise ConfigError(f"{report}. Correct it, or set data.on_bad_row = 'skip'.") from error
            num_skipped, first_skipped = num_skipped + 1, first_skipped or report
    if len(items) < max(1, cfg.label.num_rows):
        raise ConfigError(
            f"{path} gives {len(items)} rows to label"
            + (f", fewer than label.num_rows = {cfg.label.num_rows}; lower it" if cfg.label.num_rows else "")
            + (f"; {num_skipped} are malformed, the first: {first_skipped}" if num_skipped else "")
        )
    content = [(item.id, item.prompt, item.answers, item.chosen, item.criteria) for item in items]
    files = files_of(cfg)
    fingerprint = hashlib.sha256(repr((content, files)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return ToLabel(items, *files, fingerprint, num_skipped, first_skipped)


def files_of(cfg: Config) -> tuple[tuple[str, ...], tuple[Criterion, ...], str]:
    """Principles, criteria and preface, from the files of [label]."""
    label = cfg.label
    principles = read_constitution(label.constitution) if label.constitution else (GENERAL,)
    criteria: tuple[Criterion, ...] = ()
    if label.rubric:
        try:
            criteria = rubric_criteria.from_file(file_of(label.rubric))
        except ValueError as error:
            raise ConfigError(f"label.rubric: {error}") from error
    preface = read_text(label.few_shot, "label.few_shot") if label.few_shot else ""
    return principles, criteria, preface


def read_constitution(path: str) -> tuple[str, ...]:
    """Principles, one a paragraph; lines that begin with `#` are remarks."""
    lines = [line for line in read_text(path, "label.constitution").splitlines() if not line.startswith("#")]
    paragraphs = [" ".join(part.split()) for part in "\n".join(line.strip() for line in lines).split("\n\n")]
    found = tuple(dict.fromkeys(paragraph for paragraph in paragraphs if paragraph))
    if not 0 < len(found) <= MAX_PRINCIPLES:
        raise ConfigError(
            f"label.constitution = {path!r} holds {len(found)} principles; expected 1 to {MAX_PRINCIPLES}, "
            "paragraphs with an empty line between them"
        )
    return found


def read_text(path: str, setting: str) -> str:
    """What file_of(path) holds; ConfigError names the setting."""
    try:
        return file_of(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting} = {path!r} cannot be read: {error}") from error


def to_item(row: Mapping[str, Any], cfg: Config, index: int) -> Item:
    """Name the columns and check the row."""
    values = dict(row)
    for ours, theirs in cfg.data.columns.items():
        if theirs not in row:
            raise BadRow(missing(theirs, row, f"data.columns says it is the {ours}; correct that"))
        values[ours] = row[theirs]
    if "prompt" not in values:
        raise BadRow(missing("prompt", row, 'name it with data.columns = {prompt = "..."}'))
    prompt = check_prompt(values["prompt"])
    answers, chosen = answers_of(values)
    if not is_unicode(prompt) or not all(map(is_unicode, answers or ())):
        raise BadRow("has text with half a surrogate pair, which no tokenizer takes")
    if cfg.label.task == "prefer" and answers is not None and len(set(answers)) < 2:
        raise BadRow("has fewer than two different answers, of which none can be preferred")
    criteria: tuple[Criterion, ...] = ()
    if cfg.label.task == "rubric" and not cfg.label.rubric:
        if values.get("rubric") is None:
            raise BadRow(missing("rubric", row, "or set label.rubric to a file of criteria for all rows"))
        try:
            criteria = rubric_criteria.read(values["rubric"], where="rubric")
        except ValueError as error:
            raise BadRow(f"has a rubric that cannot be used: {error}") from error
    own = next((str(values[name]) for name in ID_COLUMNS if values.get(name) is not None), "")
    return Item(index, own or f"{digest([prompt, answers]):016x}", prompt, answers, chosen, criteria)


def answers_of(values: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, str | None]:
    """A row's own answers, and which of them it calls the better one."""
    if values.get("responses") is not None:
        given = values["responses"]
        if not isinstance(given, list | tuple) or not given:
            raise BadRow(f"has responses that are {given!r:.60}, expected a list of texts")
        return tuple(answer_of(one, "responses") for one in given), None
    if values.get("chosen") is not None or values.get("rejected") is not None:
        pair = [answer_of(values.get(name), name) for name in ("chosen", "rejected")]
        return tuple(sorted(pair)), pair[0]  # the judge must not learn from the order which was chosen
    if values.get("completion") is not None:
        return (answer_of(values["completion"], "completion"),), None
    return None, None


def answer_of(value: Any, name: str) -> str:
    """An answer: text, or messages of which the last is the assistant's."""
    if isinstance(value, list | tuple) and value and isinstance(value[-1], Mapping):
        value = text_of(value[-1])
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"has a {name} that is {value!r:.60}, expected text that is not empty")
    return value
