"""A completion that picks one of several choices -> whether it is the right one.

Where a letter is looked for, and what makes it ambiguous, stands in docs/verifiers/multiple_choice.md.
"""

# ruff: noqa: RUF001 - look-alike quotes on purpose

import re
from collections.abc import Mapping, Sequence
from typing import Any

from verigrad.verifiers.base import Verdict, verifier
from verigrad.verifiers.marked import Unreadable, boxes, last_line, tags
from verigrad.verifiers.options import shown, with_options

LETTERS = "ABCDEFGHIJ"
MAX_CLAIMS = 50
# Where prose states its answer; `(?=...)` so that a second statement on the same line is seen as well.
SAID = re.compile(
    r"\b(?:answer|correct (?:option|choice))\b[*_]{0,3}[ \t]{0,3}(?:is\b|[:=])(?=[*_:\s]{0,6}([^\n]{0,400}))",
    re.IGNORECASE,
)
WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf|textit|mathsf)\s?\{([^{}]{0,200})\}")
# A letter on its own: `B`, `(B)`, `(b)`; neither the article of `A cat` nor the pronoun of `I think`.
JOINED = (
    r"(?:or|and|nor|but|is|was|because|since|as|if|not|seems|looks)\b"  # after these it is a letter still
)
ARTICLE = rf"(?:A\s+(?!{JOINED})[a-z]|I(?:['’]|\s+(?!{JOINED})[a-z]))"
ALONE = re.compile(rf"(?<![\w'’\\])(?:\(\s?([A-Ja-j])\s?\)|(?!{ARTICLE})([A-J])(?![\w'’]))")
PICKED = re.compile(
    r"^[\s*_$\"'`]*\(?([A-Ja-j])(?:[).:*_$\"'`\s]*$|\)?[).:*]+\s)|\(([A-J])\)|\*\*([A-J])[).:]?\*\*"
)
NEGATED = re.compile(
    r"\b(?:not|never|neither|nor|cannot|except|wrong|incorrect|false)\b|n['’]t\b", re.IGNORECASE
)
ORNAMENT = re.compile(r"[*_$`\"'“”]")


def _letters_rule(value: Any) -> str:
    plain = isinstance(value, str) and len(value) >= 2 and LETTERS.startswith(value)
    return "" if plain else f"the first letters in use, from 'AB' to {LETTERS!r}"


@verifier("multiple_choice", version="1", deadline_s=2.0, canary={"response": "Answer: B", "answer": "B"})
@with_options(letters=_letters_rule)
def multiple_choice(text: str, answer: Any, choices: Any = None, letters: str = LETTERS) -> Verdict:
    """Right if the completion picks exactly one choice, by letter or by its full text, and it is the answer.

    `choices` is a column: the texts in order, or an object of letter to text. Without it only letters count.
    """
    known = _known(choices, letters)
    gold = _gold(answer, known)
    try:
        said = _pick(text, known)
    except Unreadable as error:
        return Verdict.wrong(str(error), outcome="unparseable")
    right = said == gold
    return Verdict(float(right), "right" if right else "wrong", reason=said, extracted=said)


def _pick(text: str, known: Mapping[str, str]) -> str:
    """The one letter the text settles on: in boxes and tags, else after `Answer:`, else in the last line."""
    stated = sorted(boxes(text) + tags(text, "answer"), key=lambda found: found[1])
    stated = stated or [(match[1], match.end(1)) for match in SAID.finditer(text)]
    if not stated:
        return _unmarked(text, known)
    if len(stated) > MAX_CLAIMS:
        raise Unreadable(f"states {len(stated)} answers")
    claims = [_claimed(content, known) for content, _ in stated]
    if not claims[-1]:
        raise Unreadable("states an answer that names no choice")
    behind = _mentions(text[stated[-1][1] :], known)
    return _only(behind.union(*claims))


def _unmarked(text: str, known: Mapping[str, str]) -> str:
    """A last line that is a choice, or picks one by `B`, `(B)`, `B) ...` or `**B**`; no other above."""
    line = last_line(text)
    by_text = _by_text(line, known)
    if by_text:
        return _only({by_text} | _mentions(text[: text.rindex(line)], known))
    picked = {letter.upper() for match in PICKED.findall(line) for letter in match if letter} & known.keys()
    if not picked or NEGATED.search(line):
        raise Unreadable("picks no choice")
    return _only(picked | _mentions(_without_choice(text, min(picked), known), known))


def _claimed(content: str, known: Mapping[str, str]) -> set[str]:
    """The letters a stated answer names; none where it denies, or says something else."""
    content = WRAPPER.sub(r"\1", content).strip()
    if by_text := _by_text(content, known):
        return {by_text}
    bare = re.sub(r"[^\w]+", "", content[:40]).upper()
    if len(content) <= 40 and bare in known and len(bare) == 1:
        return {bare}
    first = ALONE.search(content)
    if first is None or NEGATED.search(content[: first.start()]):
        return set()
    letter = (first[1] or first[2]).upper()
    return _mentions(_without_choice(content, letter, known), known)


def _without_choice(content: str, letter: str, known: Mapping[str, str]) -> str:
    """`B) Vitamin C` without the text of choice B, whose letters are no hedge; any other text stays."""
    at = re.search(rf"\(?(?<![\w]){letter}[).:*\s]{{1,4}}", content)
    stated = known.get(letter, "")
    if at is None or not stated:
        return content
    rest = content[at.end() :]
    line, _, later = rest.partition("\n")
    return content[: at.end()] + later if _normal(line) == stated else content


def _mentions(text: str, known: Mapping[str, str]) -> set[str]:
    return {(match[1] or match[2]).upper() for match in ALONE.finditer(text)} & known.keys()


def _only(letters: set[str]) -> str:
    if len(letters) != 1:
        raise Unreadable(f"names {' and '.join(sorted(letters))}" if letters else "picks no choice")
    return next(iter(letters))


def _by_text(said: str, known: Mapping[str, str]) -> str:
    """The letter of the choice with this text; "" where none or several have it."""
    normal = _normal(said) if len(said) <= 4000 else ""
    letters = [letter for letter, stated in known.items() if stated == normal]
    return letters[0] if normal and len(letters) == 1 else ""


def _normal(text: str) -> str:
    return " ".join(ORNAMENT.sub("", WRAPPER.sub(r"\1", text)).casefold().split()).rstrip(".").strip()


def _known(choices: Any, letters: str) -> dict[str, str]:
    """Letter -> the choice's text in one spelling, "" where the row does not give it."""
    if choices is None:
        return dict.fromkeys(letters, "")
    if isinstance(choices, Mapping):
        given, texts = "".join(str(letter) for letter in choices), list(choices.values())
    else:
        texts = list(choices) if isinstance(choices, Sequence) and not isinstance(choices, str) else []
        given = letters[: len(texts)]
    if not 2 <= len(texts) <= len(letters) or given != letters[: len(texts)]:
        raise ValueError(
            f"multiple_choice: choices = {shown(choices)}; expected 2 to {len(letters)} texts in order, "
            f'or an object {{"A": text, "B": text, ...}}'
        )
    return {letter: _normal(str(text)) for letter, text in zip(given, texts, strict=True)}


def _gold(answer: Any, known: Mapping[str, str]) -> str:
    if isinstance(answer, str):
        letter = answer.strip().strip("().").upper()
        if letter in known:
            return letter
        if by_text := _by_text(answer, known):
            return by_text
    raise ValueError(
        f"multiple_choice: answer = {shown(answer)}; expected one of the letters {', '.join(known)}, or the "
        "exact text of one of the row's choices"
    )
