"""The race of kernels runs as one command, tells what it cannot measure, and hides no package of its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(*command, **env):
    return subprocess.run(
        [sys.executable, *map(str, command)], env=os.environ | env, capture_output=True, text=True
    )


def test_every_side_is_measured_or_says_why_not(tmp_path):
    out = tmp_path / "rows.jsonl"
    sides = ("ours_torch", "ours_two_pass_torch", "pytorch", "ours_triton", "cut_cross_entropy")
    done = run(
        BENCHMARKS / "kernels.py", "--device", "cpu", "--shapes", "16x8x50", "--rounds", 2, "--threads", 1,
        "--out", out, "--sides", *sides,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["work"] for row in rows] == ["policy", "policy_no_entropy", "forward"]
    for row in rows:
        assert set(row["sides"]) == {"ours_torch", "ours_two_pass_torch", "pytorch"}
        assert row["unmeasured"]["ours_triton"] == "needs a CUDA device"
        assert set(row["unmeasured"]) == {"ours_triton", "cut_cross_entropy"}
        assert row["bar_ms"] is None
        losses = [side["loss"] for side in row["sides"].values()]
        assert max(losses) - min(losses) < 1e-5
        operations = 2 if row["work"] == "forward" else 6
        assert row["floor_ms"] * row["peak_tflops"] * 1e9 == pytest.approx(operations * 16 * 8 * 50)
    assert "unmeasured: needs a CUDA device" in done.stdout


def test_a_missing_gpu_is_told_in_one_line():
    done = run(BENCHMARKS / "kernels.py", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert done.stderr == "--device cuda: this torch sees no CUDA device; use --device cpu\n"


def test_the_package_of_the_same_name_is_not_hidden(tmp_path):
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '9'\n")
    paths = f"{BENCHMARKS}{os.pathsep}{tmp_path}"
    done = run("-c", "import kernels; print(kernels.__version__)", PYTHONPATH=paths)
    assert (done.returncode, done.stdout) == (0, "9\n"), done.stderr
