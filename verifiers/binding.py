"""A plug-in's plain function and its options -> a LoadedVerifier that judges (Problem, attempts)."""

import asyncio
import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verigrad.verifiers.base import POLICY_ATTRIBUTE, Attempt, Policy, Problem, Verdict
from verigrad.verifiers.options import CHECK_ATTRIBUTE

# What a verifier may ask for by name; the plural of an attempt's name makes it judge a whole group.
OF_PROBLEM: dict[str, Callable[[Problem, int], Any]] = {
    "problem": lambda problem, seed: problem,
    "problem_id": lambda problem, seed: problem.id,
    "prompt": lambda problem, seed: problem.prompt,
    "answer": lambda problem, seed: problem.answer,
    "meta": lambda problem, seed: problem.meta,
    "seed": lambda problem, seed: seed,
}
OF_ATTEMPT: dict[str, Callable[[Attempt, int], Any]] = {
    "attempt": lambda attempt, index: attempt,
    "text": lambda attempt, index: attempt.final_text,
    "response": lambda attempt, index: attempt.text,
    "stop_reason": lambda attempt, index: "length" if attempt.truncated else "stop",
    "transcript": lambda attempt, index: attempt.transcript,
    "sandbox": lambda attempt, index: attempt.sandbox,
    "index": lambda attempt, index: index,
}
GROUP_OF_ATTEMPT = {
    {"index": "indices"}.get(name, name + "s"): name for name in OF_ATTEMPT if name != "sandbox"
}
GROUP_OF_PROBLEM = {"prompts": "prompt", "answers": "answer", "metas": "meta", "problem_ids": "problem_id"}
RESERVED = {*OF_PROBLEM, *OF_ATTEMPT, *GROUP_OF_ATTEMPT, *GROUP_OF_PROBLEM}


@dataclass(frozen=True, slots=True)
class LoadedVerifier:
    """A verifier bound to its options: what to call, what it wants, how it is to be run."""

    name: str
    source: str
    doc: str  # first line of its docstring
    policy: Policy
    call: Callable[..., Any]
    wanted: tuple[inspect.Parameter, ...]
    group: bool  # sees all attempts of a problem in one call
    options: Mapping[str, Any] = field(default_factory=dict)
    own_check_row: Callable[[Problem], None] | None = None  # an object's method `check_row`
    # An object's method `prefetch`: told in the pool's own process what will be judged, so that a service of
    # its can begin with all of it at once. It must return at once, and what it raises is not looked at.
    prefetch: Callable[[Problem, Sequence[Attempt]], None] | None = None

    def check_row(self, problem: Problem) -> None:
        """Raise ValueError when a parameter is given neither by the options nor by this row."""
        if self.own_check_row:
            self.own_check_row(problem)
        for parameter in self.wanted:
            name = parameter.name
            if name in RESERVED or name in self.options or name in problem.meta:
                continue
            if parameter.default is inspect.Parameter.empty:
                have = ", ".join(sorted(problem.meta)) or "no columns besides prompt and answer"
                raise ValueError(
                    f"verifier {self.name!r} needs {name!r}, which is neither in its options nor in problem "
                    f"{problem.id!r} ({have}). Add that column to the data, or set verifier.options.{name}."
                )

    def judge(
        self,
        problem: Problem,
        attempts: Sequence[Attempt],
        *,
        indices: Sequence[int] | None = None,
        seed: int = 0,
    ) -> list[Verdict]:
        """Judge the attempts here, in this process; raises whatever the verifier raises.

        `indices` are the attempts' places in their group, when only part of a group is given.
        """
        self.check_row(problem)
        places = list(range(len(attempts)) if indices is None else indices)
        if self.group:
            answers = await_if_needed(self.call(**self._arguments(problem, attempts, places, seed)))
            if not isinstance(answers, (list, tuple)) or len(answers) != len(attempts):
                raise ValueError(
                    f"group verifier {self.name!r} returned {_short(answers)} for {len(attempts)} attempts; "
                    "return a list with one verdict per attempt, in order"
                )
            return [as_verdict(answer, name=self.name) for answer in answers]
        return [
            as_verdict(
                await_if_needed(self.call(**self._arguments(problem, [one], [at], seed))), name=self.name
            )
            for one, at in zip(attempts, places, strict=True)
        ]

    def _arguments(
        self, problem: Problem, attempts: Sequence[Attempt], places: Sequence[int], seed: int
    ) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for parameter in self.wanted:
            name = parameter.name
            if name in OF_PROBLEM:
                given[name] = OF_PROBLEM[name](problem, seed)
            elif name in OF_ATTEMPT:
                given[name] = OF_ATTEMPT[name](attempts[0], places[0])
            elif name in GROUP_OF_ATTEMPT:
                get = OF_ATTEMPT[GROUP_OF_ATTEMPT[name]]
                given[name] = [get(one, at) for one, at in zip(attempts, places, strict=True)]
            elif name in GROUP_OF_PROBLEM:
                given[name] = [OF_PROBLEM[GROUP_OF_PROBLEM[name]](problem, seed)] * len(attempts)
            elif name in self.options:
                given[name] = self.options[name]
            elif name in problem.meta:
                given[name] = problem.meta[name]
        return given


