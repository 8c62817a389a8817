"""Log-probabilities and advantages to a loss of pairs of a group's rollouts, at each of their tokens.

The pairs of a group are every rollout of positive advantage with every one of negative advantage: with
`best_worst` the two ends, with `group_mean` all above the mean with all below, which is right against wrong.
As in sequence_losses.py, what a rollout has as a whole is repeated at each of its tokens: here the mean loss
of its pairs, so that with the weights of seq_mean_token_mean, 1 / (S n), the only ones it is taken with, the
sum over tokens is the mean over groups of the mean over their pairs, a group weighing as much as it has
rollouts in a pair. S counts these alone: what is undecided, tied or without a counterpart is in no divisor.
No pair is ever divided between micro-batches: pack.py keeps the rollouts of a group together.

The losses are those of preference_loss.py; nothing compares with the policy that sampled.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from verigrad.engine import preference_loss
from verigrad.engine.advantage import AdvantageFn
from verigrad.engine.preference_loss import PairLoss, Pairs, Term, pair_loss
from verigrad.engine.schema import GroupRewards, LossInputs, TokenLoss


def dpo(inputs: LossInputs, *, beta: float, label_smoothing: float, nll_coef: float) -> TokenLoss:
    """DPO on pairs of the policy's own rollouts (online DPO, arXiv 2402.04792)."""
    term = partial(preference_loss.dpo, beta=beta, label_smoothing=label_smoothing)
    return _spread(inputs, term=term, nll_coef=nll_coef)


def ipo(inputs: LossInputs, *, beta: float, nll_coef: float) -> TokenLoss:
    """IPO on pairs of the policy's own rollouts (arXiv 2403.08635); log-ratios are sums over tokens."""
    return _spread(inputs, term=partial(preference_loss.ipo, beta=beta), nll_coef=nll_coef)


def simpo(inputs: LossInputs, *, beta: float, margin: float, nll_coef: float) -> TokenLoss:
    """SimPO (arXiv 2405.14734) on pairs of the policy's own rollouts; it compares with no reference."""
    return _spread(inputs, term=partial(preference_loss.simpo, beta=beta, margin=margin), nll_coef=nll_coef)


LOSSES: Mapping[str, Callable[..., TokenLoss]] = {"dpo": dpo, "ipo": ipo, "simpo": simpo}
"""Names of catalogue.LOSSES that look at pairs of rollouts."""


def only_paired(advantage: AdvantageFn) -> AdvantageFn:
    """The same advantages, but 0 for every rollout that no pair could be made of.

    Those are rollouts without a token, and all of a group that has but one sign, as rounding can leave a tie.
    They would shrink the weight of the step's pairs.
    """

    def paired(groups: Sequence[GroupRewards]) -> list[Tensor]:
        done = []
        for group, values in zip(groups, advantage(groups), strict=True):
            kept = torch.where(group.lengths > 0, values, 0.0)
            both = bool((kept > 0).any()) and bool((kept < 0).any())
            done.append(kept if both else torch.zeros_like(kept))
        return done

    return paired


def members(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """The rollouts of each pair, chosen and rejected, both [K] int64 as `inputs.sequence` numbers them."""
    assert inputs.groups is not None, "losses of pairs are told the groups"
    num, sequence = _num_rollouts(inputs), inputs.sequence
    sign = torch.zeros(num, dtype=torch.int64, device=sequence.device)
    group = torch.full_like(sign, -1)
    sign[sequence] = torch.sign(inputs.advantages).long()  # a rollout has one advantage at all its tokens
    group[sequence] = inputs.groups
    paired = (sign[:, None] > 0) & (sign[None, :] < 0) & (group[:, None] == group[None, :])
    chosen, rejected = paired.nonzero(as_tuple=True)
    return chosen, rejected


def _spread(inputs: LossInputs, *, term: Term, nll_coef: float) -> TokenLoss:
    chosen, rejected = members(inputs)
    said = _judge(inputs, chosen, rejected, term=term, nll_coef=nll_coef)
    num = _num_rollouts(inputs)
    total = said.values.new_zeros(num).index_add(0, chosen, said.values).index_add(0, rejected, said.values)
    ones = torch.ones_like(said.agrees)
    count = ones.new_zeros(num).index_add(0, chosen, ones).index_add(0, rejected, ones)
    values = (total / count.clamp(min=1))[inputs.sequence].to(inputs.logprobs.dtype)
    never = torch.zeros_like(inputs.logprobs, dtype=torch.bool)
    return TokenLoss(
        values, stopped_low=never, stopped_high=never, sums=_sums(said, inputs, chosen, rejected)
    )


def _judge(inputs: LossInputs, chosen: Tensor, rejected: Tensor, *, term: Term, nll_coef: float) -> PairLoss:
    logprobs = _of_rollouts(inputs, inputs.logprobs)
    ref = None if inputs.ref_logprobs is None else _of_rollouts(inputs, inputs.ref_logprobs)
    tokens = _of_rollouts(inputs, torch.ones_like(inputs.advantages))
    pairs = Pairs(
        chosen=logprobs[chosen],
        rejected=logprobs[rejected],
        num_chosen=tokens[chosen],
        num_rejected=tokens[rejected],
        ref_chosen=None if ref is None else ref[chosen],
        ref_rejected=None if ref is None else ref[rejected],
    )
    return pair_loss(pairs, term=term, nll_coef=nll_coef)


@torch.no_grad()
def _sums(said: PairLoss, inputs: LossInputs, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    logprobs = _of_rollouts(inputs, inputs.logprobs)
    return {
        "num_pairs": said.agrees.new_tensor(float(said.agrees.numel())),
        "pair_agrees_sum": said.agrees.sum(),
        "pair_reward_chosen_sum": said.reward_chosen.sum(),
        "pair_reward_rejected_sum": said.reward_rejected.sum(),
        "pair_margin_sum": (said.reward_chosen - said.reward_rejected).sum(),
        "pair_logprobs_chosen_sum": logprobs[chosen].sum(),
        "pair_logprobs_rejected_sum": logprobs[rejected].sum(),
    }


def _of_rollouts(inputs: LossInputs, column: Tensor) -> Tensor:
    """[N] values of tokens -> [S] float64 sums of rollouts."""
    zeros = torch.zeros(_num_rollouts(inputs), dtype=torch.float64, device=column.device)
    return zeros.index_add(0, inputs.sequence, column.double())


def _num_rollouts(inputs: LossInputs) -> int:
    return int(inputs.sequence.max()) + 1 if inputs.sequence.numel() else 0
