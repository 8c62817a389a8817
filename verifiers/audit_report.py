"""Verdicts on a probe's cases -> what came of it: counts with 95% intervals, and the worst failure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from verigrad.verifiers.audit_cases import Case, Expect, Probe
from verigrad.verifiers.base import Problem, Verdict
from verigrad.verifiers.marked import short

Status = Literal["ok", "FAILS", "warns", "shown", "left out"]
Z_95 = 1.959963984540054
MAX_UNDECIDED = 0.02  # share of a probe's cases


@dataclass(frozen=True, slots=True)
class Example:
    """One case that came out otherwise than it must."""

    row: str  # the problem's id
    kind: str
    response: str  # cut to one line
    reward: float | None
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table."""

    name: str
    says: str
    status: Status
    expect: str = ""  # what must come of each case
    allowed: float = 0.0  # share that may come out otherwise
    num: int = 0
    num_bad: int = 0
    num_undecided: int = 0
    low: float = 0.0  # 95% interval (Wilson, 1927) of the share that came out otherwise
    high: float = 1.0
    mean_reward: float | None = None  # of decided cases
    kinds: Mapping[str, Sequence[int]] = field(default_factory=dict)  # kind -> [bad, all]
    worst: Example | None = None
    note: str = ""  # why it was left out, or figures
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether the verifier is outside this probe's limit."""
        return self.status == "FAILS"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Judged:
    """A case with the verdict on it."""

    problem: Problem
    case: Case
    verdict: Verdict
    full: bool  # earned the full reward


@dataclass(frozen=True, slots=True)
class Report:
    """A verifier's audit."""

    verifier: str
    source: str
    version: str
    num_rows: int
    family: str
    rendering: str  # how answers were written
    control: bool
    results: Sequence[Result]
    seconds: float
    sandbox: str = ""

    @property
    def failed(self) -> Sequence[Result]:
        """The probes that it does not pass; none for a control, of which nothing is expected."""
        return [] if self.control else [result for result in self.results if result.failed]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **{name: getattr(self, name) for name in Report.__slots__ if name != "results"},
            "passed": not self.failed,
            "results": [result.to_json() for result in self.results],
        }


def wilson(num_bad: int, num: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share (1927); (0, 1) of nothing."""
    if num == 0:
        return 0.0, 1.0
    share, square = num_bad / num, Z_95**2
    centre = share + square / (2 * num)
    half = Z_95 * math.sqrt(share * (1 - share) / num + square / (4 * num**2))
    scale = 1 + square / num
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def result_of(
    probe: Probe,
    judged: Sequence[Judged],
    *,
    allowed: float,
    max_undecided: float = MAX_UNDECIDED,
    only_shown: str = "",
) -> Result:
    """What came of a probe's cases. `only_shown` says why they are no test of this verifier."""
    undecided = [one for one in judged if not one.verdict.decided]
    bad = [one for one in judged if one.verdict.decided and one.full != (probe.expect == "right")]
    kinds: dict[str, list[int]] = {}
    for one in judged:
        counts = kinds.setdefault(one.case.kind, [0, 0])
        counts[0] += one in bad
        counts[1] += 1
    too_bad = len(bad) > allowed * len(judged)
    too_undecided = len(undecided) > max_undecided * len(judged) and not probe.undecided_is_fine
    low, high = wilson(len(bad), len(judged))
    rewards = [one.verdict.reward for one in judged if one.verdict.reward is not None]
    failing = [*bad, *([] if probe.undecided_is_fine else undecided)]
    status: Status = "FAILS" if too_bad or too_undecided else "ok"
    if only_shown:
        status = "shown"
    elif probe.only_warns and status == "FAILS":
        status = "warns"
    return Result(
        name=probe.name,
        says=probe.says,
        status=status,
        expect=in_words(probe.expect),
        allowed=allowed,
        num=len(judged),
        num_bad=len(bad),
        num_undecided=len(undecided),
        low=low,
        high=high,
        mean_reward=sum(rewards) / len(rewards) if rewards else None,
        kinds=kinds,
        worst=example(failing[0]) if failing else None,
        note=only_shown or ("too many undecided" if too_undecided and not too_bad else ""),
    )


def in_words(expect: Expect) -> str:
    """What must come of a case."""
    return {"right": "full reward", "not_right": "no full reward"}[expect]


def example(one: Judged) -> Example:
    """A case for people; a long response is cut."""
    verdict = one.verdict
    said = f"{short(one.case.text)!a}" if one.case.text.strip() else f"{one.case.text[:20]!a}"
    if len(one.case.text) > 1000:
        said += f" ({len(one.case.text)} characters)"
    said = one.case.told or said
    return Example(one.problem.id, one.case.kind, said, verdict.reward, verdict.outcome, verdict.reason[:200])


def left_out(name: str, says: str, why: str) -> Result:
    """A probe that has nothing to work on."""
    return Result(name, says, "left out", note=why)