def bind(target: Any, *, name: str, source: str, options: Mapping[str, Any]) -> LoadedVerifier:
    """Read the signature of a function, class or object with `verify`, and settle its options now."""
    policy: Policy = getattr(target, POLICY_ATTRIBUTE, Policy(name=name))
    doc = (inspect.getdoc(target) or "").partition("\n")[0]
    if inspect.isclass(target):
        if not callable(getattr(target, "verify", None)):
            raise ValueError(f"verifier {name!r} ({source}) is a class without a `verify` method; add one")
        check_options(name, options, _named(target))
        target, options = target(**options), {}
        policy = getattr(target, POLICY_ATTRIBUTE, policy)  # an object may know better than its class
    call = target.verify if callable(getattr(target, "verify", None)) else target
    if not callable(call):
        raise ValueError(
            f"verifier {name!r} is {_short(target)}; expected a function or an object with verify()"
        )
    wanted = _named(call)
    names = {parameter.name for parameter in wanted}
    check_options(name, options, wanted)
    if check_values := getattr(target, CHECK_ATTRIBUTE, None):
        check_values(**options)
    group = bool(names & {*GROUP_OF_ATTEMPT, *GROUP_OF_PROBLEM})
    if group and (mixed := names & set(OF_ATTEMPT)):
        raise ValueError(
            f"verifier {name!r} asks for the whole group and for {', '.join(sorted(mixed))} of one attempt; "
            f"use the plural names only"
        )
    if policy.runs != "sandbox" and "sandbox" in names:
        raise ValueError(
            f"verifier {name!r} asks for `sandbox`, which only those get that say so; "
            "declare it with @verifier(..., runs='sandbox')"
        )
    if policy.runs == "sandbox" and group:
        raise ValueError(
            f"verifier {name!r} runs in a sandbox and asks for the whole group; each attempt has a sandbox "
            "of its own, so ask for the singular names"
        )
    own_check_row = getattr(target, "check_row", None)
    prefetch = getattr(target, "prefetch", None)
    return LoadedVerifier(
        name, source, doc, policy, call, wanted, group, dict(options), own_check_row, prefetch
    )


def check_options(name: str, options: Mapping[str, Any], wanted: Sequence[inspect.Parameter]) -> None:
    """Refuse an option the verifier has no parameter for, and name the nearest one it has."""
    known = [parameter.name for parameter in wanted if parameter.name not in RESERVED]
    for option in options:
        if option in known:
            continue
        near = difflib.get_close_matches(option, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known) or 'no options'}"
        raise ValueError(f"verifier {name!r} has no option {option!r}; {hint}")


def as_verdict(answer: Any, *, name: str) -> Verdict:
    """What a verifier returned, as a Verdict: bool, number in any range, None (undecided) or Verdict."""
    if isinstance(answer, Verdict):
        return answer
    if answer is None:
        return Verdict.undecided("the verifier returned None")
    try:
        reward = float(answer)  # bool, int, float and numpy's scalars alike
    except (TypeError, ValueError):
        reward = math.nan
    if isinstance(answer, (str, bytes)) or not math.isfinite(reward):
        raise ValueError(
            f"verifier {name!r} returned {_short(answer)}; expected a Verdict, bool, finite number or None"
        )
    return Verdict(reward, "right" if reward >= 1 else "wrong" if reward <= 0 else "partial")


def await_if_needed(answer: Any) -> Any:
    """The result of an async verifier; anything else as it is."""
    if not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        return await answer

    return asyncio.run(wait())


def _named(call: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p for p in inspect.signature(call).parameters.values() if p.kind in kinds)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
