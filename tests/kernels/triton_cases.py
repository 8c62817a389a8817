"""The Triton kernels against float64: run by test_triton.py, in Triton's interpreter or on a GPU.

Its own process, because the interpreter has to be chosen before a kernel is defined.
"""

import os
import warnings

import pytest
import torch

from tests.kernels.inputs import OBJECTIVES, distance, make
from verigrad.kernels import triton_forward, triton_rows
from verigrad.kernels.linear_logprob import linear_logprob, linear_logprob_reference
from verigrad.kernels.linear_policy_loss import linear_policy_loss
from verigrad.kernels.linear_token_loss import linear_token_loss
from verigrad.kernels.token_objective import TokenObjective

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# |log-probability|, |entropy|, relative gradients against float64 of the same inputs
STATED = {
    torch.float32: (2e-5, 1e-5, 1e-5) if INTERPRETED else (2e-5, 1e-5, 2e-5),
    torch.bfloat16: (2e-5, 1e-5, 8e-3),
    torch.float16: (2e-5, 1e-5, 1e-3),
}
DTYPES = pytest.mark.parametrize("dtype", STATED, ids=str)
pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def quiet_numpy():
    with warnings.catch_warnings():  # the interpreter computes both sides of a `where`
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def policy(inputs, objective, **more):
    """(the loss, gradients of hidden states, head and bias)."""
    inputs = inputs.leaves()
    options = {"temperature": inputs.temperature, "chunk_tokens": 16} | inputs.columns | more
    result = linear_policy_loss(
        inputs.hidden, inputs.weight, inputs.labels, objective=objective, bias=inputs.bias, **options
    )
    (2 * result.loss).backward()
    return result, [t.grad for t in (inputs.hidden, inputs.weight, inputs.bias) if t is not None]


def assert_close(found, exact, *, dtype, scale=1.0):
    logprob, entropy, gradient = STATED[dtype]
    (result, grads), (right, exact_grads) = found, exact
    left_out = right.logprobs.isnan()
    assert torch.equal(result.logprobs.isnan().cpu(), left_out)
    assert (result.logprobs.cpu() - right.logprobs)[~left_out].abs().max() <= logprob
    assert (result.entropies.cpu() - right.entropies)[~left_out].abs().max() <= entropy
    assert abs(result.loss.item() - right.loss.item()) <= scale * logprob
    assert torch.equal(result.stopped_low.cpu(), right.stopped_low)
    assert torch.equal(result.stopped_high.cpu(), right.stopped_high)
    for grad, wanted in zip(grads, exact_grads, strict=True):
        assert grad.dtype == dtype
        assert distance(grad, wanted) <= gradient


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@DTYPES
def test_every_type_is_within_its_stated_error(dtype, bias):
    inputs = make(vocab=1003, bias=bias).to(dtype)  # rows that are no multiple of anything
    objective = OBJECTIVES["kl_and_entropy"]
    exact = policy(inputs.to(torch.float64), objective, backend="reference")
    assert_close(policy(inputs.to(dtype, DEVICE), objective, backend="triton"), exact, dtype=dtype)


