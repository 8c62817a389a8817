"""Text and the expected answer -> right when they are the same string."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from verigrad.verifiers.base import Verdict, verifier

MAX_EXTRACTED = 400  # characters: longer texts vote by their beginning


@verifier("exact_match", version="2", runs="inline", canary={"response": "yes", "answer": "yes"})
def exact_match(text: str, answer: Any, casefold: bool = False, collapse_whitespace: bool = False) -> Verdict:
    """Right if the final text, stripped, equals the answer (or one of a list of answers).

    `casefold` ignores upper and lower case; `collapse_whitespace` reads any run of blanks as one blank.
    """

    def normal(value: Any) -> str:
        string = str(value).strip()
        string = " ".join(string.split()) if collapse_whitespace else string
        return string.casefold() if casefold else string

    if answer is None:
        return Verdict.undecided("the problem has no answer to compare with")
    several = isinstance(answer, Sequence) and not isinstance(answer, str)
    accepted = {normal(one) for one in (answer if several else [answer])}
    found = normal(text)
    if not found:
        return Verdict.wrong("no text", outcome="unparseable")
    verdict = Verdict.right() if found in accepted else Verdict.wrong("differs")
    return replace(verdict, extracted=found[:MAX_EXTRACTED])
