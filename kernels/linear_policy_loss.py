"""Hidden states times the output head to a policy loss and its gradients, in one pass over chunks of logits.

N: tokens. H: hidden size. V: vocabulary. A chunk's logits become its losses, then its gradient in place, then
its part of the gradients of hidden states and head: 6 N H V operations where forward, recomputed logits and
backward take 8. That needs a loss whose tokens do not wait for each other; for one of whole rollouts there is
linear_logprob.py.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from verigrad.kernels.linear_logprob import linear_logprob, linear_logprob_reference
from verigrad.kernels.linear_token_loss import chosen, linear_token_loss
from verigrad.kernels.logit_chunks import Gradients, LogitChunks, Needs, precision
from verigrad.kernels.one_pass import one_pass
from verigrad.kernels.token_objective import TokenColumns, TokenObjective, token_terms

Backend = Literal["auto", "triton", "torch", "reference"]


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A loss and what was seen on the way; NaN and False for tokens that were left out."""

    loss: Tensor  # scalar with gradient to hidden, weight and bias
    logprobs: Tensor  # [N] float32 (float64 for float64 inputs), as all that follows without gradient
    entropies: Tensor  # [N] in nats
    stopped_low: Tensor  # [N] bool: see TokenTerms
    stopped_high: Tensor  # [N] bool


