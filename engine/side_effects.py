"""Results of two or more models on a suite -> what training did besides what it was for, with 95% intervals.

The first model is what the others are compared with, problem by problem. docs/side-effects.md says how to
read the table.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verigrad.engine.eval_report import PIPED_WIDTH, Result, finite
from verigrad.engine.evaluation import avg_score
from verigrad.engine.intervals import Interval, Paired, mean_interval, paired_difference
from verigrad.engine.schema import VerifiedGroup
from verigrad.engine.suite import PAIR, Suite
from verigrad.engine.win_rate import WinRate, win_rate

ALPHA = 0.05
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Effect:
    """One measure of one later model against the first."""

    name: str  # of the set, or what was derived of it
    says: str
    before: Interval  # of the first model
    after: Interval
    num_problems: int  # that both were scored on
    paired: Paired
    better: str  # which way the score should go: higher, lower or neither
    models: tuple[str, str]  # labels
    p_holm: float = math.nan  # P held against all measures of the table (Holm 1979)

    @property
    def reading(self) -> str:
        """What the change means: better, worse or changed, if chance does not explain it."""
        if not self.p_holm < ALPHA or not self.paired.gain:
            return "no change seen"
        if self.better == "neither":
            return "changed"
        return "better" if (self.paired.gain > 0) == (self.better == "higher") else "WORSE"


@dataclass(frozen=True, slots=True)
class SideEffects:
    """The whole table."""

    effects: Sequence[Effect]
    wins: Mapping[str, WinRate] = field(default_factory=dict)  # by set and model
    how: str = ""  # answers were sampled

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        rows = [{**asdict(one), "reading": one.reading, "models": list(one.models)} for one in self.effects]
        return {
            "side_effects": [finite({**row, "paired": finite(row["paired"])}) for row in rows],
            "wins": {name: finite(asdict(rate)) for name, rate in self.wins.items()},
            "how": self.how,
        }


def side_effects(results: Sequence[Result], suite: Suite) -> SideEffects:
    """Every measure of the suite; models that were not scored on a set have none of it."""
    effects: list[Effect] = []
    wins: dict[str, WinRate] = {}
    for name, one in suite.sets.items():
        some = [result for result in results if result.row["data"] == name]
        for after in some[1:]:
            models = (some[0].label, after.label)
            scores = (scores_of(some[0].groups), scores_of(after.groups))
            effects += effect(name, one.says, scores, one.better, models)
            if one.pairs:
                drops = (drops_of(some[0].groups, one.pairs), drops_of(after.groups, one.pairs))
                lower = "lower" if one.better == "higher" else "neither"
                says = f"loss of {name} when the question is disturbed"
                effects += effect(f"{name}: drop", says, drops, lower, models)
                flips = (flips_of(some[0].groups, one.pairs), flips_of(after.groups, one.pairs))
                says = "plain answer right, disturbed one not: share of the right ones"
                effects += effect(f"{name}: flips", says, flips, lower, models)
            if one.wins and (rate := win_rate(some[0].groups, after.groups)) is not None:
                wins[f"{name}: {after.label} against {some[0].label}"] = rate
    return SideEffects(held_against_each_other(effects), wins, sampled(results))


def sampled(results: Sequence[Result]) -> str:
    """How the answers were sampled, in one line; where models or sets differ, all that was used."""

    def used(key: str) -> str:
        values = dict.fromkeys(result.used[key] for result in results if key in result.used)
        return " or ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)

    says = {"temperature": "temperature {}", "num_samples": "{} answers to each problem",
            "max_tokens": "at most {} tokens each", "prompts": "prompt template {}", 
            "sampler": "sampler {}"}  # fmt: skip
    told = [text.format(used(key)) for key, text in says.items() if used(key)]
    return ", ".join(told).replace(" 1 answers", " 1 answer")


def effect(
    name: str,
    says: str,
    scores: tuple[Mapping[str, float], Mapping[str, float]],
    better: str,
    models: tuple[str, str],
) -> Iterator[Effect]:
    """The measure, if at least two problems were scored for both."""
    both = [key for key in scores[0] if key in scores[1]]
    if len(both) < 2:
        return
    before, after = [scores[0][key] for key in both], [scores[1][key] for key in both]
    yield Effect(
        name,
        says,
        mean_interval([[value] for value in before]),
        mean_interval([[value] for value in after]),
        len(both),
        paired_difference(before, after),
        better,
        models,
    )


def scores_of(groups: Sequence[VerifiedGroup]) -> dict[str, float]:
    """Mean reward of each problem that has a decided sample, by its id."""
    return {group.problem.id: avg_score(group) for group in groups if group.correctness}


def by_pair(groups: Sequence[VerifiedGroup], column: str) -> Iterator[tuple[str, float, list[float]]]:
    """(pair, score of the plain question, scores of its disturbed versions), where all were decided."""
    plain: dict[str, float] = {}
    disturbed: dict[str, list[float]] = {}
    broken: set[str] = set()
    for group in groups:
        pair = str(group.problem.meta.get(PAIR, group.problem.id))
        if not group.correctness:
            broken.add(pair)
        elif str(group.problem.meta.get(column, PLAIN)) == PLAIN:
            plain[pair] = avg_score(group)
        else:
            disturbed.setdefault(pair, []).append(avg_score(group))
    for pair, score in plain.items():
        if pair in disturbed and pair not in broken:
            yield pair, score, disturbed[pair]


def drops_of(groups: Sequence[VerifiedGroup], column: str) -> dict[str, float]:
    """Of each pair, the score of the plain question less the mean of its disturbed versions."""
    return {pair: score - sum(others) / len(others) for pair, score, others in by_pair(groups, column)}


def flips_of(groups: Sequence[VerifiedGroup], column: str) -> dict[str, float]:
    """Of each pair whose plain answer is mostly right, the share of disturbed versions mostly answered wrong.

    "Mostly" is a mean reward of at least one half.
    """
    return {
        pair: sum(other < 0.5 for other in others) / len(others)
        for pair, score, others in by_pair(groups, column)
        if score >= 0.5
    }


def held_against_each_other(effects: Sequence[Effect]) -> list[Effect]:
    """The effects with Holm's step-down P: with many measures, one is far out by chance."""
    ranked = sorted(range(len(effects)), key=lambda index: effects[index].paired.p)
    adjusted, floor = [math.nan] * len(effects), 0.0
    for rank, index in enumerate(ranked):
        floor = max(floor, min(1.0, effects[index].paired.p * (len(effects) - rank)))
        adjusted[index] = floor
    values = zip(effects, adjusted, strict=True)
    return [Effect(**{**_fields(one), "p_holm": p}) for one, p in values]


