"""A completion -> whether it is one thought followed by one answer, and nothing else."""

from typing import Any

from verigrad.verifiers.base import Outcome, Verdict, verifier
from verigrad.verifiers.marked import short
from verigrad.verifiers.options import flag, with_options

SIGNS = set("<>/\\[]{}")


def _tag(value: object) -> str:
    plain = isinstance(value, str) and 0 < len(value) <= 40 and not set(value) & SIGNS
    return "" if plain and value == str(value).strip() else "a tag's name without brackets, e.g. 'think'"


def _two_tags(think: str = "think", answer_tag: str = "answer", **_: Any) -> str:
    same = think == answer_tag
    return f"think and answer_tag are both {think!r}; name two different tags" if same else ""


@verifier(
    "answer_format",
    version="1",
    runs="inline",
    shaping=True,
    canary={"response": "<think>1 + 1</think><answer>2</answer>", "answer": None},
)
@with_options(_two_tags, think=_tag, answer_tag=_tag, partial=flag)
def answer_format(
    response: str, think: str = "think", answer_tag: str = "answer", partial: bool = False
) -> Verdict:
    """Right if the whole completion is `<think>...</think><answer>...</answer>`, neither of them empty.

    Blanks may stand around and between. `partial` pays the share of the five rules that are kept; they are
    the verdict's parts. What the answer says is not looked at.
    """
    marks = [f"<{think}>", f"</{think}>", f"<{answer_tag}>", f"</{answer_tag}>"]
    counts = [response.count(mark) for mark in marks]
    places = [response.find(mark) for mark in marks]
    one_thought, one_answer = counts[:2] == [1, 1], counts[2:] == [1, 1]
    in_order = one_thought and one_answer and places == sorted(places)
    thought = answer = outside = ""
    if in_order:
        begins = [place + len(mark) for place, mark in zip(places, marks, strict=True)]
        thought, answer = response[begins[0] : places[1]], response[begins[2] : places[3]]
        outside = response[: places[0]] + response[begins[1] : places[2]] + response[begins[3] :]
    rules = {
        "one_thought": one_thought,
        "one_answer": one_answer,
        "in_order": in_order,
        "nothing_else": in_order and not outside.strip(),
        "not_empty": bool(thought.strip() and answer.strip()),
    }
    parts = {name: float(kept) for name, kept in rules.items()}
    broken = [name for name, kept in rules.items() if not kept]
    if not broken:
        return Verdict(1.0, "right", parts)
    reward = sum(parts.values()) / len(parts) if partial else 0.0
    outcome: Outcome = "partial" if reward else "wrong"
    return Verdict(reward, outcome, parts, f"breaks {short(', '.join(broken))}")
