"""Token counts to loss weights: how the token losses of one optimizer step become one number.

Every function takes the number of trainable tokens of each rollout of the *whole* optimizer step, over all
micro-batches and ranks, and gives the weight of each of that rollout's tokens. The loss is then
sum(weight * token loss), whichever way the step is cut, ordered or packed. A rollout with no trainable
token (truncated and filtered, undecided) leaves the denominator as well as the numerator.
"""

from collections.abc import Callable, Sequence

AggregateFn = Callable[[Sequence[int]], list[float]]
"""Trainable tokens of each rollout of an optimizer step -> weight of each of its tokens."""


def token_mean(num_tokens: Sequence[int]) -> list[float]:
    """Every token weighs the same (DAPO, arXiv 2503.14476), so long rollouts weigh more."""
    total = sum(num_tokens)
    return [1.0 / total if n else 0.0 for n in num_tokens]


def seq_mean_token_mean(num_tokens: Sequence[int]) -> list[float]:
    """Every rollout weighs the same, shared among its tokens (GRPO, arXiv 2402.03300).

    Tokens of short rollouts weigh more, which favours short right answers and long wrong ones.
    """
    num_rollouts = _num_trained(num_tokens)
    return [1.0 / (num_rollouts * n) if n else 0.0 for n in num_tokens]


def seq_mean_token_sum(num_tokens: Sequence[int]) -> list[float]:
    """The mean over rollouts of the sum over their tokens: the policy gradient as derived (REINFORCE)."""
    num_rollouts = _num_trained(num_tokens)
    return [1.0 / num_rollouts if n else 0.0 for n in num_tokens]


def token_sum(num_tokens: Sequence[int]) -> list[float]:
    """The sum over all tokens: the learning rate then follows how much was sampled."""
    return [1.0 if n else 0.0 for n in num_tokens]


def constant(length: int) -> AggregateFn:
    """The sum over tokens divided by rollouts times a fixed length (Dr. GRPO, arXiv 2503.20783).

    `length` is the longest completion allowed, never the longest seen: that would make the learning
    rate follow the batch.
    """

    def aggregate(num_tokens: Sequence[int]) -> list[float]:
        return [weight / length for weight in seq_mean_token_sum(num_tokens)]

    return aggregate


def _num_trained(num_tokens: Sequence[int]) -> int:
    return sum(n > 0 for n in num_tokens)
