"""A completion and the right answer -> whether the answer it states has the same value.

What counts as the same is written down in docs/verifiers/math_answer.md. Numbers are compared exactly; sympy
is asked only about what is no rational number, and only about sizes that can be worked out.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from verigrad.verifiers.base import Verdict, verifier
from verigrad.verifiers.math_canonical import canonical
from verigrad.verifiers.math_exact import TooLarge
from verigrad.verifiers.math_extract import Extract, last_box, stated_answer
from verigrad.verifiers.math_nodes import Node, Unreadable
from verigrad.verifiers.math_read import readings
from verigrad.verifiers.math_same import same
from verigrad.verifiers.math_text import plain
from verigrad.verifiers.math_words import HEDGE, agrees

MAX_ANSWER = 4000  # characters
CHOICE = re.compile(r"\(?\s*([A-Ja-j])\s*(?:\)(?:\s*[.:])?|[.:])?\s*")
OTHER_CHOICES = re.compile(r"\b[A-J]\b|(?<![A-Za-z])(?:\(\s*[a-j]\s*\)|[a-j][).:])")
CHOICE_WITH_TEXT = re.compile(r"(?:\(\s*([A-Ja-j])\s*\)|([A-Ja-j])[).:])\s*\S.*", re.DOTALL)
GOLD_CHOICE = re.compile(r'"?\(([A-J])\)"?\s*(?P<value>[^\s+*/^=<>-].*|-\s*\S.*)', re.DOTALL)  # "(B)" 5
OPTION = re.compile(
    r'"?\s*(?:the\s+)?(?:option|choice|answer)(?:\s+is)?\s*:?\s*(?="?\s*(?:\(\s*[A-Ja-j]\s*\)|[A-J]\b))',
    re.IGNORECASE,
)
UNEVALUATED = (r"\sum", r"\prod", r"\int", r"\binom", r"\lim", "!", "*", "+")


def warm_up() -> None:
    """Import sympy and build the LaTeX grammar's tables, which takes a second."""
    same_value(r"\frac{\sqrt{12}}{2}", r"\sqrt{3}")


@verifier(
    "math_answer",
    version="2",
    deadline_s=2.0,
    canary={"response": r"\boxed{\sqrt{12}}", "answer": r"2\sqrt{3}"},
    warm_up=warm_up,
)
def math_answer(
    text: str, answer: Any, extract: Extract = "boxed", require_simplified: bool = False
) -> Verdict:
    """Right if the last closed box holds a value equal to the answer (or to one of a list of answers).

    `extract` also accepts answer tags or the last number where there is no box; `require_simplified`
    rejects an answer that leaves the work to the reader, such as a sum for a number.
    """
    try:
        golds = tuple(gold_text(one) for one in (answer if isinstance(answer, list) else [answer]))
        for gold in golds:
            _readings(gold)  # an unreadable one must not cost the attempt
    except (Unreadable, TooLarge, RecursionError) as error:
        return Verdict.undecided(f"the problem's own answer cannot be read: {error or 'it is too large'}")
    stated = stated_answer(text, extract)
    if stated is None:
        return Verdict.wrong("states no answer", outcome="unparseable")
    if len(stated) > MAX_ANSWER:
        return Verdict.wrong(f"an answer of {len(stated)} characters", outcome="unparseable")
    return _judged(stated, golds, require_simplified)


@lru_cache(maxsize=4096)  # siblings often state the same answer
def _judged(stated: str, golds: tuple[str, ...], require_simplified: bool) -> Verdict:
    verdict = _compared(stated, golds, require_simplified)
    return replace(verdict, extracted=canonical(stated)) if verdict.outcome != "unparseable" else verdict


def _compared(stated: str, golds: tuple[str, ...], require_simplified: bool) -> Verdict:
    shown = " ".join(stated.split())[:80]
    try:
        found = plain(stated)
        if not any(matches(gold, _readings(gold), found) for gold in golds):
            return Verdict.wrong(shown)
    except Unreadable as error:
        return Verdict.wrong(f"{shown}: {error}", outcome="unparseable")
    except TooLarge:
        return Verdict.wrong(f"{shown}: too large to work out")
    except RecursionError:
        return Verdict.wrong(f"{shown}: nested too deeply", outcome="unparseable")
    if require_simplified and not any(simplified(found, gold) for gold in golds):
        return Verdict.wrong(f"{shown}: not worked out")
    return Verdict.right(shown)


