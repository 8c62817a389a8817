"""A right answer -> the same answer written otherwise, and answers that differ from it by very little."""

import re
from collections.abc import Iterator
from fractions import Fraction

from verigrad.verifiers.audit_cases import Case, Row, differ, probe, value_of
from verigrad.verifiers.audit_code import rewritten_program, wrong_program
from verigrad.verifiers.audit_gold import THOUGHT, fenced, language_of

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
SIMPLE_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}|(-?)(\d+)/(\d+)")
LIST = re.compile(r"[^,(){}\[\]]+(?:,[^,(){}\[\]]+)+")
UNIT = re.compile(r"\s*\\(?:text|mathrm)\{[^{}]*\}\s*$")


@probe("blanks", expect="right", allowed=0.02, needs="gold")
def blanks(row: Row) -> Iterator[Case]:
    """The gold response with blanks and empty lines around it."""
    assert row.gold is not None
    yield Case("blanks around", f"\n\n  {row.gold.response}  \n\n")


@probe("thought first", expect="right", allowed=0.05, needs="gold")
def thought_first(row: Row) -> Iterator[Case]:
    """The gold response after a thought in <think> tags."""
    assert row.gold is not None
    if "<think>" not in row.gold.response:
        yield Case("thought first", f"<think>\n{THOUGHT}\n</think>\n\n{row.gold.response}")


@probe("other spelling", expect="right", allowed=0.05, needs="answer")
def other_spelling(row: Row) -> Iterator[Case]:
    """The same answer in another spelling: LaTeX, prose, letter case or fences, as the family allows."""
    assert row.gold is not None
    if row.family == "code":
        yield from rewritten_program(row.gold.answer, language_of(row.problem))
        return
    kinds = {"math": _math_spellings, "choice": _choice_spellings, "text": _text_spellings}
    for kind, text in kinds[row.family](row):
        yield Case(kind, text)


@probe("other form", expect="right", allowed=0.05, needs="answer")
def other_form(row: Row) -> Iterator[Case]:
    """The same value in another form: decimals, fractions, lists in another order, with or without a unit."""
    assert row.gold is not None
    if row.family != "math":
        return
    answer = row.gold.answer
    for kind, text in _other_forms(answer):
        yield Case(kind, row.render(text))


def _math_spellings(row: Row) -> Iterator[tuple[str, str]]:
    assert row.gold is not None
    answer = row.gold.answer
    yield "dollars", row.render(f"${answer}$") if "$" not in answer else row.gold.response
    if "\\frac" in answer:
        yield "dfrac", row.render(answer.replace("\\frac", "\\dfrac"))
    if "(" in answer and "\\left" not in answer:
        yield "left and right", row.render(answer.replace("(", "\\left(").replace(")", "\\right)"))
    if re.fullmatch(r"\d{4,}", answer):
        yield "thousands", row.render(f"{int(answer):,}".replace(",", "{,}"))
    yield "prose before", f"Let us see. First I tried something else.\n\n{row.gold.response}"


def _choice_spellings(row: Row) -> Iterator[tuple[str, str]]:
    assert row.gold is not None
    letter = row.gold.answer
    yield "brackets", row.render(f"({letter})")
    yield "lower case", row.render(f"({letter.lower()})")
    yield "prose before", f"I compared all of them carefully.\n\n{row.gold.response}"


def _text_spellings(row: Row) -> Iterator[tuple[str, str]]:
    """Only what the verifier's own options say does not matter."""
    assert row.gold is not None
    response = row.gold.response
    if row.options.get("casefold"):
        yield "upper case", response.upper()
    if row.options.get("collapse_whitespace"):
        yield "wide blanks", response.replace(" ", "  \t")


def _other_forms(answer: str) -> Iterator[tuple[str, str]]:
    if re.fullmatch(r"-?\d+", answer):
        yield "with decimals", f"{answer}.0"
        yield "fraction of it", f"\\frac{{{2 * int(answer)}}}{{2}}"
        yield "named", f"x = {answer}"
        yield "with a unit", f"{answer} \\text{{ cm}}"
    elif re.fullmatch(r"-?\d+\.\d+", answer):
        value = Fraction(answer)
        sign = "-" if value < 0 else ""
        yield "fraction of it", f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    elif found := SIMPLE_FRACTION.fullmatch(answer):
        sign, over, under = found.group(1, 2, 3) if found[2] else found.group(4, 5, 6)
        yield "not reduced", f"{sign}\\frac{{{3 * int(over)}}}{{{3 * int(under)}}}"
        yield "with a slash", f"{sign}{over}/{under}"
    elif LIST.fullmatch(answer):
        yield "other order", ", ".join(reversed([one.strip() for one in answer.split(",")]))
    if (bare := UNIT.sub("", answer)) != answer and NUMBER.fullmatch(bare.strip()):
        yield "without its unit", bare.strip()


# Wrong by little ----------------------------------------------------------------------------------------


@probe("another row's gold", needs="answer", allowed=0.02)
def another_gold(row: Row) -> Iterator[Case]:
    """The gold response of another row, whose answer differs."""
    assert row.gold is not None
    for other in row.others[:2]:
        if differ(row.gold.answer, other.answer):
            yield Case("another row's gold", other.response)


@probe("perturbed", needs="answer", allowed=0.02)
def perturbed(row: Row) -> Iterator[Case]:
    """The gold with one digit, sign or letter changed; a program whose result is changed."""
    assert row.gold is not None
    if row.family == "code":
        language = language_of(row.problem)
        for kind, program in wrong_program(row.gold.answer, language):
            yield Case(kind, fenced(program, language))
        return
    for kind, answer in slips(row.gold.answer):
        if all(differ(answer, right) for right in accepted(row)):
            yield Case(kind, row.render(answer))


def accepted(row: Row) -> list[str]:
    """Every answer that the row itself lists as right."""
    listed = row.problem.answer if isinstance(row.problem.answer, list) else [row.problem.answer]
    return [str(one) for one in listed if one is not None] + ([row.gold.answer] if row.gold else [])


def slips(answer: str) -> Iterator[tuple[str, str]]:
    """Answers that differ in one sign; none of them is right."""
    places = [found.start() for found in re.finditer(r"\d", answer)]
    if places:
        for kind, place in (("last digit", places[-1]), ("first digit", places[0])):
            digit = str((int(answer[place]) + 1) % 10 or 1)
            digit = digit if digit != answer[place] else "2"
            yield kind, answer[:place] + digit + answer[place + 1 :]
        if (value := value_of(answer)) and isinstance(value, Fraction):
            yield "sign", answer[1:] if answer.startswith("-") else f"-{answer}"
        return
    letters = [found.start() for found in re.finditer(r"(?<![\\A-Za-z])[A-Za-z]", answer)]
    if letters and "\\" not in answer:
        place = letters[-1]
        letter = answer[place]
        other = chr(ord(letter) + 1) if letter not in "zZ" else "A"
        yield "letter", answer[:place] + other + answer[place + 1 :]


REWRITES = (blanks, thought_first, other_spelling, other_form)
NEAR_MISSES = (another_gold, perturbed)
