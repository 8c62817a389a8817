"""vLLM's compiled kernels against its own chains of operations, with numbers of both kinds."""

import math

import pytest
import torch

from verigrad.engine.vllm_cpu_kernels import _silu_and_mul

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", autouse=True)
def registered():
    from verigrad.engine.rollout_vllm import kernel_settings

    names = kernel_settings()["kernel_config"]["ir_op_priority"]
    assert names == {name: ["compiled_cpu", "native"] for name in ("rms_norm", "fused_add_rms_norm")}
    assert kernel_settings() is kernel_settings()  # registered once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_those_of_the_chains(dtype):
    from vllm import ir

    g = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(7, 96, generator=g).to(dtype) for _ in range(2))
    weight = torch.randn(96, generator=g).to(dtype)
    close = {"atol": 2e-6, "rtol": 2e-6} if dtype == torch.float32 else {"atol": 0.04, "rtol": 0.02}
    norm, add_norm = ir.ops.rms_norm.impls, ir.ops.fused_add_rms_norm.impls
    ours, theirs = (norm[name].impl_fn(x, weight, 1e-5) for name in ("compiled_cpu", "native"))
    torch.testing.assert_close(ours, theirs, **close)
    ours, theirs = (
        add_norm[name].impl_fn(x.clone(), residual.clone(), weight, 1e-5)
        for name in ("compiled_cpu", "native")
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **close)


def test_what_the_kernels_cannot_take_goes_the_other_way():
    from vllm import ir

    supports = ir.ops.rms_norm.impls["compiled_cpu"].supports_args
    x = torch.randn(4, 32)
    assert supports(x, torch.ones(32), 1e-5)
    assert not supports(x, None, 1e-5)
    assert not supports(x, torch.ones(32, dtype=torch.bfloat16), 1e-5)
    assert not supports(x, torch.ones(32), 1e-5, 16)
    assert not supports(x.T, torch.ones(4), 1e-5)


def test_the_gated_unit_by_hand():
    x = torch.tensor([[2.0] * 32 + [-1.0] * 32])
    expected = torch.full((1, 32), -2.0 / (1 + math.exp(-2.0)))  # -x sigmoid(x)
    torch.testing.assert_close(_silu_and_mul(None, x), expected)
    strided = torch.randn(3, 128)[:, ::2]
    want = torch.nn.functional.silu(strided[:, :32]) * strided[:, 32:]
    torch.testing.assert_close(_silu_and_mul(None, strided), want, atol=1e-6, rtol=1e-6)


def test_widths_that_are_no_whole_vectors_go_the_other_way():
    from vllm import ir
    from vllm.model_executor.layers.activation import SiluAndMul

    assert not ir.ops.rms_norm.impls["compiled_cpu"].supports_args(torch.randn(4, 100), torch.ones(100), 1e-5)
    x = torch.randn(2, 200)
    want = torch.nn.functional.silu(x[:, :100]) * x[:, 100:]
    torch.testing.assert_close(_silu_and_mul(SiluAndMul, x), want)
