"""kernels/token_objective.py against the losses, corrections and KL terms the engine trains with."""

import pytest
import torch

from tests.kernels.inputs import OBJECTIVES, make
from verigrad.engine.divergence import LOG_RATIO_LIMIT
from verigrad.engine.loss import policy_loss
from verigrad.engine.schema import Coefs, LossInputs
from verigrad.engine.token_losses import LOSSES
from verigrad.kernels import token_objective
from verigrad.kernels.token_objective import TokenColumns, TokenObjective, token_terms

NAN = float("nan")


def engines(objective, columns, logprobs, entropies):
    """(loss, tokens stopped low, high) as the engine's policy_loss has them."""
    settings = {
        "clip": {"clip_low": objective.clip_low, "clip_high": objective.clip_high},
        "cispo": {"ratio_floor": objective.ratio_floor, "ratio_cap": objective.ratio_cap},
        "reinforce": {},
    }[objective.loss]
    own = logprobs.detach()
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=own if columns.old_logprobs is None else columns.old_logprobs,
        rollout_logprobs=own if columns.rollout_logprobs is None else columns.rollout_logprobs,
        ref_logprobs=columns.ref_logprobs,
        entropy=entropies,
        advantages=columns.advantages,
        weights=columns.loss_weights,
        sequence=torch.zeros_like(own, dtype=torch.int64),
        correction_scale=objective.correction_scale,
    )
    loss, sums = policy_loss(
        inputs,
        Coefs(kl=objective.kl_coef, entropy=objective.entropy_coef),
        token_loss=lambda given: LOSSES[objective.loss](given, **settings),
        correction=objective.correction,
        correction_low=objective.correction_low,
        correction_high=objective.correction_high,
        off_policy_delta=None,
        kl_estimator=objective.kl_estimator,
    )
    return loss, sums["clip_low_count"], sums["clip_high_count"]


@pytest.mark.parametrize("with_old", [True, False], ids=["old", "own"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_gradient_and_counts_are_the_engines(name, with_old):
    objective, inputs = OBJECTIVES[name], make(60)
    columns = TokenColumns(**(inputs.columns | ({} if with_old else {"old_logprobs": None})))
    generator = torch.Generator().manual_seed(1)
    results = []
    for function in ("ours", "engines"):
        old = inputs.columns["old_logprobs"].nan_to_num(-3.0)
        logprobs = (old + 0.1 * torch.sin(torch.arange(60).double())).requires_grad_()
        entropies = torch.rand(60, generator=generator.manual_seed(1)).double().requires_grad_()
        if function == "engines":
            loss, low, high = engines(objective, columns, logprobs, entropies)
        else:
            terms = token_terms(objective, columns, logprobs=logprobs, entropies=entropies)
            loss = (columns.loss_weights * terms.values).sum()
            low, high = terms.stopped_low.sum().double(), terms.stopped_high.sum().double()
        loss.backward()
        d_entropies = torch.zeros_like(entropies) if entropies.grad is None else entropies.grad
        results.append((loss.detach(), logprobs.grad, d_entropies, low, high))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_the_limit_of_log_ratios_is_the_engines():
    assert token_objective.LOG_RATIO_LIMIT == LOG_RATIO_LIMIT


def test_a_clipped_ratio_by_hand():
    # ratios 1.5, 0.5, 1.5, 0.5; the second and the third push on, the others are stopped
    columns = TokenColumns(
        torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.ones(4), torch.tensor([1.5, 0.5, 1.5, 0.5]).log().neg()
    )
    logprobs = torch.zeros(4, requires_grad=True)
    terms = token_terms(TokenObjective(clip_high=0.28), columns, logprobs=logprobs, entropies=logprobs)
    terms.values.sum().backward()
    torch.testing.assert_close(terms.values.detach(), torch.tensor([-1.28, -0.5, 1.5, 0.8]))
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -0.5, 1.5, 0.0]))
    assert terms.stopped_low.tolist() == [False, False, False, True]
    assert terms.stopped_high.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"loss": "gspo"}, "loss = 'gspo': expected one of clip, cispo, reinforce"),
        ({"correction": "sequence_tis"}, "expected one of none, tis, icepop"),
        ({"kl_estimator": "k4"}, "expected one of k1, k2, k3"),
    ],
)
def test_names_that_are_none_of_ours_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        TokenObjective(**wrong)
