"""A verifier and rows of its data -> what is right on each row, and how answers are written for it."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from verigrad.verifiers.audit_cases import Family, Gold
from verigrad.verifiers.base import Problem
from verigrad.verifiers.binding import LoadedVerifier
from verigrad.verifiers.combine import Combine
from verigrad.verifiers.marked import boxes

THOUGHT = "I look at what is given and work it out step by step."
RENDERINGS: Mapping[str, str] = {
    "boxed": "The answer is \\boxed{%s}.",
    "answer line": "Answer: %s",
    "answer tag": "<answer>%s</answer>",
    "hashes": "#### %s",
    "thought and box": f"<think>{THOUGHT}</think>\\boxed{{%s}}",
    "thought and tag": f"<think>{THOUGHT}</think><answer>%s</answer>",
    "plain": "%s",
    "json block": "```json\n%s\n```",
}
"""Ways of writing an answer down, tried in this order."""

CODE = ("program_output", "unit_tests")
TESTS = {"cases", "tests", "test_code"}  # columns of a row that is judged by running a program
SEES_ROW = {"answer", "answers", "problem", "problems", "meta", "metas", "prompt", "prompts"}
ASKS_ANSWER = {"answer", "answers", "problem", "problems"}


def renderer(name: str) -> Callable[[str], str]:
    """An answer -> a response, written in this way."""
    before, _, after = RENDERINGS[name].partition("%s")
    return lambda answer: f"{before}{answer}{after}"


def answer_text(problem: Problem, loaded: LoadedVerifier) -> str | None:
    """The answer as it would stand in a right response; None where the row lists none."""
    names = {part.policy.name or part.name for part in parts_of(loaded)}
    if "countdown" in names:
        return countdown_answer(problem, loaded.options)
    answer = problem.answer
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    if answer is None:
        return None
    if not isinstance(answer, str):
        return json.dumps(answer)
    if found := boxes(answer):
        return found[-1][0]
    return (answer.rpartition("####")[2] if "####" in answer else answer).strip()


def whole_gold(problem: Problem, loaded: LoadedVerifier, *, code: bool) -> Gold | None:
    """A gold response that is more than an answer written down: the verifier's own hook, or a program."""
    if code:
        program = solution_of(problem)
        return None if program is None else Gold(fenced(program, language_of(problem)), program)
    if loaded.policy.gold is None:
        return None
    response = loaded.policy.gold(problem)
    return None if response is None else Gold(response, answer_text(problem, loaded) or "")


def has_own_gold(loaded: LoadedVerifier) -> bool:
    """Whether gold responses come from `whole_gold` and nowhere else."""
    return loaded.policy.gold is not None or is_code(loaded)


def is_code(loaded: LoadedVerifier) -> bool:
    """Whether responses are programs."""
    return any(part.policy.name in CODE or part.name in CODE for part in parts_of(loaded))


def asks_programs(loaded: LoadedVerifier, problems: Sequence[Problem]) -> bool:
    """Whether responses are programs: the verifier is known for it, or asks for a row's tests."""
    if is_code(loaded):
        return True
    wanted = {one.name for part in parts_of(loaded) for one in part.wanted}
    asked = TESTS if wanted & {"meta", "problem"} else TESTS & wanted
    return bool(problems) and all(asked & set(problem.meta) for problem in problems)


def solution_of(problem: Problem) -> str | None:
    """The reference program of a row: `meta.solution`, else an answer that is text."""
    for found in (problem.meta.get("solution"), problem.meta.get("reference_solution"), problem.answer):
        if isinstance(found, str) and found.strip():
            return unfenced(found)
    return None


def language_of(problem: Problem) -> str:
    """The language that the row's programs are written in."""
    return str(problem.meta.get("language", "python"))


def fenced(program: str, language: str = "python") -> str:
    """A program as a response."""
    return f"```{language}\n{program}\n```"


