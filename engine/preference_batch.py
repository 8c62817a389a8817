"""Pairs, or single labelled answers -> packed batches, one optimizer step, and what was measured.

The members of a pair lie in one batch, so a batch's loss is a sum over whole pairs. Sums are divided by the
pairs of the whole optimizer step: how these were packed changes nothing. P: pairs of one batch. A: single
answers of one batch. S: sequences in it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from verigrad.engine.loss import LossSums
from verigrad.engine.pack import first_fit, lay_out
from verigrad.engine.policy import Policy, Update
from verigrad.engine.preference_loss import (
    AnswerLoss,
    AnswerLossFn,
    Answers,
    PairLoss,
    PairLossFn,
    Pairs,
    kl_estimate,
)
from verigrad.engine.prefixes import size_of
from verigrad.engine.schema import Metrics, PackedBatch, Rollout
from verigrad.engine.sft_rows import Example


@dataclass(frozen=True, slots=True)
class PairExample:
    """Two answers to one prompt."""

    chosen: Example
    rejected: Example
    p_chosen: float = 1.0  # probability that `chosen` is the better one
    ref_chosen: float | None = None  # the reference's log-probability: a sum over the answer's tokens, nats
    ref_rejected: float | None = None


@dataclass(frozen=True, slots=True)
class LabelledExample:
    """One answer called good or bad, and the same prompt with the answer to another one; see mismatched()."""

    answer: Example
    good: bool
    mismatched: Example
    ref: float | None = None  # the reference's log-probability of `answer`
    kl_ref: float | None = None  # the same of `mismatched`


@dataclass(frozen=True, slots=True)
class Sequences:
    """Examples as one packed batch, whose own order is by length."""

    packed: PackedBatch
    owners: Tensor  # [T] int64 which of the examples given a column belongs to
    num_tokens: Tensor  # [S] float64 learned tokens of each example given

    def sums(self, logprobs: Tensor) -> Tensor:
        """[N] log-probabilities of the labels that count -> [S] float64, one sum for each example given."""
        owners = self.owners[self.packed.loss_mask].to(logprobs.device)
        zeros = torch.zeros(len(self.num_tokens), dtype=torch.float64, device=logprobs.device)
        return zeros.index_add(0, owners, logprobs.double())


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Whole pairs for one forward and backward pass."""

    sequences: Sequences  # S = 2P: every chosen answer, then every rejected one
    positions: Sequence[int]  # [P] where each pair stands among the examples given
    p_chosen: Tensor  # [P] float64
    ref_chosen: Tensor | None  # [P] float64
    ref_rejected: Tensor | None  # [P] float64


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Single answers for one forward and backward pass, and their mismatched twins for one forward pass."""

    sequences: Sequences  # S = A
    mismatched: Sequences  # S = A
    positions: Sequence[int]  # [A] where each answer stands among the examples given
    good: Tensor  # [A] bool
    ref: Tensor | None  # [A] float64
    kl_ref: Tensor | None  # [A] float64


def mismatched(answer: Example, other: Example, *, max_length: int) -> Example:
    """The prompt of `answer` and the learned part of `other`, cut to `max_length` tokens.

    KTO's reference point is the mean log-ratio of such answers; whoever makes the examples shifts by one.
    """
    prompt = list(answer.token_ids[: _num_before(answer)])
    start = _num_before(other)
    ids, mask = [*prompt, *other.token_ids[start:]], [False] * len(prompt) + [*other.loss_mask[start:]]
    return Example(ids[:max_length], mask[:max_length])


@overload
def batches_of(
    examples: Sequence[PairExample], max_tokens: int, *, share_prefixes: bool = ...
) -> list[PairBatch]: ...
@overload
def batches_of(
    examples: Sequence[LabelledExample], max_tokens: int, *, share_prefixes: bool = ...
) -> list[LabelledBatch]: ...
def batches_of(
    examples: Sequence[PairExample] | Sequence[LabelledExample],
    max_tokens: int,
    *,
    share_prefixes: bool = True,
) -> list[PairBatch] | list[LabelledBatch]:
    """Examples of one kind as batches of at most `max_tokens` computed tokens, none split over two.

    With `share_prefixes` the prompt of a pair counts once.

    Raises ValueError for an example that does not fit; where only some have a reference's log-probability,
    and where nothing of an answer is learned.
    """
    pairs = [example for example in examples if isinstance(example, PairExample)]
    singles = [example for example in examples if isinstance(example, LabelledExample)]
    if pairs and singles:
        raise ValueError("pairs and single answers cannot share a step; give examples of one kind")
    if pairs:
        texts = [(pair.chosen.token_ids, pair.rejected.token_ids) for pair in pairs]
        sizes = [size_of(both, share=share_prefixes) for both in texts]
        return [_pair_batch(pairs, at) for at in first_fit(sizes, max_tokens, what="a pair")]
    sizes = [max(len(one.answer.token_ids), len(one.mismatched.token_ids)) for one in singles]
    return [_labelled_batch(singles, at) for at in first_fit(sizes, max_tokens, what="an answer")]


def update(
    policy: Policy,
    batches: Sequence[PairBatch] | Sequence[LabelledBatch],
    loss: PairLossFn | AnswerLossFn,
    *,
    step: int,
    temperature: float = 1.0,
) -> tuple[Update, Metrics]:
    """One optimizer step over all examples of the batches, each of which weighs the same.

    Metrics: loss, accuracy, margin, grad_norm, lr, num_tokens; of pairs reward_chosen, reward_rejected,
    logprobs_chosen, logprobs_rejected; of single answers reward_good, reward_bad, logprobs_good,
    logprobs_bad, kl_ref. Log-probabilities are means over answers of their sums, kl_ref is in nats per
    answer, NaN where there is none.
    """
    total, kl_ref = sum(len(batch.positions) for batch in batches), None

    def parts() -> Iterator[tuple[Tensor, LossSums]]:
        for batch in batches:
            logprobs = policy.token_logprobs(batch.sequences.packed, temperature=temperature)
            values, sums = _judge(batch, batch.sequences.sums(logprobs), loss, kl_ref)
            part = values.sum() / total
            yield part, {"loss_sum": part.detach(), **{name: x.sum() for name, x in sums.items()}}

    kl_ref = _kl_ref(policy, batches, temperature=temperature)
    done = policy.step(parts(), step=step, weighs=total > 0)
    metrics = metrics_of(done.sums)
    if kl_ref is not None:
        metrics["kl_ref"] = float(kl_ref)
    return done, metrics | {"grad_norm": done.grad_norm, "lr": done.lr}


@torch.no_grad()
def reference_sums(
    policy: Policy,
    batches: Sequence[PairBatch] | Sequence[LabelledBatch],
    *,
    reference: bool = False,
    temperature: float = 1.0,
) -> list[tuple[float, float]]:
    """(ref_chosen, ref_rejected) or (ref, kl_ref) of each example, in the order they were given.

    Of the policy as it is now, which before the first step is the reference; with `reference`, of the one
    that the policy holds.
    """
    found: dict[int, tuple[float, float]] = {}

    def sums(sequences: Sequences) -> list[float]:
        packed = sequences.packed
        values = policy.logprobs(packed, temperature=temperature, reference=reference)
        return [float(value) for value in sequences.sums(values[packed.loss_mask])]

    for batch in batches:
        first = sums(batch.sequences)
        if isinstance(batch, PairBatch):
            half = len(batch.positions)
            both = zip(first[:half], first[half:], strict=True)
        else:
            both = zip(first, sums(batch.mismatched), strict=True)
        found |= dict(zip(batch.positions, both, strict=True))
    return [found[position] for position in sorted(found)]


@dataclass(frozen=True, slots=True)
class Measured:
    """Examples looked at without learning, in the order given. E: how many."""

    values: Tensor  # [E] float64 loss
    agrees: Tensor  # [E] float64 1 where the implicit reward is with the label, 0 where not, a tie 1/2
    margins: Tensor | None  # [E] float64 of pairs: reward of chosen minus that of rejected
    rewards: Tensor | None  # [E] float64 of single answers
    metrics: Metrics  # as of update(), all but grad_norm and lr


@torch.no_grad()
def measure(
    policy: Policy,
    batches: Sequence[PairBatch] | Sequence[LabelledBatch],
    loss: PairLossFn | AnswerLossFn,
    *,
    temperature: float = 1.0,
) -> Measured:
    """The loss and the implicit rewards of examples under the policy as it is now."""
    kl_ref = _kl_ref(policy, batches, temperature=temperature)
    positions: list[int] = []
    columns: dict[str, list[Tensor]] = {}
    for batch in batches:
        packed = batch.sequences.packed
        logprobs = policy.logprobs(packed, temperature=temperature)[packed.loss_mask]
        values, sums = _judge(batch, batch.sequences.sums(logprobs), loss, kl_ref)
        positions += batch.positions
        for name, column in {"values": values, **sums}.items():
            columns.setdefault(name, []).append(column)
    order = torch.tensor(positions, dtype=torch.int64).argsort()
    joined = {name: torch.cat(parts)[order] for name, parts in columns.items()}
    nothing = torch.zeros(0, dtype=torch.float64)
    values = joined.pop("values", nothing)
    mean = values.sum() / max(1, len(values))
    metrics = metrics_of([{"loss_sum": mean, **{name: column.sum() for name, column in joined.items()}}])
    if kl_ref is not None:
        metrics["kl_ref"] = float(kl_ref)
    paired = "reward_chosen" in joined
    return Measured(
        values,
        agrees=joined.get("agrees", nothing),
        margins=joined["reward_chosen"] - joined["reward_rejected"] if paired else None,
        rewards=joined["reward_good"] + joined["reward_bad"] if "reward_good" in joined else None,
        metrics=metrics,
    )


def metrics_of(parts: Sequence[LossSums]) -> Metrics:
    """Sums of batches as means over pairs or answers; a mean over none is NaN."""
    total = {name: float(torch.stack([part[name] for part in parts]).sum()) for name in (parts or [{}])[0]}

    def mean(name: str, of: str) -> float:
        return total.get(name, 0.0) / total[of] if total.get(of) else math.nan

    metrics = {"loss": total.get("loss_sum", 0.0), "num_tokens": total.get("num_tokens", 0.0)}
    metrics["accuracy"] = mean("agrees", "num")
    sides = ("good", "bad") if "num_good" in total else ("chosen", "rejected")
    for side in sides:
        count = f"num_{side}" if "num_good" in total else "num"
        metrics |= {f"{what}_{side}": mean(f"{what}_{side}", count) for what in ("reward", "logprobs")}
    metrics["margin"] = metrics[f"reward_{sides[0]}"] - metrics[f"reward_{sides[1]}"]
    return metrics


# One batch -------------------------------------------------------------------------------------------------


def _judge(
    batch: PairBatch | LabelledBatch,
    sums: Tensor,
    loss: PairLossFn | AnswerLossFn,
    kl_ref: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Values [E] with gradient, and columns [E] that are added up over the step."""
    device = sums.device

    def there(column: Tensor | None) -> Tensor | None:
        return None if column is None else column.to(device)

    num_tokens = batch.sequences.num_tokens.to(device)
    if isinstance(batch, PairBatch):
        half = len(batch.positions)
        pairs = Pairs(
            chosen=sums[:half],
            rejected=sums[half:],
            num_chosen=num_tokens[:half],
            num_rejected=num_tokens[half:],
            ref_chosen=there(batch.ref_chosen),
            ref_rejected=there(batch.ref_rejected),
            p_chosen=there(batch.p_chosen),
        )
        said = loss(pairs)  # type: ignore[arg-type]
        assert isinstance(said, PairLoss), "pairs need a loss of pairs"
        seen = sums.detach()
        return said.values, {
            "num": torch.ones_like(said.agrees),
            "num_tokens": num_tokens[:half] + num_tokens[half:],
            "agrees": said.agrees,
            "reward_chosen": said.reward_chosen,
            "reward_rejected": said.reward_rejected,
            "logprobs_chosen": seen[:half],
            "logprobs_rejected": seen[half:],
        }
    ref, good = there(batch.ref), batch.good.to(device)
    assert ref is not None, "single answers are compared with a reference"
    assert kl_ref is not None, "single answers are compared with a reference"
    answers = Answers(sums, ref=ref, good=good, kl_ref=kl_ref.to(device))
    one = loss(answers)  # type: ignore[arg-type]
    assert isinstance(one, AnswerLoss), "single answers need a loss of single answers"
    is_good, is_bad, seen = good.double(), (~good).double(), sums.detach()
    return one.values, {
        "num": torch.ones_like(one.agrees),
        "num_good": is_good,
        "num_bad": is_bad,
        "num_tokens": num_tokens,
        "agrees": one.agrees,
        "reward_good": one.rewards * is_good,
        "reward_bad": one.rewards * is_bad,
        "logprobs_good": seen * is_good,
        "logprobs_bad": seen * is_bad,
    }