@dataclass(frozen=True, slots=True)
class _Layer:
    """The output head and how to go over it."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    chunk_tokens: int | None
    backend: str


def linear_policy_loss(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    labels: Tensor,  # [N] int64 in [0, V)
    *,
    objective: TokenObjective,
    advantages: Tensor,  # [N]
    loss_weights: Tensor,  # [N]
    old_logprobs: Tensor | None = None,  # [N]; None: this forward's own, every ratio exactly 1
    ref_logprobs: Tensor | None = None,  # [N]
    rollout_logprobs: Tensor | None = None,  # [N]
    temperature: float | Tensor = 1.0,  # one number, or [N]
    bias: Tensor | None = None,  # [V]
    chunk_tokens: int | None = None,
    needs_dw: bool = True,
    measure_all: bool = False,
    backend: Backend = "auto",
) -> PolicyLoss:
    """sum(loss_weights * token loss), see TokenObjective; its backward pass only scales what was found.

    Tokens whose coefficient is known to be zero (weight 0, or advantage 0 where no KL or entropy term is)
    are left out of every product; with `measure_all` their log-probabilities and entropies are found all the
    same. `needs_dw=False` spares the head's gradient, as a head that asks for none does by itself.

    Logits are float32 (float64 for float64 inputs) whatever the inputs and whatever autocast says, and the
    head's gradient is added up in that precision. On CUDA the products of bfloat16 hidden states take the
    head in bfloat16, and a gradient of logits rounded to it. `chunk_tokens=None` takes as many as fit
    0.94 GiB of logits (CPU: 128 MiB). Equal inputs give equal bits.

    Backends: "triton" (CUDA), "torch" (any device), "reference" (holds all logits), "auto". Raises ValueError
    where a column is missing that the objective needs.
    """
    given = (advantages, loss_weights, old_logprobs, ref_logprobs, rollout_logprobs)
    columns = TokenColumns(*(None if c is None else c.detach().to(precision(hidden)) for c in given))  # type: ignore[arg-type]
    _check(objective, columns)
    layer = _Layer(weight if needs_dw else weight.detach(), bias, chunk_tokens, chosen(hidden, backend))
    kept = _kept(objective, columns)  # [N] bool
    if bool(kept.all()):
        return _loss_of(layer, hidden, labels, columns, objective=objective, temperature=temperature)
    index = kept.nonzero()[:, 0]
    part = _loss_of(
        layer,
        hidden.index_select(0, index),
        labels[index],
        columns.select(index),
        objective=objective,
        temperature=_at(temperature, index),
    )
    logprobs, entropies = (_spread(c, index, kept) for c in (part.logprobs, part.entropies))
    if measure_all:
        others = (~kept).nonzero()[:, 0]
        logprobs[others], entropies[others] = _measured(
            layer, hidden.detach()[others], labels[others], temperature=_at(temperature, others)
        )
    low, high = (_spread(c, index, kept) for c in (part.stopped_low, part.stopped_high))
    return PolicyLoss(part.loss, logprobs, entropies, low, high)


def _check(objective: TokenObjective, columns: TokenColumns) -> None:
    if objective.has_kl and columns.ref_logprobs is None:
        raise ValueError(f"kl_estimator = {objective.kl_estimator!r} needs ref_logprobs; give them")
    if objective.correction != "none" and columns.rollout_logprobs is None:
        raise ValueError(f"correction = {objective.correction!r} needs rollout_logprobs; give them")


def _kept(objective: TokenObjective, columns: TokenColumns) -> Tensor:
    kept = columns.loss_weights != 0
    if not objective.has_kl and not objective.has_entropy:
        kept &= columns.advantages != 0
    return kept


def _at(temperature: float | Tensor, index: Tensor) -> float | Tensor:
    if isinstance(temperature, Tensor) and temperature.dim():
        return temperature[index.to(temperature.device)]
    return temperature


def _spread(column: Tensor, index: Tensor, like: Tensor) -> Tensor:
    blank = False if column.dtype == torch.bool else torch.nan
    return torch.full_like(like, blank, dtype=column.dtype).index_copy_(0, index, column)


@torch.no_grad()
def _measured(
    layer: _Layer, hidden: Tensor, labels: Tensor, *, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    if layer.backend == "reference":
        return linear_logprob_reference(
            hidden, layer.weight, labels, temperature=temperature, bias=layer.bias
        )
    return linear_logprob(
        hidden,
        layer.weight,
        labels,
        temperature=temperature,
        bias=layer.bias,
        chunk_tokens=layer.chunk_tokens,
        backend=layer.backend,  # type: ignore[arg-type]
    )


def _loss_of(
    layer: _Layer,
    hidden: Tensor,
    labels: Tensor,
    columns: TokenColumns,
    *,
    objective: TokenObjective,
    temperature: float | Tensor,
) -> PolicyLoss:
    by = {"reference": _by_reference, "torch": _by_torch, "triton": _by_triton}[layer.backend]
    return by(layer, hidden, labels, columns, objective, temperature)


def _by_reference(
    layer: _Layer,
    hidden: Tensor,
    labels: Tensor,
    columns: TokenColumns,
    objective: TokenObjective,
    temperature: float | Tensor,
) -> PolicyLoss:
    logprobs, entropies = linear_logprob_reference(
        hidden, layer.weight, labels, temperature=temperature, bias=layer.bias
    )
    terms = token_terms(objective, columns, logprobs=logprobs, entropies=entropies)
    loss = (columns.loss_weights * terms.values).sum()
    return PolicyLoss(loss, logprobs.detach(), entropies.detach(), terms.stopped_low, terms.stopped_high)


def _by_torch(
    layer: _Layer,
    hidden: Tensor,
    labels: Tensor,
    columns: TokenColumns,
    objective: TokenObjective,
    temperature: float | Tensor,
) -> PolicyLoss:
    low = torch.zeros_like(labels, dtype=torch.bool)
    high = torch.zeros_like(low)

    def token_loss(rows: slice, logprobs: Tensor, entropies: Tensor) -> Tensor:
        part = columns.select(rows)
        terms = token_terms(objective, part, logprobs=logprobs, entropies=entropies)
        low[rows], high[rows] = terms.stopped_low, terms.stopped_high
        return (part.loss_weights * terms.values).sum()

    loss, logprobs, entropies = linear_token_loss(
        hidden,
        layer.weight,
        labels,
        token_loss,
        temperature=temperature,
        bias=layer.bias,
        chunk_tokens=layer.chunk_tokens,
        backend="torch",
    )
    return PolicyLoss(loss, logprobs, entropies, low, high)


def _by_triton(
    layer: _Layer,
    hidden: Tensor,
    labels: Tensor,
    columns: TokenColumns,
    objective: TokenObjective,
    temperature: float | Tensor,
) -> PolicyLoss:
    from verigrad.kernels.triton_rows import PolicyRows

    rows_of = PolicyRows(labels, columns, objective)

    def run(needs: Needs) -> tuple[Tensor, Gradients]:
        chunks = LogitChunks(
            hidden,
            layer.weight,
            layer.bias,
            temperature=temperature,
            chunk_tokens=layer.chunk_tokens,
            narrow=True,
        )
        step = rows_of.step(chunks, gradient=any(needs))
        if any(needs):
            gradients = chunks.backward(step, needs=needs)
        else:
            gradients = Gradients(None, None, None)
            for rows in chunks.chunks():
                step(rows, chunks.logits(rows))
        # float64: the order and number of chunks must not show
        return rows_of.losses.sum(dtype=torch.float64).to(chunks.dtype), gradients

    loss = one_pass(run, hidden, layer.weight, layer.bias)
    return PolicyLoss(loss, rows_of.logprobs, rows_of.entropies, rows_of.low, rows_of.high)
