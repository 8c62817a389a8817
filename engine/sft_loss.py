"""Log-probabilities of written answers -> the loss of dynamic fine-tuning (DFT), weighted by themselves."""

import dataclasses

import torch
from torch import Tensor

from verigrad.engine.loss import LossSums, policy_loss
from verigrad.engine.schema import Coefs, LossInputs, TokenLoss


def dft(inputs: LossInputs, coefs: Coefs) -> tuple[Tensor, LossSums]:
    """Minus the weighted sum of p * log p over the learned tokens, with p taken for a constant.

    Wu et al., On the Generalization of SFT (arXiv 2508.05629), equation 9: the gradient of the plain loss is
    that of a policy gradient whose reward is divided by p; times p, the tokens that the model finds unlikely
    no longer outweigh the others. `coefs` are those of policy_loss's side terms, which are none of its own.
    """
    own = inputs.logprobs.detach()
    return policy_loss(
        dataclasses.replace(inputs, old_logprobs=own, rollout_logprobs=own),
        dataclasses.replace(coefs, kl=0.0, entropy=0.0),
        token_loss=_values,
        correction="none",
        correction_low=None,
        correction_high=None,
        off_policy_delta=None,
        kl_estimator=None,
    )


def _values(inputs: LossInputs) -> TokenLoss:
    never = torch.zeros_like(inputs.logprobs, dtype=torch.bool)
    likelihood = inputs.logprobs.detach().exp()
    return TokenLoss(-likelihood * inputs.logprobs, stopped_low=never, stopped_high=never)
