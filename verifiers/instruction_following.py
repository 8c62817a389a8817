"""A completion and the constraints its row sets -> whether all of them hold, as a program can check them.

After IFEval (arXiv 2311.07911), whose rows work as they are.
"""

from collections.abc import Sequence
from typing import Any

from verigrad.verifiers.base import Outcome, Verdict, verifier
from verigrad.verifiers.instruction_checks import KINDS
from verigrad.verifiers.instruction_rows import Constraint, constraints_of
from verigrad.verifiers.options import flag, one_of, with_options
from verigrad.verifiers.prompt_text import asked


@verifier(
    "instruction_following",
    version="1",
    shaping=True,
    deadline_s=30.0,  # a first constraint on the language loads models for some seconds
    canary={
        "response": "yes indeed",
        "answer": None,
        "meta": {"constraints": [{"kind": "words", "n": 2}, {"kind": "lowercase"}]},
    },
)
@with_options(partial=flag, mode=one_of("strict", "loose"))
def instruction_following(
    text: str,
    prompt: Any,
    constraints: Any = None,
    instruction_id_list: Any = None,
    kwargs: Any = None,
    partial: bool = False,
    mode: str = "strict",
) -> Verdict:
    """Right if every constraint of the row holds: lengths, words, case, lists, JSON, language and more.

    `partial` pays the share that holds. `loose` also accepts the text without its first or last line, and
    without asterisks, as the paper does. Says nothing about whether the text is any good.
    """
    wanted = constraints_of(constraints, instruction_id_list, kwargs, asked(prompt))
    spellings = [text] if mode == "strict" else loosened(text)
    parts = {name: float(any(holds(one, said) for said in spellings)) for name, one in wanted}
    if not text.strip():
        return Verdict(0.0, "unparseable", parts, "says nothing")
    share = sum(parts.values()) / len(parts)
    missed = [name for name, held in parts.items() if not held]
    reason = f"{len(parts) - len(missed)} of {len(parts)} hold" + (
        f"; not {', '.join(missed)[:300]}" if missed else ""
    )
    outcome: Outcome = "right" if not missed else "partial" if partial and share > 0 else "wrong"
    return Verdict(share if partial else float(not missed), outcome, parts, reason)


def holds(constraint: Constraint, text: str) -> bool:
    """Whether a text keeps one constraint; a blank text keeps none."""
    return bool(text.strip()) and KINDS[constraint.kind].check(text, constraint.given)


def loosened(text: str) -> Sequence[str]:
    """The paper's eight readings: without the first line, the last, both; each also without asterisks."""
    lines = text.strip().split("\n")
    cut = [text, *("\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(one.replace("*", "") for one in cut)]))
