"""Rows of logits to statistics, policy losses and their own gradients, by Triton: one program for each row.

N: tokens. V: vocabulary. C: tokens of a chunk. A row is read twice: once for its denominator and entropy,
once for its gradient, which takes its place, as bfloat16 in the first half of it if wanted. A program holds
the maximum and sums of each lane, so that it waits for the others of its row only once. Exponentials are
base 2; the entropy is summed relative to the maximum, so that it loses nothing to large logits.

Written in the language of Triton 3.6. With TRITON_INTERPRET=1 set before the import it runs on a CPU.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from verigrad.kernels.logit_chunks import LogitChunks
from verigrad.kernels.token_objective import TokenColumns, TokenObjective, correction_bounds

BLOCK = 4096
NUM_WARPS = 8
LOSSES = {"clip": 0, "cispo": 1, "reinforce": 2}
CORRECTIONS = {"none": 0, "tis": 1, "icepop": 2}
ESTIMATORS = {None: 0, "k1": 1, "k2": 2, "k3": 3, "k3_plus": 4, "k3_ratio": 5, "abs": 6}

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOG_RATIO_LIMIT = tl.constexpr(20.0)  # token_objective.py's
LOWEST = tl.constexpr(-1e30)  # below any logit; -inf would make NaN of a lane that saw none


@triton.jit
def row_statistics(base, scale2, V, BLOCK: tl.constexpr):
    """(maximum m, log2 of sum(2^(x - m)), entropy in nats) of x = logits * scale2, a row in base 2."""
    most = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    moment = tl.zeros((BLOCK,), tl.float32)  # sum of 2^(x - m) (x - m)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(base + column, mask=column < V, other=-float("inf")) * scale2
        higher = tl.maximum(most, x)
        step = most - higher
        shrink = tl.exp2(step)
        weight = tl.exp2(x - higher)
        moment = shrink * (moment + total * step) + tl.where(weight > 0, weight * (x - higher), 0.0)
        total = total * shrink + weight
        most = higher
    top = tl.max(most, 0)
    step = most - top
    shrink = tl.exp2(step)
    row_total = tl.sum(total * shrink, 0)
    row_moment = tl.sum(tl.where(shrink > 0, shrink * (moment + total * step), 0.0), 0)
    log_total = tl.log2(row_total)
    return top, log_total, (log_total - row_moment / row_total) * LN_2


@triton.jit
def write_gradient(
    base, out, label, scale2, inverse, top, log_total, entropy, d_logprob, d_entropy, V,
    HAS_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d_logprob (onehot - p) - d_entropy p (log p + H), times the inverse temperature, into `out`.

    `out` may be the row's own first half: then block i writes where blocks up to i / 2 stood.
    """
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(base + column, mask=column < V, other=-float("inf")) * scale2
        log2_p = x - top - log_total
        p = tl.exp2(log2_p)
        gradient = tl.where(column == label, d_logprob, 0.0) - d_logprob * p
        if HAS_ENTROPY:
            gradient -= tl.where(p > 0, d_entropy * p * (log2_p * LN_2 + entropy), 0.0)
        tl.debug_barrier()  # other warps have read this block, before anything is written into it
        tl.store(out + column, (gradient * inverse).to(out.dtype.element_ty), mask=column < V)


