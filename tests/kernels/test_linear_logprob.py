"""kernels/linear_logprob.py against the reference vectors, the plain computation and finite differences."""

import pytest
import torch

from tests.kernels.watch import Watch
from tests.vectors import load
from verigrad.kernels import linear_logprob as module
from verigrad.kernels.linear_logprob import linear_collision, linear_logprob, linear_logprob_reference


def make(num_tokens=7, hidden_size=5, vocab=11, dtype=torch.float64, bias=False):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    labels = torch.randint(vocab, (num_tokens,), generator=generator)
    return (
        normal(num_tokens, hidden_size),
        normal(vocab, hidden_size),
        labels,
        normal(vocab) if bias else None,
    )


@pytest.mark.parametrize("chunk_tokens", [1, 2, 1024])
@pytest.mark.parametrize("name", ["selective_logprob_T1.0", "selective_logprob_T0.7"])
def test_logprobs_match_the_reference(name, chunk_tokens):
    vector = load(name)
    start = vector.params["prompt_len"]
    hidden = vector.tensor("logits")[0][start - 1 : -1]  # an identity head turns logits into themselves
    labels = torch.tensor(vector.inputs["input_ids"])[0, start:]
    logprobs, entropies = linear_logprob(
        hidden,
        torch.eye(5).double(),
        labels,
        temperature=vector.params["temperature"],
        chunk_tokens=chunk_tokens,
    )
    vector.check(logprobs[None], "logprobs")
    vector.check(entropies[None], "entropy")
    vector.check_no_bug(logprobs[None])


def test_entropy_gradient_matches_the_reference():
    vector = load("entropy_grad_logits")
    hidden = vector.tensor("logits")[None].requires_grad_()
    _, entropies = linear_logprob(hidden, torch.eye(5).double(), torch.tensor([0]))
    entropies.sum().backward()
    vector.check(entropies[0], "entropy")
    vector.check(hidden.grad[0], "grad_logits")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_tokens", [3, 7])
def test_gradients_match_finite_differences(bias, chunk_tokens):
    hidden, weight, labels, b = make(bias=bias)

    def both(hidden, weight, b=None):
        return linear_logprob(hidden, weight, labels, temperature=0.7, bias=b, chunk_tokens=chunk_tokens)

    assert torch.autograd.gradcheck(both, (hidden, weight, b) if bias else (hidden, weight))


@pytest.mark.parametrize("parts", [(1.0, 0.0), (0.0, 1.0), (1.0, -0.5)], ids=["logprob", "entropy", "both"])
def test_values_and_gradients_match_the_plain_computation(parts):
    results = []
    for function in (linear_logprob, linear_logprob_reference):
        hidden, weight, labels, bias = make(50, 16, 33, bias=True)
        extra = {"chunk_tokens": 8} if function is linear_logprob else {}
        logprobs, entropies = function(hidden, weight, labels, temperature=1.3, bias=bias, **extra)
        scale = torch.linspace(-1, 1, 50).double()
        (scale * (parts[0] * logprobs + parts[1] * entropies)).sum().backward()
        results.append((logprobs, entropies, hidden.grad, weight.grad, bias.grad))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_bfloat16_inputs_are_computed_in_float32():
    hidden, weight, labels, _ = make(40, 32, 64, dtype=torch.bfloat16)
    logprobs, entropies = linear_logprob(hidden, weight, labels, chunk_tokens=16)
    exact = linear_logprob_reference(hidden.double(), weight.double(), labels)
    assert logprobs.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close((logprobs.double(), entropies.double()), exact, rtol=1e-5, atol=1e-5)
    logprobs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    wide = weight.detach().double().requires_grad_()
    linear_logprob_reference(hidden.detach().double(), wide, labels)[0].sum().backward()
    torch.testing.assert_close(weight.grad.double(), wide.grad, rtol=5e-3, atol=5e-3)


def test_autocast_does_not_round_the_logits():
    hidden, weight, labels, _ = make(dtype=torch.float32)
    plain = linear_logprob(hidden, weight, labels)
    plain[0].sum().backward()
    plain_grad = weight.grad.clone()
    weight.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = linear_logprob(hidden, weight, labels)
        cast[0].sum().backward()
    assert torch.equal(cast[0], plain[0])
    assert torch.equal(weight.grad, plain_grad)


