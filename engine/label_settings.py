"""What cannot be in the recipe of `verigrad label`, one sentence each; no torch."""

from collections.abc import Iterator
from pathlib import Path

from verigrad.engine.settings import Config

OF_ENDPOINTS = (
    "api", "api_key_env", "logprobs", "concurrency", "requests_per_minute", "retries", "timeout_s",
    "price_in", "price_out", "max_cost",
)  # fmt: skip
OF_LOCAL = ("options", "max_prompt_tokens")
OF_PAIRS = {"swap", "min_agreement"}
CONSTITUTION, RUBRIC, FEW_SHOT = "constitution.txt", "rubric.toml", "few_shot.txt"
"""Copies in the run folder of what the judge goes by."""


def contradictions(c: Config) -> Iterator[str]:
    """Settings without effect, and files that are not there."""
    judge, label = c.judge, c.label
    if not judge.model:
        there = "judge.url is set: name the model there" if judge.url else "set a folder, hub id or maker"
        yield f"judge.model is empty; {there}"
    where = "with judge.url" if judge.url else "without judge.url"
    for name in OF_LOCAL if judge.url else OF_ENDPOINTS:
        if name in judge.model_fields_set and getattr(judge, name) != type(judge).model_fields[name].default:
            yield f"judge.{name} has no effect {where}; remove it"
    if judge.options and ":" not in judge.model:
        yield f"judge.options are for makers, and judge.model = {judge.model!r} is none; remove them"
    if judge.max_cost and not (judge.price_in or judge.price_out):
        yield "judge.max_cost has no effect without judge.price_in or judge.price_out; set one of them"
    chosen = {
        name
        for name in type(judge).model_fields
        if getattr(judge, name) != type(judge).model_fields[name].default
    }
    if label.task != "prefer":
        for name in sorted(OF_PAIRS & chosen):
            yield f"judge.{name} has no effect with label.task = {label.task!r}; remove it"
        if label.keep_ties:
            yield f"label.keep_ties has no effect with label.task = {label.task!r}; remove it"
    elif "min_agreement" in chosen and not judge.swap:
        yield "judge.min_agreement has no effect with judge.swap = false; remove it"
    yield from _of_task(c)
    for name in ("constitution", "rubric", "few_shot"):
        path = getattr(label, name)
        if path and not file_of(path).is_file():
            yield f"label.{name} = {path!r}: no such file (looked from {Path.cwd()}); correct the path"


def _of_task(c: Config) -> Iterator[str]:
    label = c.label
    if label.task == "revise":
        if not label.constitution:
            yield "label.task = 'revise' needs principles; set label.constitution to a file of them"
        if c.judge.reason:
            yield "judge.reason has no effect with label.task = 'revise', which writes critiques; remove it"
    elif label.revisions > 1:
        yield f"label.revisions has no effect with label.task = {label.task!r}; remove it"
    if label.task == "rubric" and label.constitution:
        yield "label.constitution has no effect with label.task = 'rubric'; use label.rubric"
    if label.task != "rubric" and label.rubric:
        yield f"label.rubric has no effect with label.task = {label.task!r}; remove it"
    if label.task == "prefer" and label.num_samples < 2:
        yield "label.num_samples = 1 gives no pair to choose from; set 2 or more"
    if label.task == "revise" and label.num_samples not in (
        1,
        type(label).model_fields["num_samples"].default,
    ):
        yield "label.num_samples has no effect with label.task = 'revise', which samples 1; remove it"


def file_of(path: str) -> Path:
    """The user's own file, or else one that comes with the recipes."""
    own = Path(path).expanduser()
    return own if own.is_file() else shipped(path)


def shipped(path: str) -> Path:
    """A file that comes with the recipes, by its name alone."""
    name = Path(path)
    return Path(__file__).parent / "recipes" / name.name if name.name == path else name