@triton.jit
def bounded(log_ratio):
    """A log-ratio held within the limit; NaN stays NaN."""
    held = tl.minimum(tl.maximum(log_ratio, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT)
    return tl.where(log_ratio == log_ratio, held, log_ratio)


@triton.jit
def is_finite(value):
    """False for NaN and infinities."""
    return tl.abs(value) < float("inf")


@triton.jit
def k3_value(d):
    """exp(-d) - 1 + d without the cancellation at small d."""
    series = d * d * (0.5 - d * (1.0 / 6 - d * (1.0 / 24 - d * (1.0 / 120 - d / 720))))
    return tl.where(tl.abs(d) < 0.1, series, tl.exp(tl.minimum(-d, LOG_RATIO_LIMIT)) - 1.0 + d)


@triton.jit
def k3_slope(d):
    """Derivative of k3_value: 1 - exp(-d)."""
    series = d * (1.0 - d * (0.5 - d * (1.0 / 6 - d * (1.0 / 24 - d / 120))))
    held = tl.where(-d > LOG_RATIO_LIMIT, 0.0, tl.exp(tl.minimum(-d, LOG_RATIO_LIMIT)))
    return tl.where(tl.abs(d) < 0.1, series, 1.0 - held)


@triton.jit
def policy_term(
    logprob, ratio, ratio_slope, advantage, clip_low, clip_high, ratio_floor, ratio_cap, LOSS: tl.constexpr
):
    """(value, slope in the log-probability, stopped low, stopped high) of the policy's part of a token."""
    if LOSS == 0:
        low = (advantage < 0) & (ratio < 1.0 - clip_low)
        high = (advantage > 0) & (ratio > 1.0 + clip_high)
        held = tl.minimum(tl.maximum(ratio, 1.0 - clip_low), 1.0 + clip_high)
        value = tl.maximum(-advantage * ratio, -advantage * held)
        slope = tl.where(low | high, 0.0, -advantage * ratio_slope)
    elif LOSS == 1:
        low = ratio < ratio_floor
        high = ratio > ratio_cap
        slope = -advantage * tl.minimum(tl.maximum(ratio, ratio_floor), ratio_cap)
        value = slope * logprob
    else:
        low = ratio < 0
        high = ratio < 0
        slope = -advantage
        value = slope * logprob
    return value, slope, low, high


@triton.jit
def kl_term(d, ratio, ratio_slope, ESTIMATOR: tl.constexpr):
    """(value, slope) of a token's KL estimate from d = log(policy / reference)."""
    if ESTIMATOR == 1:
        value = d
        slope = d * 0.0 + 1.0
    elif ESTIMATOR == 2:
        value = 0.5 * d * d
        slope = d
    elif ESTIMATOR == 3:
        value = k3_value(d)
        slope = k3_slope(d)
    elif ESTIMATOR == 4:
        value = k3_value(d)
        slope = d
    elif ESTIMATOR == 5:
        k3 = k3_value(d)
        value = ratio * k3
        slope = ratio_slope * k3 + ratio * k3_slope(d)
    else:
        value = tl.abs(d)
        slope = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    return value, slope


@triton.jit
def policy_kernel(
    logits, out, labels, inverses, advantages, loss_weights, old_logprobs, ref_logprobs, rollout_logprobs,
    logprobs, entropies, losses, lows, highs,
    V, row_stride, out_stride,
    clip_low, clip_high, ratio_floor, ratio_cap,
    correction_low, correction_high, correction_scale, kl_coef, entropy_coef,
    LOSS: tl.constexpr, CORRECTION: tl.constexpr, ESTIMATOR: tl.constexpr,
    HAS_OLD: tl.constexpr, HAS_ENTROPY: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of logits to its token's loss and metrics, and with GRADIENT to its gradient in `out`."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * row_stride
    inverse = tl.load(inverses + row)
    label = tl.load(labels + row)
    scale2 = inverse * LOG2_E
    chosen = tl.load(base + label) * scale2
    top, log_total, entropy = row_statistics(base, scale2, V, BLOCK)
    logprob = (chosen - top - log_total) * LN_2

    advantage = tl.load(advantages + row)
    loss_weight = tl.load(loss_weights + row)
    old = logprob
    if HAS_OLD:
        old = tl.load(old_logprobs + row)
    gap = tl.where(is_finite(old), logprob - old, logprob - logprob)
    ratio = tl.exp(bounded(gap))
    ratio_slope = tl.where(tl.abs(gap) > LOG_RATIO_LIMIT, 0.0, ratio)
    value, slope, low, high = policy_term(
        logprob, ratio, ratio_slope, advantage, clip_low, clip_high, ratio_floor, ratio_cap, LOSS
    )
    if CORRECTION != 0:
        mismatch = old - tl.load(rollout_logprobs + row)
        importance = tl.exp(bounded(tl.where(is_finite(mismatch), mismatch, 0.0)))
        held = tl.minimum(tl.maximum(importance, correction_low), correction_high)
        if CORRECTION == 2:
            held = tl.where(held == importance, importance, 0.0)
        value *= held * correction_scale
        slope *= held * correction_scale
    if ESTIMATOR != 0:
        kl, kl_slope = kl_term(logprob - tl.load(ref_logprobs + row), ratio, ratio_slope, ESTIMATOR)
        value += kl_coef * kl
        slope += kl_coef * kl_slope
    if HAS_ENTROPY:
        value -= entropy_coef * entropy
    tl.store(logprobs + row, logprob)
    tl.store(entropies + row, entropy)
    tl.store(losses + row, loss_weight * value)
    tl.store(lows + row, low.to(tl.uint8))
    tl.store(highs + row, high.to(tl.uint8))
    if GRADIENT:
        write_gradient(
            base, out + row * out_stride, label, scale2, inverse, top, log_total, entropy,
            loss_weight * slope, -loss_weight * entropy_coef, V, HAS_ENTROPY, BLOCK,
        )  # fmt: skip


@triton.jit
def statistics_kernel(
    logits, labels, inverses, logprobs, entropies, normalizers, V, row_stride, BLOCK: tl.constexpr
):
    """One row of logits to its label's log-probability, its entropy and the log of its denominator."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * row_stride
    scale2 = tl.load(inverses + row) * LOG2_E
    chosen = tl.load(base + tl.load(labels + row)) * scale2
    top, log_total, entropy = row_statistics(base, scale2, V, BLOCK)
    tl.store(logprobs + row, (chosen - top - log_total) * LN_2)
    tl.store(entropies + row, entropy)
    tl.store(normalizers + row, (top + log_total) * LN_2)


@triton.jit
def gradient_kernel(
    logits, out, labels, inverses, normalizers, entropies, d_logprobs, d_entropies,
    V, row_stride, out_stride, HAS_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of logits to its gradient, from what statistics_kernel wrote."""
    row = tl.program_id(0).to(tl.int64)
    inverse = tl.load(inverses + row)
    entropy = 0.0
    d_entropy = 0.0
    if HAS_ENTROPY:
        entropy = tl.load(entropies + row)
        d_entropy = tl.load(d_entropies + row)
    write_gradient(
        logits + row * row_stride, out + row * out_stride, tl.load(labels + row), inverse * LOG2_E, inverse,
        tl.load(normalizers + row) * LOG2_E, 0.0, entropy,
        tl.load(d_logprobs + row), d_entropy, V, HAS_ENTROPY, BLOCK,
    )  # fmt: skip


@triton.jit
def scale_kernel(values, factor, num_values, BLOCK: tl.constexpr):
    """values *= factor, reading none of them where the factor is 1."""
    scale = tl.load(factor).to(tl.float32)
    if scale != 1.0:
        index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = index < num_values
        scaled = tl.load(values + index, mask=mask).to(tl.float32) * scale
        tl.store(values + index, scaled.to(values.dtype.element_ty), mask=mask)


class TritonRows:
    """Logits of a chunk to log-probabilities and entropies, and to their gradient in the logits' place."""

    def __init__(self, chunks: LogitChunks, labels: Tensor) -> None:
        self._labels = labels.contiguous()
        self._inverse = inverses(chunks)
        self._d_dtype = chunks.d_operand
        self._normalizers: Tensor | None = None

    def statistics(self, rows: slice, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log-probability, entropy, log of the softmax's denominator), each [C]."""
        found = logits.new_empty((3, logits.shape[0]))
        statistics_kernel[(logits.shape[0],)](
            logits, self._labels[rows], self._inverse[rows], found[0], found[1], found[2],
            logits.shape[1], logits.stride(0), BLOCK=block(logits), num_warps=NUM_WARPS,
        )  # fmt: skip
        self._normalizers = found[2]
        return found[0], found[1], found[2]

    def restore(self, rows: slice, logits: Tensor, normalizers: Tensor) -> None:
        """Take up the denominators [C] that `statistics` gave."""
        self._normalizers = normalizers

    def d_logits(
        self,
        rows: slice,
        logits: Tensor,
        *,
        entropies: Tensor,
        d_logprobs: Tensor,
        d_entropies: Tensor | None,
    ) -> Tensor:
        """Gradient [C, V] with respect to the logits, in their place; after one of the other two."""
        assert self._normalizers is not None
        out = in_place(logits, self._d_dtype)
        gradient_kernel[(logits.shape[0],)](
            logits, out, self._labels[rows], self._inverse[rows],
            self._normalizers, entropies, d_logprobs.contiguous(),
            entropies if d_entropies is None else d_entropies.contiguous(),
            logits.shape[1], logits.stride(0), out.stride(0),
            HAS_ENTROPY=d_entropies is not None, BLOCK=block(logits), num_warps=NUM_WARPS,
        )  # fmt: skip
        return out


class PolicyRows:
    """Logits of a chunk to their gradient under a policy objective; holds losses and metrics."""

    def __init__(self, labels: Tensor, columns: TokenColumns, objective: TokenObjective) -> None:
        self._labels = labels.contiguous()
        self._columns = columns
        self._objective = objective
        self.logprobs = torch.empty_like(columns.advantages, dtype=torch.float32)  # [N]
        self.entropies = torch.empty_like(self.logprobs)
        self.losses = torch.empty_like(self.logprobs)  # weighted
        self.low = torch.empty_like(self.logprobs, dtype=torch.bool)
        self.high = torch.empty_like(self.low)

    def step(self, chunks: LogitChunks, *, gradient: bool) -> Callable[[slice, Tensor], Tensor]:
        """A row step for these chunks; without `gradient` it leaves the logits as they are."""
        inverse, objective, seen = inverses(chunks), self._objective, self
        floor, cap = correction_bounds(objective)

        def row_step(rows: slice, logits: Tensor) -> Tensor:
            part = self._columns.select(rows)
            out = in_place(logits, chunks.d_operand)
            unused = part.advantages
            policy_kernel[(logits.shape[0],)](
                logits, out, self._labels[rows], inverse[rows], part.advantages, part.loss_weights,
                unused if part.old_logprobs is None else part.old_logprobs,
                unused if part.ref_logprobs is None else part.ref_logprobs,
                unused if part.rollout_logprobs is None else part.rollout_logprobs,
                seen.logprobs[rows], seen.entropies[rows], seen.losses[rows],
                seen.low[rows].view(torch.uint8), seen.high[rows].view(torch.uint8),
                logits.shape[1], logits.stride(0), out.stride(0),
                float(objective.clip_low), float(objective.clip_high),
                float(objective.ratio_floor), float(objective.ratio_cap),
                float(floor), float(cap), float(objective.correction_scale),
                float(objective.kl_coef), float(objective.entropy_coef),
                LOSS=LOSSES[objective.loss], CORRECTION=CORRECTIONS[objective.correction],
                ESTIMATOR=ESTIMATORS[objective.kl_estimator] if objective.has_kl else 0,
                HAS_OLD=part.old_logprobs is not None, HAS_ENTROPY=objective.has_entropy,
                GRADIENT=gradient, BLOCK=block(logits), num_warps=NUM_WARPS,
            )  # fmt: skip
            return out

        return row_step


def in_place(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Room [C, V] for values of `dtype` at the beginning of each row of the logits' own memory."""
    return logits if dtype == logits.dtype else logits.view(dtype)[:, : logits.shape[1]]


def inverses(chunks: LogitChunks) -> Tensor:
    """1 / temperature of each token [N]."""
    if chunks.inverse is not None:
        return chunks.inverse.contiguous()
    return chunks.hidden.new_ones(chunks.hidden.shape[0], dtype=chunks.dtype)


def block(logits: Tensor) -> int:
    """Columns that a program looks at together."""
    return min(BLOCK, int(triton.next_power_of_2(max(logits.shape[1], 16))))


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor, a scalar on the same device; a factor of 1 moves no memory."""
    scale_kernel[(triton.cdiv(gradient.numel(), 1024),)](gradient, factor, gradient.numel(), BLOCK=1024)