def _fields(one: Effect) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Effect.__dataclass_fields__}


def show(found: SideEffects, *, file: Any) -> None:
    """The table for people."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=PIPED_WIDTH)
    for models in dict.fromkeys(one.models for one in found.effects):
        table = Table(box=None, title_justify="left", title_style="bold", pad_edge=False)
        table.title = escape(f"side effects: {models[1]} against {models[0]}")
        for heading in ("measure", "first", "after", "difference", "P (Holm)", "problems", "reading"):
            table.add_column(heading, no_wrap=True)
        for one in (one for one in found.effects if one.models == models):
            change = f"{one.paired.gain:+.3f} [{one.paired.low:+.3f}, {one.paired.high:+.3f}]"
            p = "<0.0001" if one.p_holm < 1e-4 else f"{one.p_holm:.4f}"
            cells = (
                one.name,
                told(one.before),
                told(one.after),
                change,
                p,
                str(one.num_problems),
                one.reading,
            )
            table.add_row(*map(escape, cells))
        console.print(table)
        console.print()
    if found.how:
        console.print(escape(found.how))
    for name, rate in found.wins.items():
        console.print(escape(f"win rate, {name}: {rate.in_words()}"))


def told(interval: Interval) -> str:
    """`0.412 [0.351, 0.473]`."""
    return f"{interval[0]:.3f} [{interval[1]:.3f}, {interval[2]:.3f}]"
