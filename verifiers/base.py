"""The nouns of verification: a Problem and an Attempt go in, a Verdict comes out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from verigrad.verifiers.services import Service

Outcome = Literal["right", "wrong", "partial", "unparseable", "timeout", "error"]
Message = Mapping[str, Any]  # {"role": str, "content": str, ...}, as chat templates take them


@dataclass(frozen=True, slots=True)
class Problem:
    """One dataset row, ready to be asked and to be checked."""

    id: str
    prompt: str | Sequence[Message]
    answer: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attempt:
    """All that a verifier may see of what the model did about a problem."""

    text: str  # the whole completion, thinking included
    truncated: bool = False  # cut off by the token limit
    transcript: Sequence[Message] = ()  # agent tasks: every turn, in order
    snapshot: bytes | None = None  # agent tasks: the files it left behind, as Sandbox.save packs them
    sandbox: Any = None  # where runs = "sandbox": a clean Sandbox, the snapshot's files in it

    @property
    def final_text(self) -> str:
        """The completion without its thinking: what follows the last `</think>`.

        A thought that was opened and never closed leaves nothing: prose inside it is no answer.
        """
        _, closed, after = self.text.rpartition("</think>")
        said = after if closed else self.text
        said, opened, _ = said.partition("<think>")  # a second thought that never closes is no answer either
        return said if closed or not opened else ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one attempt.

    `reward` is None exactly when `outcome` is "error": the check itself failed (its sandbox died, its worker
    crashed, its judge was unreachable). Undecided is not wrong: such an attempt enters neither its group's
    baseline nor the loss. "timeout" is the attempt's own fault and pays 0.

    `extracted` is the canonical form of what the verifier read as the attempt's answer: equal answers read
    the same, "" is none. Majority votes are counted by it.
    """

    reward: float | None
    outcome: Outcome
    parts: Mapping[str, float] = field(default_factory=dict)  # each component's reward by name
    reason: str = ""  # one line for people; never holds the right answer's secret parts
    seconds: float = 0.0
    extracted: str = ""

    def __post_init__(self) -> None:
        if (self.reward is None) != (self.outcome == "error"):
            raise ValueError(
                f"verdict with reward {self.reward} and outcome {self.outcome!r}: "
                "the reward is None exactly when the outcome is 'error'"
            )
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"verdict with reward {self.reward}: a reward is a finite number or None")
        if not isinstance(self.extracted, str):
            raise ValueError(f"verdict with extracted = {self.extracted!r:.60}: the answer as read is text")

    @property
    def decided(self) -> bool:
        """Whether this verdict may enter a baseline."""
        return self.reward is not None

    @classmethod
    def right(cls, reason: str = "") -> "Verdict":
        """Reward 1."""
        return cls(1.0, "right", reason=reason)

    @classmethod
    def wrong(cls, reason: str = "", *, outcome: Outcome = "wrong") -> "Verdict":
        """Reward 0; `outcome` may say more precisely why (`unparseable`, `timeout`)."""
        return cls(0.0, outcome, reason=reason)

    @classmethod
    def undecided(cls, reason: str) -> "Verdict":
        """The check failed; says nothing about the attempt."""
        return cls(None, "error", reason=reason)


class Verifier(Protocol):
    """Anything with this one method; must not raise on what a model wrote."""

    def verify(self, problem: Problem, attempt: Attempt) -> Verdict:
        """Judge one attempt."""
        ...


Runs = Literal["worker", "inline", "sandbox"]
RUNS: tuple[Runs, ...] = ("worker", "inline", "sandbox")
POLICY_ATTRIBUTE = "__verigrad_policy__"
Plain = TypeVar("Plain")


@dataclass(frozen=True, slots=True)
class Policy:
    """How the engine runs a verifier; written by the `verifier` decorator, with these defaults without it."""

    name: str = ""
    version: str = "0"
    # "worker": a killable process; "sandbox": one that has a clean `sandbox` for each attempt;
    # "inline": trusted pure code, in the engine's own process.
    runs: Runs = "worker"
    deadline_s: float = 10.0  # wall time of one call, enforced by killing the worker
    canary: Mapping[str, Any] | None = (
        None  # {"response", "answer", "prompt"?, "meta"?} that must earn a reward
    )
    warm_up: Callable[[], None] | None = None  # slow imports, done before the clock of a check starts
    control: bool = False  # a reward that knows nothing, on purpose: reported, never refused, never cached
    shaping: bool = False  # pays for the form of an attempt, whatever it answers
    learned: bool = False  # pays what a model says, on a scale of its own without a full reward
    # What the audit takes for a right response to a problem; None where its row has no oracle.
    gold: Callable[[Problem], str | None] | None = None
    # Whether an equal attempt at an equal problem may take this one's verdict from memory. None: yes, unless
    # it asks for the seed, the attempt's place or its siblings.
    cache: bool | None = None
    python: str = ""  # interpreter of another environment to run the workers in; empty is the engine's own
    services: tuple[Service, ...] = ()  # processes that all its workers share, started before they are


def verifier(
    name: str,
    *,
    version: str = "0",
    runs: Runs = "worker",
    deadline_s: float = 10.0,
    canary: Mapping[str, Any] | None = None,
    warm_up: Callable[[], None] | None = None,
    control: bool = False,
    shaping: bool = False,
    gold: Callable[[Problem], str | None] | None = None,
    cache: bool | None = None,
) -> Callable[[Plain], Plain]:
    """Give a plain function or class a name, a version and an execution policy; it stays what it was.

    `control`, `shaping` and `gold` tell the audit what to expect: see docs/audit.md. `cache = False` says
    that two equal attempts may be judged differently: see docs/health.md.
    """
    if runs not in RUNS:
        raise ValueError(f"verifier {name!r}: runs={runs!r} is not available; use one of {', '.join(RUNS)}")
    if not deadline_s > 0:
        raise ValueError(f"verifier {name!r}: deadline_s={deadline_s}; expected a number of seconds above 0")
    if canary is not None and not {"response", "answer"} <= set(canary):
        raise ValueError(f"verifier {name!r}: canary has {sorted(canary)}; it needs 'response' and 'answer'")
    policy = Policy(
        name, version, runs, deadline_s, canary, warm_up, control, shaping, gold=gold, cache=cache
    )

    def mark(target: Plain) -> Plain:
        setattr(target, POLICY_ATTRIBUTE, policy)
        return target

    return mark
