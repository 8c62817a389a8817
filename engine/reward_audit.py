"""A reward model and held-out answers -> audit.json: what it pays for besides what was preferred.

Length decides whether the model may be used. The rest is told: a reward that does not mind the prompt, that
pays an empty answer, or more for an answer said twice.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verigrad.engine.reward_card import AUDIT
from verigrad.engine.reward_data import Comparison, LabelledSteps
from verigrad.engine.reward_model import AnyRewardModel
from verigrad.engine.reward_text import Prompt, pieces

OWN_PROMPT_WINS = 0.6  # a smaller share says that the prompt hardly matters
EMPTY_WINS = 0.1  # a larger share says that saying nothing pays
REPEATED_WINS = 0.5  # a larger share says that saying it twice pays


def best_answers(
    examples: Sequence[Comparison] | Sequence[LabelledSteps], *, separator: str
) -> tuple[list[Prompt], list[str]]:
    """Prompts and good answers to try things on: the best of each row, or those right in all steps."""
    prompts: list[Prompt] = []
    answers: list[str] = []
    for example in examples:
        if isinstance(example, Comparison):
            prompts.append(example.prompts[0])
            answers.append(example.answers[0])
        elif min(example.labels) > 0.5:
            prompts.append(example.prompt)
            answers.append(_joined(example.steps, separator))
    return prompts, answers


def _joined(steps: Sequence[str], separator: str) -> str:
    return "".join(pieces(steps, separator))


def probe(
    model: AnyRewardModel, prompts: Sequence[Prompt], answers: Sequence[str], *, separator: str
) -> dict[str, Any]:
    """Shares of the answers that lose to the same said to another prompt, to nothing, and to itself twice.

    The other prompt is that of the next answer with another prompt. Shares are NaN where nothing compares.
    """
    own = _rewards(model, prompts, answers)
    others = [_another(prompts, k) for k in range(len(prompts))]
    some = [k for k, other in enumerate(others) if other is not None]
    swapped = _rewards(model, [others[k] for k in some], [answers[k] for k in some])
    empty = _rewards(model, prompts, [""] * len(prompts))
    joint = separator if separator.endswith((" ", "\n")) else " "
    repeated = _rewards(model, prompts, [f"{answer}{joint}{answer}" for answer in answers])
    return {
        "num_answers": len(answers),
        "own_prompt_wins": _share(own[k] > other for k, other in zip(some, swapped, strict=True)),
        "empty_wins": _share(each >= mine for each, mine in zip(empty, own, strict=True)),
        "repeated_wins": _share(each > mine for each, mine in zip(repeated, own, strict=True)),
    }


def _another(prompts: Sequence[Prompt], k: int) -> Any:
    return next((p for p in [*prompts[k + 1 :], *prompts[:k]] if p != prompts[k]), None)


def _rewards(model: AnyRewardModel, prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """NaN, which wins nothing, for what cannot be read."""
    judged = model.judge(prompts, answers)
    return [math.nan if each.reward is None else each.reward for each in judged]


def _share(won: Any) -> float:
    found = [bool(each) for each in won]
    return sum(found) / len(found) if found else math.nan


def report(
    row: Mapping[str, Any],
    probes: Mapping[str, Any],
    *,
    max_length_corr: float,
    agreement: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """audit.json: whether the model is refused and why, what was found, and the numbers behind both.

    `row` is that of comparison_row or steps_row. A correlation that cannot be told, or told from none (its
    95% interval holds 0), refuses nothing: of a handful of pairs any model's is large.
    """
    corr, where = leaning(row, certain=True)
    refused = abs(corr) > max_length_corr
    reason = ""
    if refused:
        reason = (
            f"{where} its reward goes with length by {corr:+.2f} "
            f"(reward.max_length_corr = {max_length_corr:g})"
        )
    return {
        "refused": refused,
        "reason": reason,
        "findings": findings(row, probes, max_length_corr=max_length_corr),
        "max_length_corr": max_length_corr,
        **{k: _finite(v) for k, v in row.items() if k not in ("step", "data")},
        **{k: _finite(v) for k, v in probes.items()},
        "agreement": agreement,
    }


def leaning(row: Mapping[str, Any], *, certain: bool = False) -> tuple[float, str]:
    """The larger correlation of reward and length and where it was seen; 0 where none can be told.

    With `certain`, of those whose 95% interval does not hold 0.
    """
    seen = {"length_corr_equal": "at equal preference", "length_corr_within": "within a prompt"}
    found = [
        (float(row[name]), where)
        for name, where in seen.items()
        if name in row and (not certain or _apart_from_none(row, name))
    ]
    finite = [each for each in found if math.isfinite(each[0])]
    return max(finite, key=lambda each: abs(each[0]), default=(0.0, ""))


def _apart_from_none(row: Mapping[str, Any], name: str) -> bool:
    low, high = (float(row.get(f"{name}{end}", math.nan)) for end in ("_low", "_high"))
    return low > 0 or high < 0


def findings(row: Mapping[str, Any], probes: Mapping[str, Any], *, max_length_corr: float) -> list[str]:
    """What a person should know before paying by this model, one line each."""
    found = []
    if not math.isfinite(float(row["length_corr_equal"])):
        found.append("too few pairs, or all of one length: whether it leans on length cannot be told")
    corr, where = leaning(row)
    if abs(corr) > max_length_corr > abs(leaning(row, certain=True)[0]):
        found.append(
            f"{where} its reward goes with length by {corr:+.2f}, on too few pairs to refuse it for that; "
            "hold out more"
        )
    if probes["own_prompt_wins"] < OWN_PROMPT_WINS:
        found.append(
            f"an answer beats itself said to another prompt in {probes['own_prompt_wins']:.0%} only: the "
            "prompt hardly matters to it"
        )
    if probes["empty_wins"] > EMPTY_WINS:
        found.append(f"an empty answer is worth as much as a good one in {probes['empty_wins']:.0%}")
    if probes["repeated_wins"] > REPEATED_WINS:
        found.append(f"an answer said twice is worth more in {probes['repeated_wins']:.0%}")
    return found


def save(found: Mapping[str, Any], folder: Path) -> None:
    """Write audit.json."""
    (folder / AUDIT).write_text(json.dumps(found, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """What JSON does not know: a number of numpy's."""
    return value.item()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
