"""Chunks of hidden states times the head to logits, and gradients of logits back to both; torch's row step.

N: tokens. H: hidden size. V: vocabulary. C: tokens of a chunk. Logits are float32 (float64 for float64
inputs), whatever the inputs: products of narrow inputs are accumulated in float32 and never rounded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CUDA_LOGIT_BYTES = 15 * 2**26  # 0.94 GiB: 1,920 tokens of a vocabulary of 131,072
CPU_LOGIT_BYTES = 2**27
CACHED_VALUES = 2**18  # 1 MiB of float32: of a CPU's second-level cache about the half
CHUNK_MULTIPLE = 128  # rows of a matrix product's tile
SLAB_ROWS = 16384  # of the head's gradient, where a product cannot be added in place

Needs = tuple[bool, bool, bool]
"""Whether hidden states, head and bias want a gradient."""

RowStep = Callable[[slice, Tensor], Tensor]
"""(tokens, their logits [C, V], to be used up) -> gradient [C, V] of those logits."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of what the head's product was made of; None where not asked for."""

    hidden: Tensor | None  # [N, H]
    weight: Tensor | None  # [V, H] in the precision of the computation
    bias: Tensor | None  # [V] likewise


class LogitChunks:
    """The products around a row step, a chunk of tokens at a time, through one buffer of logits.

    With `narrow`, products take hidden's own dtype (bfloat16, float16) and the row step applies the
    temperature; else inputs are widened first and logits come already divided by it.
    """

    def __init__(
        self,
        hidden: Tensor,  # [N, H]
        weight: Tensor,  # [V, H]
        bias: Tensor | None,  # [V]
        *,
        temperature: float | Tensor,  # [N] or one number
        chunk_tokens: int | None,
        narrow: bool,
    ) -> None:
        self.hidden = hidden.detach()
        self.dtype = precision(hidden)
        self.operand = hidden.dtype if narrow and hidden.dtype.itemsize == 2 else self.dtype
        # float16 has too little range for gradients that no loss scale has met yet
        self.d_operand = self.dtype if self.operand == torch.float16 else self.operand
        self.narrow = narrow
        self.weight = weight.detach().to(self.operand)  # no copy when the weight already has it
        self.bias = None if bias is None else bias.detach().to(self.dtype)
        self.inverse = inverse_temperature(temperature, hidden, dtype=self.dtype)  # [N], or None for 1
        self.vocab = weight.shape[0]
        num_tokens = hidden.shape[0]
        self.chunk_tokens = chunk_tokens or fitting_chunk(num_tokens, self.vocab, hidden.device)
        # so that rows begin at multiples of 16 bytes, also where bfloat16 takes their place
        row = -(-self.vocab // 8) * 8 if narrow else self.vocab
        self._buffer: Tensor | None = None
        self._room = (min(self.chunk_tokens, num_tokens), row)

    def chunks(self) -> Iterator[slice]:
        """The tokens of each chunk, in order."""
        for start in range(0, self.hidden.shape[0], self.chunk_tokens):
            yield slice(start, min(start + self.chunk_tokens, self.hidden.shape[0]))

    def logits(self, rows: slice) -> Tensor:
        """Logits [C, V] in the one buffer: those of the chunk before are gone."""
        if self._buffer is None:
            self._buffer = self.hidden.new_empty(self._room, dtype=self.dtype)
        out = self._buffer[: rows.stop - rows.start, : self.vocab]
        hidden = self._scaled(rows)
        if self.bias is None:
            return multiply(hidden, self.weight.T, out=out)
        scale = None if self.inverse is None or self.narrow else self.inverse[rows, None]
        multiply(hidden, self.weight.T, out=out)
        return out.add_(self.bias) if scale is None else out.addcmul_(self.bias, scale)

    def backward(self, row_step: RowStep, *, needs: Needs) -> Gradients:
        """Logits of each chunk through `row_step` to the gradients that are needed."""
        return self.spread(lambda rows: row_step(rows, self.logits(rows)), needs=needs)

    def spread(self, d_logits_of: Callable[[slice], Tensor], *, needs: Needs) -> Gradients:
        """Gradients of the logits [C, V], chunk by chunk, to those of (hidden, weight, bias)."""
        need_hidden, need_weight, need_bias = needs
        # without a loss scale, float16 waits for its backward pass
        narrow_out = self.hidden.dtype != torch.float16
        d_hidden = (
            torch.empty_like(self.hidden, dtype=None if narrow_out else self.dtype) if need_hidden else None
        )
        head = self.weight.to(self.d_operand)
        weight_sum = ProductSum(self.weight.shape, self.hidden, dtype=self.dtype) if need_weight else None
        d_bias = self.hidden.new_zeros(self.vocab, dtype=self.dtype) if need_bias else None
        for rows in self.chunks():
            d_logits = d_logits_of(rows)
            if d_hidden is not None:
                self._d_hidden(d_logits.to(self.d_operand), head, out=d_hidden[rows], rows=rows)
            if weight_sum is not None:
                weight_sum.add(d_logits.to(self.d_operand), self._scaled(rows).to(self.d_operand))
            if d_bias is not None:
                d_bias += self._unscaled(d_logits, rows).sum(0, dtype=self.dtype)
        return Gradients(d_hidden, None if weight_sum is None else weight_sum.total(), d_bias)

    def _scaled(self, rows: slice) -> Tensor:
        hidden = self.hidden[rows].to(self.operand)
        return hidden if self.inverse is None or self.narrow else hidden * self.inverse[rows, None]

    def _unscaled(self, gradient: Tensor, rows: slice) -> Tensor:
        return gradient if self.inverse is None or self.narrow else gradient * self.inverse[rows, None]

    def _d_hidden(self, d_logits: Tensor, head: Tensor, *, out: Tensor, rows: slice) -> None:
        if out.dtype in (d_logits.dtype, self.dtype):
            multiply(d_logits, head, out=out)
        else:
            out.copy_(d_logits @ head)
        if self.inverse is not None and not self.narrow:
            out.mul_(self.inverse[rows, None])


class ProductSum:
    """The sum over chunks of d_logits^T [V, C] @ hidden [C, H], kept wide."""

    def __init__(self, shape: torch.Size, like: Tensor, *, dtype: torch.dtype) -> None:
        self._sum = like.new_empty(shape, dtype=dtype)
        self._empty = True

    def add(self, d_logits: Tensor, hidden: Tensor) -> None:
        """One chunk more."""
        if self._empty:
            multiply(d_logits.T, hidden, out=self._sum)
        elif d_logits.dtype == self._sum.dtype:
            self._sum.addmm_(d_logits.T, hidden)
        else:
            _add_wide(self._sum, d_logits.T, hidden)
        self._empty = False

    def total(self) -> Tensor:
        """The sum; zeros where there was no chunk."""
        return self._sum.zero_() if self._empty else self._sum


def multiply(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
    """left @ right into `out`, accumulated in its precision and not rounded to the operands' on the way."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


def _add_wide(total: Tensor, left: Tensor, right: Tensor) -> None:
    if not total.is_cuda:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
        return
    try:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    except RuntimeError as error:
        if "same dtype" not in str(error):
            raise
        # torch before it took a wide summand: one slab's product at a time, and another trip through memory
        for start in range(0, total.shape[0], SLAB_ROWS):
            slab = slice(start, start + SLAB_ROWS)
            total[slab] += torch.mm(left[slab], right, out_dtype=total.dtype)


class TorchRows:
    """Logits of a chunk to log-probabilities and entropies, and to their gradient in the logits' place.

    On a CPU a few rows at a time, as many as its cache holds with what is computed from them.
    """

    def __init__(self, chunks: LogitChunks, labels: Tensor, *, entropy: bool = True) -> None:
        self._labels = labels
        self._entropy = entropy
        self._inverse = chunks.inverse if chunks.narrow else None
        self._normalizers: Tensor | None = None

    def statistics(self, rows: slice, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log-probability, entropy or NaN, log of the softmax's denominator), each [C]."""
        if self._inverse is not None:
            logits.mul_(self._inverse[rows, None])
        chosen = logits.gather(1, self._labels[rows, None])[:, 0]
        normalizers, entropies = torch.empty_like(chosen), torch.full_like(chosen, torch.nan)
        for slab in slabs(logits):
            if self._entropy:
                log_p = logits[slab].log_softmax(-1)
                normalizers[slab] = logits[slab].amax(-1) - log_p.amax(-1)
                entropies[slab] = -log_p.exp().mul_(log_p).sum(-1)
            else:
                normalizers[slab] = logits[slab].logsumexp(-1)
        self._normalizers = normalizers
        return chosen - normalizers, entropies, normalizers

    def restore(self, rows: slice, logits: Tensor, normalizers: Tensor) -> None:
        """Take up the denominators [C] that `statistics` gave."""
        if self._inverse is not None:
            logits.mul_(self._inverse[rows, None])
        self._normalizers = normalizers

    def d_logits(
        self,
        rows: slice,
        logits: Tensor,
        *,
        entropies: Tensor,
        d_logprobs: Tensor,
        d_entropies: Tensor | None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Gradient [C, V] with respect to the logits, in their place or in `out`; after one of the other two.

        For a log-probability it is onehot - p; for the entropy H it is -p (log p + H).
        """
        assert self._normalizers is not None
        out = logits if out is None else out
        for slab in slabs(logits):
            log_p = torch.sub(logits[slab], self._normalizers[slab, None], out=out[slab])
            if d_entropies is None:
                log_p.exp_().mul_(-d_logprobs[slab, None])
                continue
            offset = -(d_logprobs[slab] + d_entropies[slab] * entropies[slab])
            slope = torch.addcmul(offset[:, None], -d_entropies[slab, None], log_p)
            log_p.exp_().mul_(slope)
        out.scatter_add_(1, self._labels[rows, None], d_logprobs[:, None].to(out.dtype))
        return out if self._inverse is None else out.mul_(self._inverse[rows, None])


def slabs(logits: Tensor) -> Iterator[slice]:
    """Rows to take at a time."""
    num_rows = logits.shape[0]
    step = max(CACHED_VALUES // logits.shape[1], 1) if logits.device.type == "cpu" else max(num_rows, 1)
    for start in range(0, num_rows, step):
        yield slice(start, start + step)


def fitting_chunk(num_tokens: int, vocab: int, device: torch.device) -> int:
    """Tokens of a chunk whose logits fit a budget, about the same number in each."""
    budget = CUDA_LOGIT_BYTES if device.type == "cuda" else CPU_LOGIT_BYTES
    most = max(budget // (4 * vocab) // CHUNK_MULTIPLE * CHUNK_MULTIPLE, CHUNK_MULTIPLE)
    num_chunks = max(-(-num_tokens // most), 1)
    return max(-(-num_tokens // num_chunks // CHUNK_MULTIPLE) * CHUNK_MULTIPLE, CHUNK_MULTIPLE)


def precision(hidden: Tensor) -> torch.dtype:
    """What logits of these hidden states are computed in."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def inverse_temperature(temperature: float | Tensor, hidden: Tensor, *, dtype: torch.dtype) -> Tensor | None:
    """1 / temperature [N], or None where that is 1 for all."""
    if isinstance(temperature, Tensor):
        return temperature.detach().to(device=hidden.device, dtype=dtype).expand(hidden.shape[0]).reciprocal()
    return None if temperature == 1 else hidden.new_full((hidden.shape[0],), 1 / temperature, dtype=dtype)
