"""vLLM's compiled kernels in place of its chains of small torch operations, where it computes on a CPU.

Its CPU build brings kernels for norms and for SwiGLU's product, and leaves them to a compiler's chains of
five to ten operations. Run one by one, as in an engine that does not compile, these are a sixth of a decoding
step of a small model. The kernels are given to vLLM by its own registers of implementations.
"""

import functools
from typing import Any

import torch
from torch import Tensor

PROVIDER = "compiled_cpu"
LANES = 32  # the kernels take whole vectors; no type's vector is longer
NORMS = ("rms_norm", "fused_add_rms_norm")


@functools.cache
def kernel_settings() -> dict[str, Any]:
    """What an engine is given to compute by the compiled kernels; nothing where this vLLM lacks any of them.

    They hold for all engines of this process, which computes on its CPU.
    """
    try:
        from vllm import ir
        from vllm.model_executor.layers.activation import SiluAndMul
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        ops = torch.ops._C
        found = ops.rms_norm, ops.fused_add_rms_norm, ops.silu_and_mul, SiluAndMul.forward_cuda
        registers = ir.ops.rms_norm.register_impl, ir.ops.fused_add_rms_norm.register_impl
    except (ImportError, AttributeError):
        return {}
    assert all(found)
    registers[0](PROVIDER, supports_args=_plain_norm)(_rms_norm)
    registers[1](PROVIDER, supports_args=_plain_add_norm, inplace=True)(_fused_add_rms_norm)
    if current_platform.is_cpu():
        SiluAndMul.forward_cpu = _silu_and_mul
    return {"kernel_config": {"ir_op_priority": {name: [PROVIDER, "native"] for name in NORMS}}}


def _plain_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    plain = variance_size is None and weight is not None and weight.dtype == x.dtype
    return plain and x.is_contiguous() and x.shape[-1] % LANES == 0


def _plain_add_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _plain_norm(x, weight, epsilon, variance_size) and x_residual.is_contiguous()


def _rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def _fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def _silu_and_mul(self: Any, x: Tensor) -> Tensor:
    if x.shape[-1] % (2 * LANES):
        return self.forward_native(x)  # type: ignore[no-any-return]
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    torch.ops._C.silu_and_mul(out, x.contiguous())
    return out
