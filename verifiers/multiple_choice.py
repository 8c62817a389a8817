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
    r"\b(?:not|never|neither|nor|cannot|except|wrong|incorrect|false|(?:is|was|are|ca|wo|do|does)nt)\b"
    r"|n['’]t\b|[¬≠]|\\(?:neg|neq|ne|lnot)\b",
    re.IGNORECASE,
)
# What denies a statement that follows at once: `It is not \boxed{B}`, `I do not think that the answer is B`.
DENIED_AHEAD = re.compile(
    r"(?:\b(?:not|never|cannot|neither|except)|n['’]t|[¬≠])\s+"
    r"(?:(?:be|choose|pick|think|believe|say|true|agree|the case|that|the|final|correct|right|answer|option"
    r"|choice|is)\s+)*$",
    re.IGNORECASE,
)
OPENERS = re.compile(r"(?:\\(?:boxed|fbox|text|mathrm|mathbf|textbf)\s?\{|<answer>|[$*_(:\s])+$")
AHEAD = 120  # characters before a statement that are searched for a denial
# What sets a letter off from the words behind it: `B) `, `B: `, `**B.** `, `B - `, `B (`.
MARK = re.compile(r"[ \t*_$`\"'’}]{0,20}([).:\]]{0,5})[\s*_$`\"']{0,20}([,;(\-–—=]?)[ \t*_$`\"']{0,20}")
CLAUSE_END = re.compile(r"[.;\n!?]|\b(?:because|since|as|for)\b")
VERB = re.compile(
    r"(?:is|isn|was|wasn|are|can|cannot|could|would|will|must|may|might|does|doesn|seems|looks|should)\b"
)
REJECTED = re.compile(r"\W*(?:wrong|incorrect|not|never)\W*", re.IGNORECASE)
UNEXPLAINED = re.compile(rf"(?!{JOINED}|(?:which|for|due)\b)\W*\w", re.IGNORECASE)
BARE = re.compile(r"[\s*_$`\"'“”()\[\]{}.,:;!\\]*([A-Ja-j])[\s*_$`\"'“”()\[\]{}.,:;!\\]*")
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
    marked = sorted(boxes(text) + tags(text, "answer"), key=lambda found: found[1])
    stated = [(content, text.rfind(content, 0, end), end) for content, end in marked]
    stated = stated or [(match[1], match.start(), match.end(1)) for match in SAID.finditer(text)]
    if not stated:
        return _unmarked(text, known)
    if len(stated) > MAX_CLAIMS:
        raise Unreadable(f"states {len(stated)} answers")
    claims = [
        set() if _denied_ahead(text[max(0, begin - AHEAD) : begin]) else _claimed(content, known)
        for content, begin, _ in stated
    ]
    if not claims[-1]:
        raise Unreadable("states an answer that names no choice, or denies it")
    letter = _only(set().union(*claims))
    behind = _behind(letter, text[stated[-1][2] :], known, label=False)
    if behind is None:
        raise Unreadable(f"denies {letter}")
    return _only(behind | {letter})


def _unmarked(text: str, known: Mapping[str, str]) -> str:
    """A last line that is a choice, or picks one by `B`, `(B)`, `B) ...` or `**B**`; no other above."""
    line = last_line(text)
    above = _mentions(text[: len(text.rstrip()) - len(line)], known)
    if whole := _whole(line, known):
        return _only({whole} | above)
    spots = [match.start(match.lastindex or 0) for match in PICKED.finditer(line)]
    spots = [at for at in spots if line[at].upper() in known]
    letters = {line[at].upper() for at in spots}
    told = [_told(line, at, known) for at in spots[:1] + spots[1:][-1:]]  # a few: each takes linear time
    picked = letters.union(*told) if all(told) else set()
    if not picked:
        raise Unreadable("picks no choice")
    return _only(picked | above)


def _claimed(content: str, known: Mapping[str, str]) -> set[str]:
    """The letters a stated answer names; none where it denies, or says something else."""
    content = WRAPPER.sub(r"\1", content).strip()
    if whole := _whole(content, known):
        return {whole}
    first = ALONE.search(content)
    return _told(content, first.start(1 if first[1] else 2), known) if first else set()


def _whole(content: str, known: Mapping[str, str]) -> str:
    """The letter that this is, else the one whose text this is, else ""; so a label wins over a text."""
    bare = BARE.fullmatch(content) if len(content) <= 40 else None
    return bare[1].upper() if bare and bare[1].upper() in known else _by_text(content, known)


def _told(content: str, at: int, known: Mapping[str, str]) -> set[str]:
    """The letters named by a statement that picks the one at `at`; none where it denies that one."""
    letter, before = content[at].upper(), content[:at]
    if letter not in known:
        return _mentions(content, known)
    behind = _behind(letter, content[at + 1 :], known, label=True)
    if behind is None or NEGATED.search(before):
        return set()
    beside = _by_text(before.rstrip(" \t(*_,:-"), known)
    return behind | {letter} | ({beside} if beside else _mentions(before, known))


def _behind(letter: str, after: str, known: Mapping[str, str], *, label: bool) -> set[str] | None:
    """The letters named behind a picked one, apart from its own text; None where it is denied.

    None also where the letter is the label (`B) `) of a text that is not its choice's.
    """
    mark = MARK.match(after)
    assert mark is not None  # it matches nothing as well
    separator = (mark[1] + mark[2])[-1:]
    line, _, later = after[mark.end() :].partition("\n")
    plain = _plain(line)
    text = _begins_with(plain.casefold(), known)
    if text and text != known[letter]:
        return {letter, *(other for other, stated in known.items() if stated == text)}
    if text:
        line, separator = (plain[len(text) :] if len(plain) == len(plain.casefold()) else ""), ""
    elif label and separator in (")", ":") and known[letter] and UNEXPLAINED.match(plain):
        return None
    return None if _denies(line, separator) else _mentions(f"{line}\n{later}", known)


def _begins_with(said: str, known: Mapping[str, str]) -> str:
    """The longest of the choices' texts that `said` begins with, up to the end of a word; else ""."""
    found = [
        text
        for text in known.values()
        if text and said.startswith(text) and not re.match(r"\w|[.,/:^-]\w", said[len(text) :][:2])
    ]
    return max(found, key=len, default="")


def _denied_ahead(before: str) -> bool:
    return DENIED_AHEAD.search(OPENERS.sub(" ", before)) is not None


def _denies(rest: str, separator: str) -> bool:
    """Whether the words behind a letter, and behind its own text, deny it.

    Behind a separator stands a text that the row does not give, as in `B. False`: only a verb denies there.
    """
    clause = CLAUSE_END.split(rest, maxsplit=1)[0]
    if separator not in ("", ",", ";") and not VERB.match(clause):
        return REJECTED.fullmatch(clause) is not None
    return NEGATED.search(clause) is not None


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


def _plain(text: str) -> str:
    return " ".join(ORNAMENT.sub("", WRAPPER.sub(r"\1", text)).split())


def _normal(text: str) -> str:
    return _plain(text).casefold().rstrip(".").strip()


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
