"""Several verifiers -> one: a weighted sum of their rewards, closed by gates.

What the sum, the outcome and an undecided part mean is written down in docs/verifiers/combine.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.sandboxes.base import SandboxError
from verigrad.verifiers import registry
from verigrad.verifiers.base import POLICY_ATTRIBUTE, Attempt, Policy, Problem, Runs, Verdict, verifier
from verigrad.verifiers.binding import LoadedVerifier
from verigrad.verifiers.marked import short
from verigrad.verifiers.options import flag, number, shown
from verigrad.verifiers.verdict_cache import repeatable

MAX_PARTS = 20
PART_KEYS = ("verifier", "weight", "gate", "options")
GROUP_ALLOWANCE = 16  # attempts of a group that the deadline of a joint call allows for
ROUNDING = 1e-9  # of the sum, relative
KNOWN = "known case of every part"  # both the canary's text and the mark in its row, which no data set has
EXAMPLE = 'name = {verifier = "...", weight = 1.0, gate = false, options = {}}'


@dataclass(frozen=True, slots=True)
class Part:
    """One verifier of the sum."""

    name: str
    verifier: LoadedVerifier
    weight: float
    gate: bool  # less than 1 here closes the whole reward

    @property
    def counts(self) -> bool:
        """Whether the reward depends on it; the others are only recorded."""
        return self.gate or self.weight > 0

    @property
    def in_sandbox(self) -> bool:
        """Whether it runs what it judges, and so needs a sandbox as it was before other parts used it."""
        return self.verifier.policy.runs == "sandbox"


@verifier("combine", version="1")
class Combine:
    """A weighted sum of other verifiers' rewards; a part may be a gate that must be passed to earn."""

    def __init__(self, parts: Mapping[str, Any] | None = None, answer_from: str = "") -> None:
        """`parts`: name -> {verifier, weight, gate, options}; `answer_from`: who reads the answer."""
        if not isinstance(parts, Mapping) or not 0 < len(parts) <= MAX_PARTS:
            raise ValueError(
                f"combine: parts = {shown(parts)}; expected 1 to {MAX_PARTS} parts, each {EXAMPLE}"
            )
        self.parts = [_part(name, given) for name, given in parts.items()]
        if not any(part.weight for part in self.parts):
            raise ValueError("combine: no part has a weight above 0, so nothing would ever be paid")
        self.most = math.fsum(part.weight for part in self.parts)  # less than this is never `right`
        if answer_from not in ("", *parts):
            raise ValueError(
                f"combine: answer_from = {shown(answer_from)} is no part; parts: {', '.join(parts)}"
            )
        self.answer_from = answer_from
        setattr(self, POLICY_ATTRIBUTE, _policy(self.parts))
        if any(part.verifier.prefetch for part in self.parts):
            self.prefetch = self.prefetch_parts
        if any(part.verifier.group for part in self.parts):
            self.verify = self.verify_group  # type: ignore[method-assign, assignment]

    def verify(self, problem: Problem, attempt: Attempt, index: int, seed: int) -> Verdict:
        """Judge one attempt with every part."""
        return self.verify_group(problem, [attempt], [index], seed)[0]

    def verify_group(
        self, problem: Problem, attempts: Sequence[Attempt], indices: Sequence[int], seed: int
    ) -> list[Verdict]:
        """Judge all attempts in one call, as soon as one part is a group verifier."""
        if KNOWN in problem.meta and all(attempt.text == KNOWN for attempt in attempts):
            return [self._known_cases(seed, attempts[0].sandbox)] * len(attempts)
        columns = []
        used = False
        for part in self.parts:
            if part.in_sandbox and used:
                _clean(attempts[0])
            used = used or part.in_sandbox
            columns.append(_verdicts(part, problem, attempts, indices, seed))
        return [self._total(row) for row in zip(*columns, strict=True)]

    def prefetch_parts(self, problem: Problem, attempts: Sequence[Attempt]) -> None:
        """Tell the parts what will be judged, where they want to know."""
        for part in self.parts:
            if part.verifier.prefetch:
                part.verifier.prefetch(problem, attempts)

    def check_row(self, problem: Problem) -> None:
        """Raise ValueError when a part misses a column of the row."""
        for part in self.parts:
            try:
                part.verifier.check_row(problem)
            except ValueError as error:
                inner = f"verifier.options.parts.{part.name}.options."
                says = str(error).replace("verifier.options.", inner)
                raise ValueError(f"combine: part {part.name!r}: {says}") from error

    def _total(self, verdicts: Sequence[Verdict]) -> Verdict:
        """The parts' verdicts on one attempt as one verdict."""
        judged = list(zip(self.parts, verdicts, strict=True))
        rewards = {part.name: verdict.reward for part, verdict in judged if verdict.reward is not None}
        answer = self._answer(verdicts)
        lost = [(part, verdict) for part, verdict in judged if part.counts and verdict.reward is None]
        if lost:
            reason = "; ".join(f"{part.name} is undecided: {short(verdict.reason)}" for part, verdict in lost)
            return Verdict(None, "error", rewards, reason[:500], extracted=answer.extracted)
        total = math.fsum(part.weight * rewards.get(part.name, 0.0) for part in self.parts)
        closed = any(part.gate and rewards[part.name] < 1 for part in self.parts)
        if closed:
            total = min(0.0, total)  # a closed gate must not be a way around a penalty
        reason = "; ".join(_line(part, verdict) for part, verdict in judged)[:500]
        all_right = all(verdict.outcome == "right" for part, verdict in judged if part.counts)
        if all_right and not closed and total >= self.most * (1 - ROUNDING):
            return Verdict(total, "right", rewards, reason, extracted=answer.extracted)
        if total > 0:
            return Verdict(total, "partial", rewards, reason, extracted=answer.extracted)
        why = answer.outcome if answer.outcome in ("unparseable", "timeout") else "wrong"
        return Verdict(total, why, rewards, reason, extracted=answer.extracted)

    def _answer(self, verdicts: Sequence[Verdict]) -> Verdict:
        """Of `answer_from`, else of a gate that read an answer, else of any part that did."""
        judged = list(zip(self.parts, verdicts, strict=True))
        if self.answer_from:
            return next(verdict for part, verdict in judged if part.name == self.answer_from)
        read = sorted((item for item in judged if item[1].extracted), key=lambda item: not item[0].gate)
        return read[0][1] if read else min(judged, key=lambda item: (not item[0].gate, -item[0].weight))[1]

    def _known_cases(self, seed: int, sandbox: Any) -> Verdict:
        """Whether every part that has a known case still judges it; the canary of the whole."""
        for part in self.parts:
            known = part.verifier.policy.canary
            if known is None or not part.counts:
                continue
            problem = Problem("canary", known.get("prompt", ""), known["answer"], known.get("meta", {}))
            attempt = Attempt(known["response"], sandbox=sandbox)
            if part.in_sandbox:
                _clean(attempt)
            (verdict,) = part.verifier.judge(problem, [attempt], seed=seed)
            if verdict.reward is None or verdict.reward <= 0:
                return Verdict.undecided(f"{part.name} fails its known case")
        return Verdict.right(KNOWN)


