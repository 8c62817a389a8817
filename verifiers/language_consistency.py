"""A completion and a language -> the share of it that is written in that language.

DeepSeek-R1 (arXiv 2501.12948) pays the share of target-language words in the chain of thought, which keeps a
policy from mixing languages. Ours also leaves out what has no language.
"""

from typing import Any

from verigrad.verifiers.base import Attempt, Outcome, Verdict, verifier
from verigrad.verifiers.language_detection import known_language, language_of, language_share, normal
from verigrad.verifiers.options import number, one_of, with_options
from verigrad.verifiers.prompt_text import asked

SAME = "prompt"


def warm_up() -> None:
    """Load lingua's models, which takes seconds."""
    language_of("These are a few words, in order to load the models of all the common languages.")


def _language(value: Any) -> str:
    return "" if value == SAME or known_language(value) else f"{SAME!r}, or an ISO 639-1 code such as 'en'"


def _without_effect(mode: str = "share", threshold: Any = None, **_: Any) -> str:
    if mode == "share" and threshold is not None:
        return "threshold has no effect with mode = 'share'; remove it, or set mode = 'gate'"
    return ""


@verifier(
    "language_consistency",
    version="1",
    shaping=True,
    deadline_s=10.0,
    canary={
        "response": "We add both sides of the equation and divide by two.",
        "answer": None,
        "meta": {"language": "en"},
    },
    warm_up=warm_up,
)
@with_options(
    _without_effect,
    language=_language,
    mode=one_of("share", "gate"),
    of=one_of("response", "final_text"),
    threshold=number(0, 1),
)
def language_consistency(
    attempt: Attempt,
    prompt: Any,
    language: str = SAME,
    mode: str = "share",
    of: str = "response",
    threshold: float | None = None,
) -> Verdict:
    """The share of the words that are in the wanted language, or 1 from a threshold on.

    Formulas, code, numbers and names do not count. A text too short to tell is not punished, nor is one whose
    prompt is. Says nothing about being right: join it to a gate in `combine`.
    """
    wanted = language_of(asked(prompt)) if language == SAME else normal(language)
    if wanted is None:
        return Verdict(1.0, "right", reason="the prompt's language cannot be told")
    text = attempt.text if of == "response" else attempt.final_text
    share = language_share(text, wanted)
    if share is None:
        return Verdict(1.0, "right", reason=f"too little text to tell {wanted}")
    reason = f"{100 * share:.0f}% {wanted}"
    if mode == "gate":
        passed = share >= (0.9 if threshold is None else threshold)
        return Verdict(float(passed), "right" if passed else "wrong", {"share": share}, reason)
    outcome: Outcome = "right" if share >= 1 else "partial" if share > 0 else "wrong"
    return Verdict(share, outcome, {"share": share}, reason)
