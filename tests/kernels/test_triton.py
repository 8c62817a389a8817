"""The Triton kernels: right in Triton's interpreter, and compiled ahead of time for a Hopper GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
CASES = "tests/kernels/triton_cases.py"

if importlib.util.find_spec("triton") is None:
    if os.environ.get("VERIGRAD_REQUIRE_ALL") == "1":
        raise ImportError("Triton is not installed; the extra `dev` brings it")
    # a machine without it (there is none for macOS) tests the rest; CI never gets here
    pytest.skip("Triton is not installed", allow_module_level=True)

from tests.kernels.hopper import compiled  # noqa: E402
from verigrad.kernels import triton_forward, triton_rows  # noqa: E402

INTEGERS = {"V": "i32", "N": "i32", "H": "i32", "share": "i32", "row_stride": "i64", "out_stride": "i64"}
NUMBERS = (
    "clip_low", "clip_high", "ratio_floor", "ratio_cap", "correction_low", "correction_high",
    "correction_scale", "kl_coef", "entropy_coef",
)  # fmt: skip


def run_cases(**env):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CASES]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        pytest.fail(done.stdout[-6000:], pytrace=False)


def test_every_case_in_the_interpreter():
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_case_on_the_gpu():
    # memory full of NaN comes with PyTorch's deterministic mode, in which cuBLAS wants this
    run_cases(TRITON_INTERPRET="0", CUBLAS_WORKSPACE_CONFIG=":4096:8")


def signature(kernel, constants, **types):
    """Pointers to float32 but for what is named."""
    known = (
        INTEGERS | dict.fromkeys(NUMBERS, "fp32") | {"labels": "*i64", "lows": "*u8", "highs": "*u8"} | types
    )
    return {name: "constexpr" if name in constants else known.get(name, "*fp32") for name in kernel.arg_names}


@pytest.mark.parametrize("out", ["*bf16", "*fp32"])
@pytest.mark.parametrize("loss", triton_rows.LOSSES)
def test_the_policy_kernel_compiles_for_hopper_without_spills(loss, out, tmp_path):
    kernel = triton_rows.policy_kernel
    constants = {
        "LOSS": triton_rows.LOSSES[loss],
        "CORRECTION": triton_rows.CORRECTIONS["icepop"],
        "ESTIMATOR": triton_rows.ESTIMATORS["k3_ratio"],
        "HAS_OLD": True,
        "HAS_ENTROPY": True,
        "GRADIENT": True,
        "BLOCK": triton_rows.BLOCK,
    }
    done = compiled(
        kernel, signature(kernel, constants, out=out), constants, tmp_path, num_warps=triton_rows.NUM_WARPS
    )
    assert done.spill_free
    assert done.registers <= 80  # three programs on a processor, to hide what memory takes


@pytest.mark.parametrize("name", ["statistics_kernel", "gradient_kernel"])
def test_the_kernels_of_two_passes_compile_for_hopper_without_spills(name, tmp_path):
    kernel = getattr(triton_rows, name)
    constants = {"BLOCK": triton_rows.BLOCK}
    if name == "gradient_kernel":
        constants["HAS_ENTROPY"] = True
    types = signature(kernel, constants, out="*bf16")
    done = compiled(kernel, types, constants, tmp_path, num_warps=triton_rows.NUM_WARPS)
    assert done.spill_free
    assert done.registers <= 80


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_forward_kernel_compiles_to_tensor_core_products_without_spills(dtype, tmp_path):
    kernel = triton_forward.forward_kernel
    tokens, vocab, hidden = triton_forward.TILE
    constants = {"TILE_N": tokens, "TILE_V": vocab, "TILE_H": hidden, "WIDEN": False}
    types = signature(
        kernel,
        constants,
        hidden=f"tensordesc<{dtype}[{tokens}, {hidden}]>",
        head=f"tensordesc<{dtype}[{vocab}, {hidden}]>",
    )
    done = compiled(
        kernel,
        types,
        constants,
        tmp_path,
        num_warps=triton_forward.NUM_WARPS,
        num_stages=triton_forward.NUM_STAGES,
    )
    assert done.tensor_core_products
    assert not done.old_products
    assert done.spill_free
    assert done.shared_bytes <= 227 * 1024  # what a program of sm_90 may have