def test_the_same_inputs_give_the_same_bits():
    runs = []
    for _ in range(2):
        hidden, weight, labels, _ = make(64, 16, 50, dtype=torch.float32)
        logprobs, entropies = linear_logprob(hidden, weight, labels, chunk_tokens=10)
        (logprobs + entropies).sum().backward()
        runs.append((logprobs, entropies, hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_tokens_do_not_see_each_other():
    hidden, weight, labels, _ = make()
    spoiled = hidden.detach().clone()
    spoiled[3] = 1e4
    keep = torch.arange(7) != 3
    clean, dirty = (linear_logprob(h, weight, labels, chunk_tokens=4)[0] for h in (hidden, spoiled))
    torch.testing.assert_close(clean[keep], dirty[keep], rtol=1e-12, atol=1e-12)


def test_large_logits_stay_finite():
    hidden, weight, labels, _ = make(dtype=torch.float32)
    logprobs, entropies = linear_logprob(hidden * 1e4, weight, labels)
    (logprobs + entropies).sum().backward()
    assert torch.isfinite(logprobs).all()
    assert torch.isfinite(entropies).all()
    assert torch.isfinite(hidden.grad).all()


def test_no_tokens_are_fine():
    hidden, weight, labels, _ = make(num_tokens=0)
    logprobs, entropies = linear_logprob(hidden, weight, labels)
    (logprobs.sum() + entropies.sum()).backward()
    assert logprobs.shape == entropies.shape == (0,)
    assert weight.grad.abs().max() == 0


def test_entropy_can_be_left_out():
    hidden, weight, labels, _ = make()
    logprobs, entropies = linear_logprob(hidden, weight, labels, entropy=False)
    assert entropies.isnan().all()
    assert not entropies.requires_grad
    logprobs.sum().backward()
    assert torch.isfinite(hidden.grad).all()


def test_all_logits_are_never_held():
    num_tokens, vocab, hidden_size, chunk = 64, 500, 4, 16
    hidden, weight, labels, _ = make(num_tokens, hidden_size, vocab)
    with Watch() as watch:
        logprobs, entropies = linear_logprob(hidden, weight, labels, chunk_tokens=chunk)
        (logprobs + entropies).sum().backward()
    assert watch.largest == chunk * vocab
    with Watch() as watch:
        linear_logprob_reference(hidden, weight, labels)
    assert watch.largest == num_tokens * vocab  # the watch does see them where they are


@pytest.mark.parametrize("chunk_tokens", [4, 7], ids=["chunks", "one_chunk"])
@pytest.mark.parametrize("frozen", ["nothing", "weight", "hidden"])
def test_a_frozen_input_costs_no_product(frozen, chunk_tokens):
    hidden, weight, labels, _ = make()
    inputs = {"weight": weight, "hidden": hidden}
    if frozen in inputs:
        inputs[frozen].requires_grad_(False)
    logprobs, _ = linear_logprob(hidden, weight, labels, chunk_tokens=chunk_tokens)
    with Watch() as watch:
        logprobs.sum().backward()
    # one product for each gradient asked for; before it the logits once more, where they are not kept
    gradients = 2 if frozen == "nothing" else 1
    assert watch.num_products == (2 * (gradients + 1) if chunk_tokens == 4 else gradients)
    assert [name for name, tensor in inputs.items() if tensor.grad is None] == [
        name for name in inputs if name == frozen
    ]


def test_more_than_may_wait_is_computed_again(monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 7 * 11 * 8 - 1)
    hidden, weight, labels, _ = make()
    logprobs, _ = linear_logprob(hidden, weight, labels)
    with Watch() as watch:
        logprobs.sum().backward()
    assert watch.num_products == 3


def test_a_temperature_for_each_token():
    results = []
    for function in (linear_logprob, linear_logprob_reference):
        hidden, weight, labels, bias = make(50, 16, 33, bias=True)
        extra = {"chunk_tokens": 8} if function is linear_logprob else {}
        temperature = torch.linspace(0.5, 2, 50).double()
        logprobs, entropies = function(hidden, weight, labels, temperature=temperature, bias=bias, **extra)
        (logprobs + 0.3 * entropies).sum().backward()
        results.append((logprobs, entropies, hidden.grad, weight.grad, bias.grad))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    hidden, weight, labels, bias = make(50, 16, 33, bias=True)
    sums = linear_collision(hidden, weight, temperature=temperature, bias=bias, chunk_tokens=8)
    p = ((hidden @ weight.T + bias) / temperature[:, None]).softmax(-1)
    torch.testing.assert_close(sums, (p * p).sum(-1).detach(), rtol=1e-12, atol=1e-14)


def test_two_backward_passes_add_up():
    hidden, weight, labels, _ = make()
    logprobs, entropies = linear_logprob(hidden, weight, labels)
    (logprobs + entropies).sum().backward(retain_graph=True)
    once = weight.grad.clone()
    (logprobs + entropies).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * once)


@pytest.mark.parametrize("chunk_tokens", [8, 64])
def test_nothing_unwritten_is_read(poisoned, chunk_tokens):
    hidden, weight, labels, bias = make(50, 16, 33, bias=True)
    logprobs, entropies = linear_logprob(hidden, weight, labels, bias=bias, chunk_tokens=chunk_tokens)
    (logprobs + entropies).sum().backward()
    for tensor in (logprobs, entropies, hidden.grad, weight.grad, bias.grad):
        assert tensor.isfinite().all()


def test_without_gradients_nothing_is_kept_for_a_backward_pass():
    hidden, weight, labels, _ = make()
    with torch.no_grad():
        logprobs, _ = linear_logprob(hidden, weight, labels)
    assert logprobs.grad_fn is None
    assert linear_logprob(hidden.detach(), weight.detach(), labels)[0].grad_fn is None
