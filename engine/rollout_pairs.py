"""A run's recorded rollouts -> rows of preference data: right against wrong, or single answers labelled so.

Undecided rollouts are never used, nor are those cut off at their longest: they have no end to learn.
"""

import heapq
import math
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from verigrad.engine.config import ConfigError, DataConfig, PromptsConfig
from verigrad.engine.data import canonical, digest
from verigrad.engine.rollout_file import Recorded, read_attempts
from verigrad.engine.rows import TableRows, first_line
from verigrad.engine.settings import EvalSet, MixSet
from verigrad.verifiers.base import Problem

NEEDED = frozenset({"problem_id", "prompt", "text", "reward", "outcome", "finish_reason"})
TOLD = {"undecided": "undecided", "cut": "cut off at their longest", "empty": "empty", "episode": "episodes"}


def is_run(path: str) -> bool:
    """Whether data.path is a run folder, its folder of rollouts, or rollouts `RUN/rollouts/*.parquet`."""
    place = Path(path).expanduser()
    if place.is_dir():
        return (place / "rollouts").is_dir() or any(place.glob("step_*.parquet"))
    return place.suffix == ".parquet" and place.parent.name == "rollouts"


def require_run(data: DataConfig, most: int, *, setting: str) -> None:
    """Raise ConfigError for a number of pairs per problem where no source of rows is a run."""
    named: list[MixSet | EvalSet] = [*data.mix.values(), *data.evals.values()]
    paths = [data.path, data.eval_path, *(one.path for one in named)]
    if most != 1 and not any(path and is_run(path) for path in paths):
        raise ConfigError(
            f"{setting} = {most} has no effect: data.path = {data.path!r} is no run folder, whose rollouts "
            "it is for; remove it, or name a run of `verigrad train`"
        )


def files_of(path: str) -> list[Path]:
    """The Parquet files of a run, in the order of its steps; ConfigError where there are none."""
    place = Path(path).expanduser()
    if place.is_dir():
        folder = place / "rollouts" if (place / "rollouts").is_dir() else place
        files = sorted(folder.glob("step_*.parquet"))
    else:
        files = sorted(place.parent.glob(place.name))
    if not files:
        raise ConfigError(
            f"data.path = {path!r} holds no rollouts (step_*.parquet). Expected a run folder of "
            "`verigrad train` that has done a step; name another, or rows in a file."
        )
    for file in files:
        require_rollouts(file)
    return files


def require_rollouts(file: Path) -> None:
    """Raise ConfigError for a file that is not one of recorded rollouts."""
    try:
        lacking = NEEDED - set(pq.read_schema(file).names)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as Parquet: {first_line(error)}. Remove it.") from error
    if lacking:
        raise ConfigError(f"{file} holds no rollouts: it has no column {min(lacking)!r}. Name a run's.")


def require_same_prompts(path: str, prompts: PromptsConfig) -> None:
    """Raise ConfigError where the run asked in other words than this recipe would learn to answer."""
    place = Path(path).expanduser()
    found = next((f for f in (place, *list(place.parents)[:2]) if (f / "config.toml").is_file()), None)
    if found is None:
        return
    recorded = tomllib.loads((found / "config.toml").read_text(encoding="utf-8")).get("prompts", {})
    for name, ours in prompts.model_dump(mode="json").items():
        theirs = recorded.get(name, ours)
        if theirs != ours:
            raise ConfigError(
                f"the rollouts of {found} were sampled with prompts.{name} = {theirs!r}, and this recipe has "
                f"{ours!r}, so it would learn answers to other prompts. Set prompts.{name} = {theirs!r}."
            )


class RunRows(TableRows):
    """Rows made of a run's rollouts, and what became of all of them."""

    def __init__(self, name: str, table: Sequence[Mapping[str, Any]], told: str) -> None:
        super().__init__(name, table)
        self.told = told


def pairs_of_run(path: str, *, most: int, seed: int, opening: str = "") -> RunRows:
    """At most `most` rows `{"prompt", "chosen", "rejected"}` per problem, over all steps of the run.

    `opening` is what the prompt already begins the answer with (a prefill), which is recorded as part of it.
    """
    problems, counts = _collect(path, most=most, seed=seed, opening=opening)
    rows: list[Mapping[str, Any]] = []
    for one in problems:
        right, wrong = one.answers()
        rows += [
            {"prompt": one.problem.prompt, "chosen": good, "rejected": bad, "problem_id": one.problem.id}
            for good, bad in _matched(right, wrong, most)
        ]
    num = len({row["problem_id"] for row in rows})
    if not rows:
        raise ConfigError(
            f"{path} gives no pairs: of its {len(problems)} problems none has both a right answer "
            f"and a wrong one{_left_out(counts)}. Bring a run of harder or easier problems."
        )
    return RunRows(path, rows, f"{len(rows)} pairs of {num} problems{_left_out(counts)}")