@pytest.mark.parametrize("with_old", [True, False], ids=["old", "own"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name, with_old):
    inputs = make(21, 16, 50).to(torch.float32)
    more = {} if with_old else {"old_logprobs": None}
    exact = policy(inputs.to(torch.float64), OBJECTIVES[name], backend="reference", **more)
    # a token whose ratio is e^20 makes the loss large
    scale = 1 + exact[0].loss.abs().item()
    found = policy(inputs.to(torch.float32, DEVICE), OBJECTIVES[name], backend="triton", **more)
    assert_close(found, exact, dtype=torch.float32, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_tokens", "vocab"), [(1, 9), (1, 1), (5, 64), (17, 9001)])
def test_edges(num_tokens, vocab, dtype):
    # 9001 columns are three blocks: later ones write where earlier ones stood, and the last is not full
    inputs = make(num_tokens, 16, vocab).to(dtype)
    objective = OBJECTIVES["entropy"]
    exact = policy(inputs.to(torch.float64), objective, backend="reference")
    if vocab == 1:  # nothing to choose: no gradient at all
        found = policy(inputs.to(dtype, DEVICE), objective, backend="triton")
        assert all(grad.abs().max() == 0 for grad in found[1])
        return
    assert_close(policy(inputs.to(dtype, DEVICE), objective, backend="triton"), exact, dtype=dtype)


def test_no_tokens_and_no_gradient():
    result, grads = policy(make(0, 16, 9).to(torch.float32, DEVICE), TokenObjective(), backend="triton")
    assert result.loss.item() == 0
    assert grads[1].abs().max() == 0
    inputs = make(21, 16, 50).to(torch.float32)
    exact, _ = policy(inputs.to(torch.float64), TokenObjective(), backend="reference", measure_all=True)
    there = inputs.to(torch.float32, DEVICE)
    with torch.no_grad():
        result = linear_policy_loss(
            there.hidden, there.weight, there.labels, objective=TokenObjective(), backend="triton",
            temperature=there.temperature, measure_all=True, **there.columns,
        )  # fmt: skip
    assert (result.logprobs.cpu() - exact.logprobs).abs().max() <= 2e-5
    assert not result.loss.requires_grad


@pytest.mark.parametrize("entropy", [True, False], ids=["entropy", "no_entropy"])
@DTYPES
def test_two_passes(dtype, entropy):
    logprob, entropy_error, gradient = STATED[dtype]
    results = []
    for kind in ("exact", "triton"):
        inputs = make(vocab=1003).to(dtype)
        inputs = (inputs.to(torch.float64) if kind == "exact" else inputs.to(dtype, DEVICE)).leaves()
        options = {"chunk_tokens": 16, "backend": "triton"} if kind == "triton" else {}
        function = linear_logprob if kind == "triton" else linear_logprob_reference
        logprobs, entropies = function(
            inputs.hidden, inputs.weight, inputs.labels, temperature=inputs.temperature, **options
        )
        slopes = torch.linspace(-1, 1, 37, device=logprobs.device)
        ((logprobs + 0.5 * entropies if entropy else logprobs) * slopes).sum().backward()
        results.append((logprobs, entropies, inputs.hidden.grad, inputs.weight.grad))
    exact, found = results
    assert (found[0].cpu() - exact[0]).abs().max() <= logprob
    assert (found[1].cpu() - exact[1]).abs().max() <= entropy_error
    assert max(distance(found[i], exact[i]) for i in (2, 3)) <= gradient


@pytest.mark.parametrize("num_shares", [1, 3])
@DTYPES
def test_the_forward_without_logits(dtype, num_shares):
    inputs = make(37, 72, 1003).to(dtype)
    exact = linear_logprob_reference(
        inputs.hidden.double(), inputs.weight.double(), inputs.labels, temperature=inputs.temperature.double()
    )
    there = inputs.to(dtype, DEVICE)
    tile = (16, 64, 32) if INTERPRETED else triton_forward.TILE
    logprobs, entropies, normalizers = (
        t.cpu()
        for t in triton_forward.statistics(
            there.hidden,
            there.weight,
            there.labels,
            temperature=there.temperature,
            tile=tile,
            num_shares=num_shares,
        )
    )
    assert (logprobs - exact[0]).abs().max() <= 2e-5
    assert (entropies - exact[1]).abs().max() <= 1e-5
    logits = inputs.hidden.double() @ inputs.weight.double().T / inputs.temperature.double()[:, None]
    assert (normalizers - logits.logsumexp(-1)).abs().max() <= 2e-5


def test_large_and_far_apart_logits_stay_exact():
    inputs = make(9, 16, 9001, zero_weights=False)
    inputs = type(inputs)(
        inputs.hidden * 40, inputs.weight, inputs.labels, None, inputs.columns, inputs.temperature
    ).to(torch.float32)
    labels = (inputs.hidden @ inputs.weight.T).argmax(-1)
    exact = linear_logprob_reference(
        inputs.hidden.double(), inputs.weight.double(), labels, temperature=inputs.temperature.double()
    )
    there = inputs.to(torch.float32, DEVICE)
    logprobs, entropies = linear_logprob(
        there.hidden, there.weight, labels.to(DEVICE), temperature=there.temperature, backend="triton"
    )
    assert exact[1].min() < 1e-4
    _, without = linear_logprob(
        there.hidden, there.weight, labels.to(DEVICE), entropy=False, backend="triton"
    )
    assert without.isnan().all()
    # logits near 700 are themselves off by 1e-4 in float32
    torch.testing.assert_close(logprobs.cpu().double(), exact[0], rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(entropies.cpu().double(), exact[1], rtol=2e-3, atol=1e-5)


def test_any_loss_of_single_tokens():
    inputs = make(21, 16, 50).to(torch.float32)
    results = []
    for kind in ("exact", "triton"):
        dtype, device = (torch.float64, "cpu") if kind == "exact" else (torch.float32, DEVICE)
        there = inputs.to(dtype, device).leaves()
        loss, *_ = linear_token_loss(
            there.hidden, there.weight, there.labels,
            lambda rows, logprobs, entropies: (logprobs**2).sum() + entropies.sum(),
            chunk_tokens=8, backend="torch" if kind == "exact" else "triton",
        )  # fmt: skip
        loss.backward()
        results.append((loss, there.hidden.grad, there.weight.grad))
    assert max(distance(found.detach(), exact.detach()) for exact, found in zip(*results, strict=True)) < 1e-5


def test_a_bfloat16_gradient_lies_in_its_logits_memory():
    logits = torch.randn(3, 5008, device=DEVICE)[:, :5001]
    out = triton_rows.in_place(logits, torch.bfloat16)
    assert out.data_ptr() == logits.data_ptr()
    assert out.shape == logits.shape
    assert out.stride() == (2 * 5008, 1)


def test_scaling_by_one_touches_nothing():
    values = torch.full((3000,), float("nan"), device=DEVICE)
    values[:2500] = 2.0
    triton_rows.scale_(values[:2500], torch.tensor(1.0, device=DEVICE))
    assert (values[:2500] == 2).all()
    triton_rows.scale_(values[:2500], torch.tensor(-0.5, device=DEVICE))
    assert (values[:2500] == -1).all()
    assert values[2500:].isnan().all()


def test_the_interpreter_is_still_wrong_in_bfloat16_where_kernels_do_not_widen():
    """When this fails the interpreter was mended, and WIDEN can go."""
    if not INTERPRETED:
        return
    inputs = make(16, 32, 64).to(torch.bfloat16)
    parts = torch.empty(1, 4, 16)
    descriptor = triton_forward.TensorDescriptor.from_tensor
    triton_forward.forward_kernel[(1,)](
        descriptor(inputs.hidden, [16, 32]), descriptor(inputs.weight, [64, 32]),
        inputs.labels, torch.ones(16), parts, 16, 64, 32, 64, TILE_N=16, TILE_V=64, TILE_H=32, WIDEN=False,
    )  # fmt: skip
    exact = (inputs.hidden.double() @ inputs.weight.double().T).amax(-1) / torch.log(
        torch.tensor(2.0)
    ).double()
    assert (parts[0, 0] - exact).abs().max() > 1
