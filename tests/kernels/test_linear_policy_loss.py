"""The one-pass losses against the plain computation, finite differences and memory full of NaN."""

import dataclasses

import pytest
import torch

from tests.kernels.inputs import OBJECTIVES, distance, make
from tests.kernels.watch import Watch
from verigrad.kernels.linear_logprob import linear_logprob_reference
from verigrad.kernels.linear_policy_loss import linear_policy_loss
from verigrad.kernels.linear_token_loss import linear_token_loss
from verigrad.kernels.token_objective import TokenObjective

pytestmark = pytest.mark.usefixtures("poisoned")

# |log-probability|, |entropy|, relative gradient of hidden states and head against float64 of the same inputs
STATED = {
    torch.float64: (1e-13, 1e-13, 1e-13),
    torch.float32: (1e-5, 1e-5, 1e-5),
    torch.bfloat16: (1e-5, 1e-5, 6e-3),
    torch.float16: (1e-5, 1e-5, 1e-3),
}


def run(inputs, objective=None, **more):
    """(the loss, the inputs with their gradients)."""
    inputs = inputs.leaves()
    options = {"temperature": inputs.temperature, "chunk_tokens": 16} | inputs.columns | more
    result = linear_policy_loss(
        inputs.hidden,
        inputs.weight,
        inputs.labels,
        objective=objective or TokenObjective(),
        bias=inputs.bias,
        **options,
    )
    if result.loss.requires_grad:
        result.loss.backward()
    return result, inputs


def seen(result):
    return result.loss, result.logprobs, result.entropies, result.stopped_low, result.stopped_high


def grads(inputs):
    return [t.grad for t in (inputs.hidden, inputs.weight, inputs.bias) if t is not None]


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dtype", STATED, ids=str)
def test_every_type_is_within_its_stated_error(dtype, bias):
    logprob, entropy, gradient = STATED[dtype]
    inputs = make(vocab=1003, bias=bias).to(dtype)
    objective = OBJECTIVES["kl_and_entropy"]
    result, after = run(inputs, objective, backend="torch")
    exact, right = run(inputs.to(torch.float64), objective, backend="reference")
    assert (
        result.logprobs.dtype
        == result.loss.dtype
        == (torch.float64 if dtype == torch.float64 else torch.float32)
    )
    left_out = exact.logprobs.isnan()
    assert left_out.nonzero().tolist() == [[2]]
    assert torch.equal(result.logprobs.isnan(), left_out)
    assert (result.logprobs - exact.logprobs)[~left_out].abs().max() <= logprob
    assert (result.entropies - exact.entropies)[~left_out].abs().max() <= entropy
    assert float((result.loss - exact.loss).detach().abs()) <= logprob
    for found, wanted in zip(grads(after), grads(right), strict=True):
        assert found.dtype == dtype
        assert distance(found, wanted) <= gradient


