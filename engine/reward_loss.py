"""Rewards of compared answers, or classes of steps, to losses: Bradley-Terry, Plackett-Luce, cross-entropy.

Pure functions of tensors; each gives a loss per pair, ranking or step, so that the caller sets the mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    p_chosen: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Minus log-likelihood [P] of preferences (InstructGPT, arXiv 2203.02155, eq. 1).

    chosen, rejected [P] rewards. `margin` [P] is by how much the chosen one must win (Llama 2, arXiv
    2307.09288, eq. 2). `p_chosen` [P] is the probability that it is the better one, 1 where None. `offset`
    [P] is what something besides the rewards makes of the preference, such as length.
    """
    logit = chosen - rejected
    if offset is not None:
        logit = logit + offset
    if margin is not None:
        logit = logit - margin
    if p_chosen is None:
        return -F.logsigmoid(logit)
    return -(p_chosen * F.logsigmoid(logit) + (1 - p_chosen) * F.logsigmoid(-logit))


def centring(rewards: Tensor) -> Tensor:
    """What keeps rewards around 0: the square of twice their mean (arXiv 2312.09244).

    rewards [..., K] of the answers of one row; of a pair this is (chosen + rejected)^2.
    """
    return (2 * rewards.mean(-1)).square()


def plackett_luce(rewards: Tensor, ranks: Tensor) -> Tensor:
    """Minus log-likelihood of one ranking, a mean over its choices (Plackett 1975; Luce 1959).

    rewards [K]; ranks [K], smaller is better. The best answer is chosen of all, the next of what is left, and
    so on. Tied ones are each chosen of all that rank no better (Breslow 1974). A ranking of two is a pair.
    """
    no_better = ranks[None, :] >= ranks[:, None]  # [K, K]: may still be chosen when answer i is
    left = torch.where(no_better, rewards[None, :], -torch.inf).logsumexp(-1)  # [K]
    choices = no_better.sum(-1) > 1
    return ((left - rewards) * choices).sum() / choices.sum().clamp(min=1)


def step_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Two-class cross-entropy [N] at the ends of steps (arXiv 2211.14275, 2305.20050).

    logits [N, 2]; labels [N] the probability that a step is right, such as the share of continuations from it
    that succeeded (Math-Shepherd, arXiv 2312.08935).
    """
    logp = logits.log_softmax(-1)
    return -(labels * logp[:, 1] + (1 - labels) * logp[:, 0])