def gold_text(answer: Any) -> str:
    """The right answer in plain spelling; of a whole solution, its box or what follows `####`."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise Unreadable(f"it is a {type(answer).__name__}; expected text, a number or a list of these")
    return _gold_in(str(answer))


@lru_cache(maxsize=4096)
def _gold_in(text: str) -> str:
    box = last_box(text)
    if box is None and "####" in text:
        box = text.rpartition("####")[2]
    return plain(text if box is None else box)


@lru_cache(maxsize=4096)
def _readings(gold: str) -> list[Node]:
    """The gold's readings, each proven to be comparable: an unreadable gold must not cost the attempt."""
    nodes = readings(gold)
    for node in nodes:
        if not same(node, node):
            raise Unreadable("it does not even equal itself")
    return nodes


def matches(gold: str, gold_nodes: Sequence[Node], found: str) -> bool:
    """Whether two plain texts say the same under some reading of each."""
    if with_value := GOLD_CHOICE.fullmatch(gold):
        return _choice_or_value(with_value[1], with_value["value"], found)
    if re.fullmatch(CHOICE, gold.replace('"', "")) and gold.strip('"( ')[:1].isupper():
        unquoted = OPTION.sub("", found, count=1).replace('"', "").strip()
        choice = re.fullmatch(CHOICE, unquoted) or re.fullmatch(CHOICE_WITH_TEXT, unquoted)
        # `(B) or (C)` hedges: what follows the letter may be the choice's text, not another choice.
        if choice and (HEDGE.search(unquoted) or len(OTHER_CHOICES.findall(unquoted)) > 1):
            return False
        if choice:
            letter = next(group for group in choice.groups() if group)
            return letter.upper() == gold.strip('"( ')[0]
    if found == gold:
        readings(found)  # a false equation is no answer even to itself
        return True
    return agrees(gold, found) or any(same(mine, theirs) for mine in gold_nodes for theirs in readings(found))


def _choice_or_value(letter: str, value: str, found: str) -> bool:
    """Whether `B`, `5` or `(B) 5` answers `(B) 5`; a letter and a value that disagree are wrong."""
    both = CHOICE_WITH_TEXT.fullmatch(found.replace('"', "").strip())
    if both and not re.fullmatch(CHOICE, found.replace('"', "")):
        said = found.replace('"', "").strip()
        value_said = re.sub(r"^\s*(?:\(\s*[A-Ja-j]\s*\)|[A-Ja-j][).:])", "", said).strip()
        return (both[1] or both[2]).upper() == letter and same_value(value, value_said)
    return matches(letter, _readings(letter), found) or matches(value, _readings(value), found)


def same_value(gold: str, found: str) -> bool:
    """Whether two answers, in LaTeX or plain, have the same value."""
    return matches(plain(gold), _readings(plain(gold)), plain(found))


def simplified(found: str, gold: str) -> bool:
    """Whether the answer leaves no more work to the reader than the gold does."""
    bare = re.sub(r"(?:\d(?:\.\d+)?)\s*\*\s*10\s*\^", "", found)  # 6.02 * 10^{23} is a literal
    signs = [sign for sign in UNEVALUATED if bare.count(sign) > gold.count(sign)]
    if not signs and re.search(r"\d\s*-\s*\d|\d\)?\s*\(|\d\s*\^", bare):
        return bool(re.search(r"\d\s*-\s*\d|\d\)?\s*\(|\d\s*\^", gold))
    # x + 1 against 1 + x needs its plus; only signs between numbers are left-over work.
    between = re.search(r"[\d)}]\s*[*+]\s*[({]?\s*\d", bare)
    return not signs or (set(signs) <= {"*", "+"} and not between)