@pytest.mark.parametrize("with_old", [True, False], ids=["old", "own"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_agrees_with_the_plain_computation(name, with_old):
    more = {} if with_old else {"old_logprobs": None}
    result, after = run(make(), OBJECTIVES[name], backend="torch", **more)
    exact, right = run(make(), OBJECTIVES[name], backend="reference", **more)
    torch.testing.assert_close(seen(result), seen(exact), rtol=1e-11, atol=1e-13, equal_nan=True)
    torch.testing.assert_close(grads(after), grads(right), rtol=1e-10, atol=1e-13)
    if name == "clip" and with_old:
        assert result.stopped_low.any()
        assert result.stopped_high.any()


class Again(torch.autograd.Function):
    """A one-pass loss of leaves that can be differentiated any number of times, as gradcheck does."""

    @staticmethod
    def forward(ctx, function, *leaves):
        ctx.function, ctx.leaves = function, leaves
        return function(*leaves)

    @staticmethod
    def backward(ctx, d_loss):
        leaves = [leaf.detach().requires_grad_() for leaf in ctx.leaves]
        with torch.enable_grad():
            loss = ctx.function(*leaves)
        return None, *torch.autograd.grad(loss, leaves, d_loss)


@pytest.mark.parametrize("chunk_tokens", [3, None])
@pytest.mark.parametrize("name", ["clip", "reinforce", "entropy", "kl_k2", "kl_k3", "kl_k3_ratio", "tis"])
def test_gradients_match_finite_differences(name, chunk_tokens):
    inputs = make(7, 5, 11, bias=True).leaves()

    def loss(hidden, weight, bias):
        options = inputs.columns | {"temperature": inputs.temperature, "chunk_tokens": chunk_tokens}
        return linear_policy_loss(
            hidden, weight, inputs.labels, bias=bias, objective=OBJECTIVES[name], **options
        ).loss

    assert torch.autograd.gradcheck(
        lambda *leaves: Again.apply(loss, *leaves), (inputs.hidden, inputs.weight, inputs.bias)
    )


@pytest.mark.parametrize(("num_tokens", "vocab"), [(0, 11), (1, 11), (1, 1), (33, 1000), (64, 64)])
@pytest.mark.parametrize("chunk_tokens", [1, 16, None])
def test_edges(num_tokens, vocab, chunk_tokens):
    inputs = make(num_tokens, 8, vocab)
    objective = OBJECTIVES["kl_and_entropy"]
    result, after = run(inputs, objective, chunk_tokens=chunk_tokens)
    exact, right = run(inputs, objective, backend="reference")
    torch.testing.assert_close(seen(result), seen(exact), rtol=1e-11, atol=1e-13, equal_nan=True)
    torch.testing.assert_close(grads(after), grads(right), rtol=1e-9, atol=1e-13)


def test_tokens_that_weigh_nothing_cost_no_product():
    inputs = make(12, 8, 50)
    objective = TokenObjective()
    weights = torch.zeros(12).double()
    weights[:3] = 0.1
    columns = inputs.columns | {"loss_weights": weights}
    columns["advantages"] = columns["advantages"].clone()
    columns["advantages"][1] = 0.0
    inputs = dataclasses.replace(inputs, columns=columns)
    with Watch() as watch:
        result, after = run(inputs, objective)
    assert watch.rows_multiplied == {2}  # two tokens are left
    assert result.logprobs.isfinite().tolist() == [True, False, True] + [False] * 9
    assert after.hidden.grad[[1, *range(3, 12)]].abs().max() == 0
    everything, also = run(inputs, objective, measure_all=True)
    exact = linear_logprob_reference(
        inputs.hidden, inputs.weight, inputs.labels, temperature=inputs.temperature
    )
    torch.testing.assert_close((everything.logprobs, everything.entropies), exact)
    assert torch.equal(also.weight.grad, after.weight.grad)
    kept, _ = run(inputs, dataclasses.replace(objective, entropy_coef=0.1))
    assert kept.logprobs.isfinite().sum() == 3  # with an entropy term, an advantage of 0 still counts


def test_no_token_weighs():
    inputs = make(12, 8, 50)
    inputs = dataclasses.replace(inputs, columns=inputs.columns | {"loss_weights": torch.zeros(12).double()})
    result, after = run(inputs)
    assert result.loss.item() == 0
    assert after.weight.grad.abs().max() == after.hidden.grad.abs().max() == 0


def test_a_head_without_gradient_costs_no_product():
    inputs = make(zero_weights=False)
    counts = {}
    for needs_dw in (True, False):
        with Watch() as watch:
            _, after = run(inputs, needs_dw=needs_dw)
        counts[needs_dw] = watch.num_products
        assert (after.weight.grad is not None) == needs_dw
    assert counts == {True: 9, False: 6}  # three chunks
    with torch.no_grad(), Watch() as watch:
        result, _ = run(inputs)
    assert watch.num_products == 3
    assert not result.loss.requires_grad


def test_all_logits_are_never_held():
    inputs = make(64, 4, 500, zero_weights=False)
    with Watch() as watch:
        run(inputs)
    assert watch.largest == 16 * 500


def test_the_backward_pass_scales():
    _, plain = run(make())
    inputs = make().leaves()
    options = inputs.columns | {"temperature": inputs.temperature, "chunk_tokens": 16}
    result = linear_policy_loss(
        inputs.hidden, inputs.weight, inputs.labels, objective=TokenObjective(), **options
    )
    (-3 * result.loss).backward(retain_graph=True)
    torch.testing.assert_close(inputs.weight.grad, -3 * plain.weight.grad)
    torch.testing.assert_close(inputs.hidden.grad, -3 * plain.hidden.grad)
    with pytest.raises(RuntimeError, match="one backward pass"):
        result.loss.backward()


def test_tiny_float16_gradients_survive_until_the_loss_scale():
    inputs = make().to(torch.float16)
    small = inputs.columns | {"loss_weights": inputs.columns["loss_weights"] * 1e-6}
    inputs = dataclasses.replace(inputs, columns=small).leaves()
    options = inputs.columns | {"temperature": inputs.temperature, "backend": "torch"}
    result = linear_policy_loss(
        inputs.hidden, inputs.weight, inputs.labels, objective=TokenObjective(), **options
    )
    (2**20 * result.loss).backward()
    _, right = run(make().to(torch.float16).to(torch.float64))
    assert distance(inputs.weight.grad, 2**20 * 1e-6 * right.weight.grad) < 1e-3


def test_autocast_rounds_nothing():
    inputs = make().to(torch.float32)
    plain, after = run(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, also = run(inputs)
    assert torch.equal(plain.loss, cast.loss)
    assert torch.equal(after.weight.grad, also.weight.grad)


def test_the_same_inputs_give_the_same_bits():
    inputs = make().to(torch.float32)
    (first, a), (second, b) = run(inputs), run(inputs)
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(x, y) for x, y in zip(grads(a), grads(b), strict=True))


def test_what_the_objective_needs_and_lacks_is_named():
    columns = {"ref_logprobs": None, "rollout_logprobs": None}
    with pytest.raises(ValueError, match="kl_estimator = 'k3' needs ref_logprobs"):
        run(make(), OBJECTIVES["kl_k3"], **columns)
    with pytest.raises(ValueError, match="correction = 'tis' needs rollout_logprobs"):
        run(make(), OBJECTIVES["tis"], **columns)
    with pytest.raises(ValueError, match="expected auto, triton, torch or reference"):
        run(make(), backend="cuda")
    with pytest.raises(ValueError, match="give float64 inputs to 'torch'"):
        run(make(), backend="triton")


def test_any_loss_of_single_tokens_has_its_gradients_in_one_pass():
    inputs, plain = make(bias=True).leaves(), make(bias=True).leaves()
    targets = torch.linspace(-3, 0, 37).double()

    def squared(rows, logprobs, entropies):
        return ((logprobs - targets[rows]) ** 2).sum() + 0.5 * (entropies**2).sum()

    loss, logprobs, entropies = linear_token_loss(
        inputs.hidden,
        inputs.weight,
        inputs.labels,
        squared,
        temperature=inputs.temperature,
        bias=inputs.bias,
        chunk_tokens=16,
    )
    (0.5 * loss).backward()
    exact = linear_logprob_reference(
        plain.hidden, plain.weight, plain.labels, temperature=plain.temperature, bias=plain.bias
    )
    (0.5 * squared(slice(None), *exact)).backward()
    torch.testing.assert_close((logprobs, entropies), tuple(t.detach() for t in exact))
    torch.testing.assert_close(grads(inputs), grads(plain))
