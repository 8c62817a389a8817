"""The nouns of one step, in the order they are made.

    Problem -> Rollout -> VerifiedGroup -> GroupRewards -> ScoredGroup -> PackedBatch -> LossInputs

P: problems. G: rollouts of one problem. L: tokens of one rollout. T: tokens of one packed batch.
S: rollouts in it. Every [T] and [L] field at column t speaks about token t, except where it says otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from verigrad.verifiers.base import Attempt, Message, Problem, Verdict

FinishReason = Literal["stop", "length", "abort"]
StopReason = Literal[
    "answered",  # a turn without a tool call: the model was done
    "max_turns", "max_tokens", "max_seconds",  # a limit of [agent] or [rollout]
    "too_large",  # it left more files than agent.artifact_mb
    "sandbox_lost", "setup_failed",  # ours: nothing can be said of the attempt
]  # fmt: skip
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Episode:
    """How an attempt in several turns went, tools called in between; see engine/episode.py."""

    stop_reason: StopReason
    transcript: Sequence[Message]  # what followed the prompt: the model's messages and the tools', in order
    snapshot: bytes | None  # the files it left behind, as Sandbox.save packs them; None without a final state
    num_turns: int  # of the model
    num_calls: int  # of tools
    num_errors: int = 0  # calls that were malformed, unknown, or failed
    detail: str = ""  # one line for people: why it was stopped, where that needs saying

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that needs no verifier, or None: a lost sandbox decides nothing, a flood is wrong."""
        if self.stop_reason in ("sandbox_lost", "setup_failed"):
            return Verdict.undecided(f"{self.stop_reason}: {self.detail}")
        if self.stop_reason == "too_large":
            return Verdict.wrong(f"too_large: {self.detail}")
        return None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled attempt: the prompt and all that followed as one token sequence.

    In an episode, what tools answered stands between the sampled tokens, with loss_mask False.
    """

    token_ids: Sequence[
        int
    ]  # [L] prompt, then exactly the ids the engine emitted (EOS included), turn by turn
    loss_mask: Sequence[bool]  # [L] True where the policy sampled the token
    logprobs: Sequence[float]  # [L] under the policy that sampled it, at its temperature; 0.0 elsewhere
    policy_versions: Sequence[int]  # [L] optimizer steps behind the weights that sampled it; -1 elsewhere
    text: str  # what the verifier reads: forced prefix and completion (of an episode: its last turn)
    finish_reason: FinishReason
    seed: int
    episode: Episode | None = None  # None where one completion is all

    def __post_init__(self) -> None:
        lengths = {
            len(self.token_ids), len(self.loss_mask), len(self.logprobs), len(self.policy_versions),
        }  # fmt: skip
        if len(lengths) != 1:
            raise ValueError(
                f"rollout fields disagree on length: {len(self.token_ids)} token_ids, "
                f"{len(self.loss_mask)} loss_mask, {len(self.logprobs)} logprobs, "
                f"{len(self.policy_versions)} policy_versions"
            )

    @property
    def truncated(self) -> bool:
        """Whether the token limit, not the model, ended it."""
        return self.finish_reason != "stop"

    @property
    def settled(self) -> Verdict | None:
        """Its verdict where that needs no verifier."""
        return None if self.episode is None else self.episode.verdict

    @property
    def num_completion_tokens(self) -> int:
        """Tokens the policy sampled."""
        return sum(self.loss_mask)

    @property
    def num_tokens_after_prompt(self) -> int:
        """What rollout.max_tokens bounds: tokens the policy sampled, and in an episode tools' results."""
        return len(self.loss_mask) - self.loss_mask.index(True) if any(self.loss_mask) else 0

    @property
    def attempt(self) -> Attempt:
        """What a verifier gets to see."""
        if self.episode is None:
            return Attempt(self.text, truncated=self.truncated)
        return Attempt(
            self.text,
            truncated=self.truncated,
            transcript=self.episode.transcript,
            snapshot=self.episode.snapshot,
        )


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """G rollouts of one problem, not yet judged."""

    problem: Problem
    rollouts: Sequence[Rollout]  # [G]


