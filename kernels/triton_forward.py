"""Hidden states and head to log-probabilities and entropies in one Triton kernel: no logits in memory at all.

N: tokens. H: hidden size. V: vocabulary. Each program multiplies a tile of tokens with a share of the
vocabulary, tile by tile, and keeps of each tile what a softmax needs: maximum, sum, first moment and the
label's logit. The shares are joined afterwards. Tiles come through the tensor memory accelerator, so this
is for sm_90 and newer.

Written in the language of Triton 3.6. With TRITON_INTERPRET=1 set before the import it runs on a CPU.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from verigrad.kernels.logit_chunks import inverse_temperature

# the largest tile whose sums stay in the registers of 8 warps, and as many stages as shared memory holds
TILE = (128, 256, 64)  # tokens, vocabulary, hidden
NUM_WARPS, NUM_STAGES = 8, 4
LARGEST_HIDDEN = 2048
"""From here on a library's product and two passes over logits take less time, by arithmetic: unmeasured."""

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)


@triton.jit
def forward_kernel(
    hidden, head, labels, inverses, parts, N, V, H, share,
    TILE_N: tl.constexpr, TILE_V: tl.constexpr, TILE_H: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Statistics [4, N] of one share of the vocabulary for TILE_N tokens, in base 2: see `statistics`.

    `hidden` and `head` are descriptors of [TILE_N, TILE_H] and [TILE_V, TILE_H] tiles, zero beyond the edge.
    WIDEN is for the interpreter, which multiplies the bit patterns of bfloat16.
    """
    num_tiles = tl.cdiv(N, TILE_N)
    tile, part = tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles
    rows = tile * TILE_N + tl.arange(0, TILE_N)
    inside = rows < N
    label = tl.load(labels + rows, mask=inside, other=-1).to(tl.int32)
    scale2 = tl.load(inverses + rows, mask=inside, other=1.0) * LOG2_E
    most = tl.full((TILE_N,), LOWEST, tl.float32)
    total = tl.zeros((TILE_N,), tl.float32)
    moment = tl.zeros((TILE_N,), tl.float32)  # sum of 2^(x - most) (x - most)
    chosen = tl.zeros((TILE_N,), tl.float32)
    first = part * share
    last = tl.minimum(first + share, V)
    for start in range(first, last, TILE_V):
        product = tl.zeros((TILE_N, TILE_V), tl.float32)
        for k in range(0, H, TILE_H):
            left = hidden.load([tile * TILE_N, k])
            right = head.load([start, k])
            if WIDEN:
                left = left.to(tl.float32)
                right = right.to(tl.float32)
            product = tl.dot(left, right.T, product)
        column = start + tl.arange(0, TILE_V)
        x = product * scale2[:, None]
        chosen += tl.sum(tl.where(column[None, :] == label[:, None], x, 0.0), 1)
        x = tl.where(column[None, :] < last, x, LOWEST)
        higher = tl.maximum(most, tl.max(x, 1))
        step = most - higher
        shrink = tl.exp2(step)
        x -= higher[:, None]
        weight = tl.exp2(x)
        moment = shrink * (moment + total * step) + tl.sum(weight * x, 1)
        total = total * shrink + tl.sum(weight, 1)
        most = higher
    out = parts + part.to(tl.int64) * 4 * N + rows
    tl.store(out, most, mask=inside)
    tl.store(out + N, total, mask=inside)
    tl.store(out + 2 * N, moment, mask=inside)
    tl.store(out + 3 * N, chosen, mask=inside)


def pays(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this machine can run it on these inputs, and they are small enough to gain from it."""
    return (
        hidden.is_cuda
        and torch.version.hip is None
        and bias is None
        and hidden.dtype in (torch.bfloat16, torch.float16)
        and hidden.shape[0] > 0
        and hidden.shape[1] <= LARGEST_HIDDEN
        and hidden.shape[1] % 8 == 0  # rows of the accelerator begin at multiples of 16 bytes
        and torch.cuda.get_device_capability(hidden.device)[0] >= 9
    )


def statistics(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    labels: Tensor,  # [N]
    *,
    temperature: float | Tensor,  # one number, or [N]
    tile: tuple[int, int, int] = TILE,
    num_shares: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probability, entropy in nats, log of the softmax's denominator), each [N] float32.

    The head is taken in hidden's type. `num_shares` of the vocabulary; by default enough for eight waves.
    """
    hidden = hidden.detach().contiguous()
    head = weight.detach().to(hidden.dtype).contiguous()
    num_tokens, vocab = hidden.shape[0], head.shape[0]
    inverse = inverse_temperature(temperature, hidden, dtype=torch.float32)
    inverse = hidden.new_ones(num_tokens, dtype=torch.float32) if inverse is None else inverse.contiguous()
    num_tiles = triton.cdiv(num_tokens, tile[0])
    shares = num_shares or _enough(hidden, num_tiles)
    share = triton.cdiv(triton.cdiv(vocab, shares), tile[1]) * tile[1]
    parts = hidden.new_empty((triton.cdiv(vocab, share), 4, num_tokens), dtype=torch.float32)
    forward_kernel[(num_tiles * parts.shape[0],)](
        TensorDescriptor.from_tensor(hidden, [tile[0], tile[2]]),
        TensorDescriptor.from_tensor(head, [tile[1], tile[2]]),
        labels.contiguous(), inverse, parts, num_tokens, vocab, hidden.shape[1], share,
        TILE_N=tile[0], TILE_V=tile[1], TILE_H=tile[2],
        WIDEN=not hidden.is_cuda and hidden.dtype == torch.bfloat16,
        num_warps=NUM_WARPS, num_stages=NUM_STAGES,
    )  # fmt: skip
    return _joined(parts)


def _joined(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of the vocabulary's shares [S, 4, N] to those of all of it."""
    most, total, moment, chosen = parts.unbind(1)
    top = most.amax(0)
    step = most - top
    shrink = step.exp2()
    whole = (total * shrink).sum(0)
    log_whole = whole.log2()
    entropies = log_whole - (shrink * (moment + total * step)).sum(0) / whole
    logprobs = chosen.sum(0) - top - log_whole
    return logprobs * math.log(2), entropies * math.log(2), (top + log_whole) * math.log(2)


def _enough(hidden: Tensor, num_tiles: int) -> int:
    if not hidden.is_cuda:
        return 2
    processors = torch.cuda.get_device_properties(hidden.device).multi_processor_count
    return max(8 * processors // num_tiles, 1)