def answers_of_run(path: str, *, most: int, seed: int, opening: str = "") -> RunRows:
    """At most `most` right and `most` wrong rows `{"prompt", "completion", "label"}` per problem."""
    problems, counts = _collect(path, most=most, seed=seed, opening=opening)
    rows: list[Mapping[str, Any]] = [
        {"prompt": one.problem.prompt, "completion": text, "label": good, "problem_id": one.problem.id}
        for one in problems
        for good, texts in zip((True, False), one.answers(), strict=True)
        for text in texts
    ]
    if not rows:
        raise ConfigError(f"{path} gives no answers{_left_out(counts)}. Bring a run with verdicts.")
    num_good = sum(row["label"] for row in rows)
    told = f"{num_good} right and {len(rows) - num_good} wrong answers to {len(problems)} problems"
    return RunRows(path, rows, told + _left_out(counts))


# Choosing --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Asked:
    """A problem and the few answers of each kind that are kept of it: those with the smallest seeded hash."""

    problem: Problem
    right: list[tuple[int, str]] = field(default_factory=list)  # heap of (-hash, text)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    judged: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))  # hashes: wrong, right

    def add(self, text: str, number: int, *, good: bool, most: int) -> None:
        """Take an answer up, unless it is there already or `most` have smaller hashes."""
        heap = self.right if good else self.wrong
        entry = (-number, text)
        if entry in heap:
            return
        heapq.heappush(heap, entry)
        if len(heap) > most:
            heapq.heappop(heap)

    def answers(self) -> tuple[list[str], list[str]]:
        """(right, wrong) texts, smallest hash first."""
        right, wrong = ([text for _, text in sorted(heap, reverse=True)] for heap in (self.right, self.wrong))
        return right, wrong


def _collect(path: str, *, most: int, seed: int, opening: str) -> tuple[list[_Asked], Counter[str]]:
    """Every problem with what is kept of it, and what was left out; an answer judged both ways is neither."""
    doubtful: set[int] = set()
    found = _gather(path, doubtful, most=most, seed=seed, opening=opening)
    for one in found[0]:
        doubtful |= one.judged[0] & one.judged[1]
    return _gather(path, doubtful, most=most, seed=seed, opening=opening) if doubtful else found


def _gather(
    path: str, doubtful: set[int], *, most: int, seed: int, opening: str
) -> tuple[list[_Asked], Counter[str]]:
    problems: dict[str, _Asked] = {}
    counts: Counter[str] = Counter()
    for file in files_of(path):
        for one in read_attempts(file):
            text = one.attempt.text.removeprefix(opening)
            if why := _unusable(one, text):
                counts[why] += 1
                continue
            key = canonical([one.problem.id, one.problem.prompt])
            asked = problems.setdefault(key, _Asked(one.problem))
            number = digest([seed, one.problem.id, text])
            good = one.verdict.outcome == "right"
            asked.judged[good].add(number)
            if number not in doubtful:
                asked.add(text, number, good=good, most=most)
    return list(problems.values()), counts


def _unusable(one: Recorded, text: str) -> str | None:
    """Why this rollout teaches nothing, by the names of TOLD."""
    if not one.verdict.decided:
        return "undecided"
    if one.episode is not None:
        return "episode"
    if one.attempt.truncated:
        return "cut"
    return None if text.strip() else "empty"


def _matched(right: Sequence[str], wrong: Sequence[str], most: int) -> Iterator[tuple[str, str]]:
    """Up to `most` different pairs, each answer used as often as the others of its kind, give or take one."""
    if not right or not wrong:
        return
    around = math.lcm(len(right), len(wrong))
    for number in range(min(most, len(right) * len(wrong))):
        yield right[number % len(right)], wrong[(number + number // around) % len(wrong)]


def _left_out(counts: Mapping[str, int]) -> str:
    told = [f"{counts[name]} {says}" for name, says in TOLD.items() if counts.get(name)]
    return f" (left out: {', '.join(told)})" if told else ""
