"""An algorithm and packed batches -> which batches need no backward pass: their gradient is exactly 0.

The loss of a rollout of advantage 0 is 0 whatever its log-probabilities, if every term has the advantage as
a factor. Such rollouts are common where dynamic sampling is off: all of a group that is solved always, or
never. Their forward pass stays, so that metrics are still over every token that was sampled.
"""

from collections.abc import Sequence

from verigrad.engine.catalogue import ADVANTAGES, LOSSES
from verigrad.engine.schema import Coefs, PackedBatch
from verigrad.engine.settings import Config

PULLS = frozenset({"prime", "dro"})
"""Losses with a term that holds a token near the old policy, whatever its advantage."""


def follows_advantage(cfg: Config, coefs: Coefs) -> bool:
    """Whether every term of the loss has the advantage as a factor, known when rollouts are packed.

    Not so with a KL or entropy term, a likelihood term, losses of pairs, or advantages of tokens.
    """
    a = cfg.algorithm
    if a.loss in PULLS or LOSSES[a.loss].pairs or a.positive_nll_coef:
        return False
    if coefs.entropy or a.kl_coef:
        return False
    return not ADVANTAGES[a.advantage].per_token and a.gamma in (None, 1.0)


def with_gradient(batches: Sequence[PackedBatch], *, skip: bool) -> list[bool]:
    """For each batch whether it needs its backward pass.

    Without `skip` all do. With it those in which a trained token's advantage is not 0; if there is none, the
    smallest, so that every weight has a gradient and the optimizer does what it would have done.
    """
    if not skip or not batches:
        return [True] * len(batches)
    moves = [bool(batch.advantages[batch.loss_mask].any()) for batch in batches]
    if not any(moves):
        moves[min(range(len(batches)), key=lambda i: batches[i].input_ids.numel())] = True
    return moves