@torch.no_grad()
def _kl_ref(
    policy: Policy, batches: Sequence[PairBatch] | Sequence[LabelledBatch], *, temperature: float
) -> Tensor | None:
    """KTO's reference point over the whole step, before any weight moves; None for pairs."""
    now: list[Tensor] = []
    then: list[Tensor] = []
    for batch in batches:
        if isinstance(batch, LabelledBatch):
            assert batch.kl_ref is not None, "single answers are compared with a reference"
            packed = batch.mismatched.packed
            logprobs = policy.logprobs(packed, temperature=temperature)[packed.loss_mask]
            now.append(batch.mismatched.sums(logprobs))
            then.append(batch.kl_ref)
    return kl_estimate(torch.cat(now), torch.cat(then)) if now else None


# Laying out ------------------------------------------------------------------------------------------------


def _pair_batch(pairs: Sequence[PairExample], positions: Sequence[int]) -> PairBatch:
    mine = [pairs[position] for position in positions]
    return PairBatch(
        sequences=_sequences([pair.chosen for pair in mine] + [pair.rejected for pair in mine]),
        positions=positions,
        p_chosen=torch.tensor([pair.p_chosen for pair in mine], dtype=torch.float64),
        ref_chosen=_column([pair.ref_chosen for pair in mine]),
        ref_rejected=_column([pair.ref_rejected for pair in mine]),
    )