@dataclass(frozen=True, slots=True)
class VerifiedGroup:
    """G rollouts of one problem and what the verifier said of each."""

    problem: Problem
    rollouts: Sequence[Rollout]  # [G]
    verdicts: Sequence[Verdict]  # [G]

    @property
    def correctness(self) -> list[float]:
        """Rewards of the decided rollouts, before any shaping."""
        return [v.reward for v in self.verdicts if v.reward is not None]


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A verified group with an advantage for each rollout."""

    problem: Problem
    rollouts: Sequence[Rollout]  # [G]
    verdicts: Sequence[Verdict]  # [G]
    advantages: Sequence[float]  # [G] 0.0 where the verdict is undecided


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rollouts laid end to end without padding; one forward and backward pass.

    The label-aligned fields at column t speak about the token *after* column t, whose log-probability
    the hidden state at t predicts; the last column of each rollout has loss_mask False.
    """

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64, restarts at 0 with each rollout
    cu_seqlens: Tensor  # [S+1] int32 rollout boundaries
    labels: Tensor  # [T] int64 next token
    loss_mask: Tensor  # [T] bool, label-aligned: the label was sampled by the policy and is trained on
    rollout_logprobs: Tensor  # [T] float32, label-aligned: under the policy that sampled
    old_logprobs: Tensor  # [T] float32, label-aligned: under the trainer at the start of the step
    ref_logprobs: Tensor | None  # [T] float32, label-aligned: under the frozen reference
    advantages: Tensor  # [T] float32, label-aligned: the rollout's advantage repeated, or each token's own
    loss_weights: Tensor  # [T] float32, label-aligned: loss = sum(loss_weights * token_loss) over the step
    old_entropy: Tensor | None = None  # [T] float32, label-aligned: nats, under the trainer at the start
    old_collision: Tensor | None = None  # [T] float32, label-aligned: sum of squared probabilities, likewise
    groups: Tensor | None = None  # [S] int64 which group of the step each rollout belongs to
    values: Tensor | None = None  # [T] float32, label-aligned: the critic's, before the label is known
    returns: Tensor | None = None  # [T] float32, label-aligned: what the critic is to say there
    nll_weights: Tensor | None = None  # [T] float32, label-aligned: sums to 1 over the step's right rollouts
    correction_scale: float = 1.0  # what importance weights are multiplied by

    @property
    def num_rollouts(self) -> int:
        """S."""
        return self.cu_seqlens.numel() - 1


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What the loss sees of one micro-batch: the trainable tokens, already selected. N: how many."""

    logprobs: Tensor  # [N] float, with gradient: under the policy being trained
    old_logprobs: Tensor  # [N] float: under the policy the ratio is taken against
    rollout_logprobs: Tensor  # [N] float: as the sampler reported them; NaN where it did not
    ref_logprobs: Tensor | None  # [N] float: under the frozen reference
    entropy: Tensor | None  # [N] float, with gradient: of the whole next-token distribution, in nats
    advantages: Tensor  # [N] float
    weights: Tensor  # [N] float: loss = sum(weights * token loss)
    sequence: Tensor  # [N] int64: index of the token's rollout within the micro-batch
    correction_scale: float = 1.0  # what importance weights are multiplied by
    nll_weights: Tensor | None = None  # [N] float: sums to 1 over the tokens of the step's right rollouts
    groups: Tensor | None = None  # [N] int64: which group of the step the token's rollout belongs to


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A policy loss before correction, KL, entropy and weights."""

    values: Tensor  # [N] with gradient
    stopped_low: Tensor  # [N] bool: a lower bound took this token's gradient away
    stopped_high: Tensor  # [N] bool: an upper bound did
    sums: Mapping[str, Tensor] | None = None  # scalars of its own, which add up over the step


@dataclass(frozen=True, slots=True)
class Coefs:
    """Weights of the loss's side terms, which may adapt from step to step."""

    kl: float
    entropy: float  # as applied
    entropy_next: float = 0.0  # where it adapts: what it has grown to, applied or not


@dataclass(frozen=True, slots=True)
class GroupRewards:
    """What an advantage may look at: the decided rollouts of one kept group. G': how many."""

    rewards: Tensor  # [G'] float64, the verifier's plus shaping
    lengths: Tensor  # [G'] float64 tokens sampled
    right: Tensor  # [G'] bool, whether the verdict says so, whatever it pays
    parts: Mapping[str, Tensor]  # each [G'] float64: the verdict's parts by name
    greedy: float | None = None  # reward of a greedy rollout of the same problem


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of one data set: a row of eval.jsonl, and the groups it came from."""

    row: Mapping[str, object]
    groups: Sequence[VerifiedGroup] = field(repr=False)


def staleness(groups: Sequence[VerifiedGroup], *, now: int) -> Metrics:
    """How many versions the weights have moved on since tokens were sampled: their mean, and the most."""
    ages = [
        now - version
        for group in groups
        for rollout in group.rollouts
        for version, sampled in zip(rollout.policy_versions, rollout.loss_mask, strict=True)
        if sampled
    ]
    mean = sum(ages) / len(ages) if ages else 0.0
    return {"staleness_mean": mean, "staleness_max": float(max(ages, default=0))}