def _clean(attempt: Attempt) -> None:
    """Make the attempt's sandbox what it was before another part ran something in it."""
    attempt.sandbox.reset()
    if attempt.snapshot is not None:
        attempt.sandbox.load(attempt.snapshot)


def _part(name: str, given: Any) -> Part:
    here = f"combine: part {shown(name)}"
    if not isinstance(given, Mapping) or not isinstance(given.get("verifier"), str):
        raise ValueError(f"{here} is {shown(given)}; expected {EXAMPLE}")
    if unknown := [key for key in given if key not in PART_KEYS]:
        raise ValueError(f"{here} has no setting {shown(unknown[0])}; it has: {', '.join(PART_KEYS)}")
    weight, gate, options = given.get("weight", 1.0), given.get("gate", False), given.get("options", {})
    if expected := number(0)(weight):
        raise ValueError(
            f"{here}: weight = {shown(weight)}; expected {expected} (a verifier may pay below 0)"
        )
    if expected := flag(gate):
        raise ValueError(f"{here}: gate = {shown(gate)}; expected {expected}")
    if not isinstance(options, Mapping):
        raise ValueError(f"{here}: options = {shown(options)}; expected a table of names and values")
    try:
        return Part(name, registry.load(given["verifier"], options), float(weight), gate)
    except ValueError as error:
        raise ValueError(f"{here}: {error}") from error


def _policy(parts: Sequence[Part]) -> Policy:
    """How the whole runs: as long as all parts take, in a sandbox where any part does."""
    policies = [part.verifier.policy for part in parts]
    boxed = [part.name for part in parts if part.in_sandbox]
    grouped = [part.name for part in parts if part.verifier.group]
    if boxed and grouped:
        raise ValueError(
            f"combine: part {boxed[0]!r} runs in a sandbox, which each attempt has for itself, and part "
            f"{grouped[0]!r} judges whole groups; take one of them out"
        )
    elsewhere: Runs = "worker" if any(policy.runs == "worker" for policy in policies) else "inline"
    joint = any(part.verifier.group for part in parts)
    times = [GROUP_ALLOWANCE if joint and not part.verifier.group else 1 for part in parts]
    return Policy(
        name="combine",
        version="1; " + ", ".join(f"{part.name} {part.verifier.policy.version}" for part in parts),
        runs="sandbox" if boxed else elsewhere,
        deadline_s=sum(policy.deadline_s * n for policy, n in zip(policies, times, strict=True)),
        canary=_canary([part.verifier.policy.canary for part in parts if part.counts]),
        warm_up=_all_of([policy.warm_up for policy in policies if policy.warm_up]),
        cache=all(repeatable(part.verifier) for part in parts),
        services=tuple({one.key: one for policy in policies for one in policy.services}.values()),
    )


def _canary(cases: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """A row marked as the known case, with the answer and the columns of the parts' own."""
    known = [case for case in cases if case]
    if not known:
        return None
    meta = {name: value for case in reversed(known) for name, value in case.get("meta", {}).items()}
    answers = [case["answer"] for case in known if case["answer"] is not None]
    return {"response": KNOWN, "answer": answers[0] if answers else None, "meta": {**meta, KNOWN: True}}


def _all_of(calls: Sequence[Callable[[], None]]) -> Callable[[], None] | None:
    def run() -> None:
        for call in calls:
            call()

    return run if calls else None


def _verdicts(
    part: Part, problem: Problem, attempts: Sequence[Attempt], indices: Sequence[int], seed: int
) -> list[Verdict]:
    """A part's verdicts; what it raises is said with its name, or is undecided where it does not count."""
    try:
        return part.verifier.judge(problem, attempts, indices=indices, seed=seed)
    except (MemoryError, SandboxError):
        raise  # the worker's affair: it ends, or tries again in another sandbox
    except Exception as error:
        says = f"part {part.name!r} raised {type(error).__name__}: {short(str(error))}"
        if part.counts:
            raise RuntimeError(says) from error
        return [Verdict.undecided(says)] * len(attempts)


def _line(part: Part, verdict: Verdict) -> str:
    paid = "undecided" if verdict.reward is None else f"{verdict.reward:g}"
    closed = " closes the gate" if part.gate and (verdict.reward or 0) < 1 else ""
    return f"{part.name} {paid}{closed}{f' ({short(verdict.reason)})' if verdict.reason else ''}"
