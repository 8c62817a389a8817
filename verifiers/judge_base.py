"""The nouns of judging by a model: a Question goes in, a Reply comes out. No torch."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Question:
    """One question to a judge, all of it written out."""

    kind: str  # of judge_prompts.KINDS
    text: str
    choices: tuple[str, ...] = ()  # one of these is the judgement; none: free text
    reasons: bool = False  # the judgement stands on the last line, after reasons
    seed: int = 0

    @property
    def key(self) -> str:
        """Tells questions apart: equal for equal text, choices and seed."""
        content = repr((self.text, self.choices, self.reasons, self.seed)).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one question. `text` is None exactly when `error` says why there is none."""

    text: str | None
    probs: Mapping[str, float] | None = None  # choice -> probability of it alone; they need not sum to 1
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0  # tokens at the prices of the settings
    seconds: float = 0.0
    error: str = ""
    fatal: bool = False  # no other question will fare better: a wrong key, no such model, the cost limit

    def __post_init__(self) -> None:
        if (self.text is None) != bool(self.error):
            raise ValueError(f"a reply with text {self.text!r:.40} and error {self.error!r:.40}: one of both")


OnReply = Callable[[int, Reply], None]
"""Told the position of a question and its reply as each arrives, from one thread at a time."""


class Judge(Protocol):
    """A model that answers questions: an endpoint (judge_client.py) or one held here (engine/judging.py)."""

    special_tokens: Sequence[str]  # of its chat template; neutralised in what it judges
    spent: float  # costs so far

    @property
    def identity(self) -> Mapping[str, Any]:
        """Who judges, for records; never a key."""
        ...

    def ask(self, questions: Sequence[Question], *, on_reply: OnReply | None = None) -> list[Reply]:
        """Replies in the order of the questions; a failure is a Reply with an error, never an exception."""
        ...
