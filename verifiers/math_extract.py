"""A completion -> the answer it states: the last closed box, an answer tag, or the last number."""

import re
from typing import Literal, get_args

Extract = Literal["boxed", "answer_tag", "last_number"]
EXTRACTS = get_args(Extract)
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
TOKEN = re.compile(r"\\boxed\s*(?P<bare>\d+|[A-Za-z])(?![A-Za-z])|\\.|[{}]", re.DOTALL)
TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
SAID = re.compile(r"(?:final\s+)?answer\s*(?:is\b\s*:?|:)\s*([^\n]+)", re.IGNORECASE)
MARK = re.compile(r"^####\s*(\S[^\n]*)$", re.MULTILINE)
PHANTOM = re.compile(r"\\[hv]?phantom\s*\{")
FEW_BOXES = 3  # looked at from the end, before all of the text is
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
NUMBER = re.compile(
    r"-?(?:\\frac\{-?\d+\}\{-?\d+\}|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+|[eE][+-]?\d+)?|\.\d+)%?"
)


def stated_answer(text: str, extract: Extract = "boxed") -> str | None:
    """The answer stated in a text without its thinking, or None when it states none.

    A closed box always wins, since prose never overrides a box. `answer_tag` then takes the last
    `<answer>...</answer>`, `####` line or "answer: ..." line, and `last_number` also the last number.
    """
    if extract not in EXTRACTS:
        raise ValueError(f"math_answer: extract = {extract!r}; expected one of {', '.join(EXTRACTS)}")
    box = last_box(text)
    if box is not None:
        return box.strip() or None
    if extract == "boxed":
        return None
    for pattern in (TAG, MARK, SAID):
        found = pattern.findall(text)
        if found:
            stated = found[-1].strip()
            return (stated.strip(" *_`") if pattern is SAID else stated).rstrip(".") or None
    if extract == "last_number":
        numbers = NUMBER.findall(text)
        return numbers[-1] if numbers else None
    return None


def last_box(text: str) -> str | None:
    """What stands in the last `\\boxed{...}` that closes; of nested boxes the innermost content.

    One pass with a stack: a megabyte of braces costs what a megabyte of prose costs.
    """
    text = visible(text)
    found = _last_of_few(text)
    if found is not None:
        return text[slice(*found)]
    begins = {match.end(): match.end() + 1 for match in BOX.finditer(text)}  # opening brace -> content
    opened: list[int | None] = []  # for each open brace, where its box's content begins
    last: tuple[int, int] | None = None
    for match in TOKEN.finditer(text):
        if match["bare"]:
            last = match.span("bare")
        elif match.group() == "{":
            opened.append(begins.get(match.start()))
        elif match.group() == "}" and opened:
            begin = opened.pop()
            # A box that closes around another one began before it: the inner one says the answer.
            if begin is not None and (last is None or begin > last[0]):
                last = (begin, match.start())
    return text[slice(*last)] if last else None


def _last_of_few(text: str) -> tuple[int, int] | None:
    """Where the last closed box's content is, if it is among the last few boxes; None leaves it to the pass.

    Looked at from the end, which spares a long text's every brace. Whether a box closes depends on what
    follows it alone, and of those that close the one that begins last says the answer.
    """
    at = len(text)
    for _ in range(FEW_BOXES):
        at = max(text.rfind(r"\boxed", 0, at), text.rfind(r"\fbox", 0, at))
        if at < 0:
            return None
        token = TOKEN.match(text, at)
        escaped = (at - len(text[:at].rstrip("\\"))) % 2  # the second sign of `\\` begins no command
        if token and token["bare"] and not escaped:
            return token.span("bare")
        box = BOX.match(text, at)
        if box and text[box.end() : box.end() + 1] == "{" and (end := _closing(text, box.end())) is not None:
            return box.end() + 1, end
    return None


def _closing(text: str, opening: int) -> int | None:
    """Where the brace opened at `opening` closes."""
    depth = 0
    for brace in BRACE.finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if not depth:
            return brace.start()
    return None


def visible(text: str) -> str:
    """The text without `\\phantom{...}`, which nobody sees; one that never closes hides the rest."""
    shown, at = [], 0
    while match := PHANTOM.search(text, at):
        shown.append(text[at : match.start()])
        depth, at = 1, len(text)
        for brace in BRACE.finditer(text, match.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if not depth:
                at = brace.end()
                break
    return "".join(shown) + text[at:]