def unfenced(text: str) -> str:
    """The program in a solution that may be a fenced block."""
    if not text.strip().startswith("```"):
        return text
    return text.strip().partition("\n")[2].rpartition("```")[0]


def parts_of(loaded: LoadedVerifier) -> Sequence[LoadedVerifier]:
    """The verifier itself, or the parts of a `combine` on which its reward depends."""
    owner = getattr(loaded.call, "__self__", None)
    if isinstance(owner, Combine):
        return [part.verifier for part in owner.parts if part.counts]
    return [loaded]


def judging_parts(loaded: LoadedVerifier) -> Sequence[str]:
    """Names of the parts of a `combine` that judge answers; none for any other verifier."""
    owner = getattr(loaded.call, "__self__", None)
    if not isinstance(owner, Combine):
        return []
    judging = [part for part in owner.parts if part.counts and not part.verifier.policy.learned]
    return [part.name for part in judging if not pays_for_form(part.verifier)]


def is_control(loaded: LoadedVerifier) -> bool:
    """Whether the reward, or a part of it, knows nothing on purpose."""
    return any(part.policy.control for part in parts_of(loaded))


def pays_for_form(loaded: LoadedVerifier) -> bool:
    """Whether no part of the reward depends on the answer."""
    return all(part.policy.shaping for part in parts_of(loaded))


def sees_row(loaded: LoadedVerifier, columns: Sequence[str]) -> bool:
    """Whether the verifier asks for anything of the row, so that rows could have different right answers."""
    return any(one.name in {*SEES_ROW, *columns} for part in parts_of(loaded) for one in part.wanted)


def asks_answer(loaded: LoadedVerifier) -> bool:
    """Whether the verifier asks for the row's answer."""
    wanted = {one.name for part in parts_of(loaded) for one in part.wanted}
    return bool(wanted & ASKS_ANSWER) or has_own_gold(loaded)


def family_of(loaded: LoadedVerifier, answers: Sequence[str], rendering: str) -> Family:
    """Which rewritings leave an answer as right as it was."""
    names = {part.policy.name or part.name for part in parts_of(loaded)}
    if is_code(loaded):
        return "code"
    if "math_answer" in names:
        return "math"
    letters = [answer for answer in answers if len(answer) == 1 and answer.isalpha()]
    if answers and len(letters) == len(answers) and rendering != "plain":
        return "choice"
    numbers = [answer for answer in answers if any(sign.isdigit() for sign in answer)]
    boxed = rendering in ("boxed", "thought and box")
    plain = "countdown" in names
    return "math" if boxed and not plain and len(numbers) > len(answers) / 2 else "text"


# Countdown: a row lists its target, and the right answer has to be found --------------------------------


def countdown_answer(problem: Problem, options: Mapping[str, Any]) -> str | None:
    """An expression over `meta.nums` with the target's value; None where no quick search finds one."""
    nums, target = problem.meta.get("nums"), problem.meta.get("target", problem.answer)
    if not isinstance(nums, (list, tuple)) or not 0 < len(nums) <= 5:
        return None
    try:
        goal, values = Fraction(str(target)), [(Fraction(int(n)), str(int(n))) for n in nums]
    except (TypeError, ValueError):
        return None
    return _search(values, goal, some=options.get("use_all") is False)


def _search(values: Sequence[tuple[Fraction, str]], goal: Fraction, *, some: bool) -> str | None:
    for value, text in values:
        if value == goal and (some or len(values) == 1):
            return text
    for (i, (a, left)), (j, (b, right)) in itertools.permutations(enumerate(values), 2):
        rest = [value for k, value in enumerate(values) if k not in (i, j)]
        joined = [(a - b, f"({left} - {right})")]
        if i < j:
            joined += [(a + b, f"({left} + {right})"), (a * b, f"({left} * {right})")]
        if b:
            joined.append((a / b, f"({left} / {right})"))
        for one in joined:
            if found := _search([*rest, one], goal, some=some):
                return found
    return None
