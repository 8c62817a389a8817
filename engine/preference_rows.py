"""A row of preference data -> a pair of answers to one prompt, or answers labelled good or bad, as text.

Read are the formats of Hugging Face's TRL: `{"prompt", "chosen", "rejected"}` with text or messages, whole
conversations in `chosen` and `rejected` with the prompt in what they share, and `{"prompt", "completion",
"label"}`. `p_chosen` and a margin may stand beside a pair.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.engine.data import check_prompt, is_unicode, missing, normalised
from verigrad.engine.rows import BadRow
from verigrad.engine.sft_rows import (
    Encoder,
    Example,
    Messages,
    Source,
    check_conversation,
    renamed,
)

Prompt = str | Messages
Answer = str | Messages
"""Text, or the messages after the prompt where there are several; the last is the assistant's."""
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
TRUE, FALSE = frozenset({"true", "1", "good", "yes"}), frozenset({"false", "0", "bad", "no"})


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, the better one first."""

    prompt: Prompt
    chosen: Answer
    rejected: Answer
    p_chosen: float = 1.0  # probability that `chosen` is the better one
    margin: float | None = None  # by how much, where the row says so


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer that somebody called good or bad."""

    prompt: Prompt
    answer: Answer
    good: bool


def is_pair(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether a row holds two answers rather than one."""
    return any(columns.get(name, name) in row for name in ("chosen", "rejected"))


def to_pair(row: Mapping[str, Any], columns: Mapping[str, str], *, margin_column: str = "") -> Pair:
    """Name the columns and check the row; `margin_column` is "" where no margin is read.

    Raises BadRow for a row that is malformed, whose answers are the same, or that prefers nothing.
    """
    values = renamed(row, columns)
    for name in ("chosen", "rejected"):
        if values.get(name) is None:
            told = "; single answers with a label are for prefer.loss = 'kto'" if "label" in values else ""
            raise BadRow(missing(name, row, f'name it with data.columns = {{{name} = "..."}}{told}'))
    prompt, chosen, rejected = _three(values, row)
    require_unicode(prompt, chosen, rejected)
    if _as_text(chosen) == _as_text(rejected):
        raise BadRow("has a chosen answer that is the rejected one, which prefers nothing")
    p_chosen = values.get("p_chosen")
    p_chosen = 1.0 if p_chosen is None else _number(p_chosen, "p_chosen")
    if not 0 <= p_chosen <= 1:
        raise BadRow(f"has p_chosen = {p_chosen:g}, expected a probability from 0 to 1")
    margin = None
    if margin_column:
        if values.get(margin_column) is None:
            raise BadRow(missing(margin_column, row, "it is named as the column of margins; correct that"))
        margin = _number(values[margin_column], margin_column)
    return Pair(prompt, chosen, rejected, p_chosen, margin)


def to_labelled(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Labelled]:
    """One labelled answer; of a pair both, the chosen one as good and the rejected one as bad."""
    if is_pair(row, columns):
        pair = to_pair(row, columns)
        if pair.p_chosen != 1:
            raise BadRow(
                f"has p_chosen = {pair.p_chosen:g}, and single answers are good or bad, nothing between; "
                "take a loss of pairs (prefer.loss = 'dpo'), or rows without p_chosen"
            )
        return [Labelled(pair.prompt, pair.chosen, True), Labelled(pair.prompt, pair.rejected, False)]
    values = renamed(row, columns)
    for name in ("prompt", "completion", "label"):
        if values.get(name) is None:
            raise BadRow(missing(name, row, f'name it with data.columns = {{{name} = "..."}}'))
    prompt = check_prompt(values["prompt"])
    answer = check_answer(values["completion"], "completion")
    require_unicode(prompt, answer)
    return [Labelled(prompt, answer, _label(values["label"]))]


def encode(encoder: Encoder, prompt: Prompt, answer: Answer) -> Example:
    """Prompt and answer as tokens, those of the answer learned; raises BadRow as `encoder` does."""
    if isinstance(answer, str):
        return encoder(Source(prompt, answer))
    given: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return encoder(Source([*given, *answer], None, num_given=len(given)))


def require_unicode(*texts: str | Sequence[Mapping[str, Any]]) -> None:
    """Raise BadRow for text that cannot be written as UTF-8."""
    if not all(map(is_unicode, texts)):
        raise BadRow("has text with half a surrogate pair, which no tokenizer takes")


def check_answer(answer: Any, name: str) -> Answer:
    """Text that is not blank, or messages that end with the assistant's; one such message is its text."""
    if isinstance(answer, str):
        if not answer.strip():
            raise BadRow(f"has an empty {name} answer, from which nothing can be learned")
        return answer
    if not isinstance(answer, list | tuple):
        raise BadRow(f"has a {name} answer that is {answer!r:.60}, expected text or a list of messages")
    first = answer[0].get("role") if answer and isinstance(answer[0], Mapping) else None
    if first != "assistant":
        raise BadRow(f"has a {name} answer whose first message is of {first!r}, expected 'assistant'")
    messages = check_conversation([{"role": "user", "content": "x"}, *answer])[1:]
    return messages[0]["content"] if len(messages) == 1 else messages


# Where the prompt is ----------------------------------------------------------------------------------------


def _three(values: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[Prompt, Answer, Answer]:
    """Prompt, chosen and rejected answer of a row in any of the formats."""
    given = values.get("prompt")
    chosen, rejected = values["chosen"], values["rejected"]
    if given is None:
        chosen, rejected = (_conversation_of(each) for each in (chosen, rejected))
        if isinstance(chosen, str) or isinstance(rejected, str):
            raise BadRow(missing("prompt", row, 'name it with data.columns = {prompt = "..."}'))
    if _is_whole(chosen) and _is_whole(rejected):
        return _parted(given, check_conversation(chosen), check_conversation(rejected))
    if given is None:
        raise BadRow("has no prompt: chosen and rejected do not both begin with the user's message")
    return check_prompt(given), check_answer(chosen, "chosen"), check_answer(rejected, "rejected")


def _is_whole(answer: Any) -> bool:
    """Whether this is a conversation from its beginning rather than an answer alone."""
    if not isinstance(answer, list | tuple) or not answer or not isinstance(answer[0], Mapping):
        return False
    return answer[0].get("role") in ("user", "system")


def _parted(given: Any, chosen: Messages, rejected: Messages) -> tuple[Prompt, Answer, Answer]:
    """Conversations cut where they part, before the assistant's turn; a prompt given too must be theirs."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise BadRow("has a chosen answer that is the rejected one, which prefers nothing")
    while shared and (shared in (len(chosen), len(rejected)) or chosen[shared - 1]["role"] == "assistant"):
        shared -= 1
    prompt = chosen[:shared]
    if not any(message["role"] == "user" for message in prompt):
        raise BadRow("has conversations without a common beginning, so there is no prompt both answer")
    if given is not None and normalised(check_prompt(given)) not in normalised(prompt):
        raise BadRow("has a prompt that is not in what chosen and rejected begin with; correct or drop it")
    return prompt, check_answer(chosen[shared:], "chosen"), check_answer(rejected[shared:], "rejected")


def _conversation_of(text: Any) -> Any:
    """Text in which `Human:` and `Assistant:` take turns (Anthropic's hh-rlhf) as messages; else as it is."""
    if not isinstance(text, str) or not TURN.match(text):
        return text
    parts = TURN.split(text)
    return [
        {"role": ROLES[name], "content": content.strip()}
        for name, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


# Values -----------------------------------------------------------------------------------------------------


def _as_text(answer: Answer) -> str:
    return answer.strip() if isinstance(answer, str) else repr(answer)


def _number(value: Any, name: str) -> float:
    """A finite number, or text that is one, as in a CSV file."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"has {name} = {value!r:.60}, expected a number")
    return number


def _label(value: Any) -> bool:
    word = str(value).strip().casefold()
    if word in TRUE | FALSE:
        return word in TRUE
    raise BadRow(f"has a label that is {value!r:.60}, expected true (a good answer) or false")