def _labelled_batch(singles: Sequence[LabelledExample], positions: Sequence[int]) -> LabelledBatch:
    mine = [singles[position] for position in positions]
    return LabelledBatch(
        sequences=_sequences([one.answer for one in mine]),
        mismatched=_sequences([one.mismatched for one in mine]),
        positions=positions,
        good=torch.tensor([one.good for one in mine]),
        ref=_column([one.ref for one in mine]),
        kl_ref=_column([one.kl_ref for one in mine]),
    )


def _sequences(examples: Sequence[Example]) -> Sequences:
    rollouts = [
        Rollout(
            token_ids=example.token_ids,
            loss_mask=example.loss_mask,
            logprobs=[0.0] * len(example.token_ids),
            policy_versions=[-1] * len(example.token_ids),
            text="",
            finish_reason="stop",
            seed=0,
        )
        for example in examples
    ]
    num_tokens = [sum(example.loss_mask[1:]) for example in examples]
    if not all(num_tokens):
        raise ValueError("nothing of an answer is learned: its loss_mask is False after the first token")
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].token_ids), reverse=True)
    packed = lay_out([rollouts[i] for i in order])  # sorts by length, and leaves what is sorted as it is
    owners = torch.repeat_interleave(torch.tensor(order), packed.cu_seqlens.diff().long())
    return Sequences(packed, owners, torch.tensor(num_tokens, dtype=torch.float64))


def _column(values: Sequence[float | None]) -> Tensor | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) < len(values):
        raise ValueError(
            "some examples have a reference's log-probability and some have not; give all or none"
        )
    return torch.tensor(known, dtype=torch.float64)


def _num_before(example: Example) -> int:
    return list(example.loss_mask).index(True)
