"""engine/machine.py: what a training process asks of the libraries underneath."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource
from verigrad.engine import machine
told = {prepare}
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(50_000_000).add_(1)
before = faults()
for _ in range(10):
    torch.zeros(50_000_000).add_(1)
print(told, faults() - before)
"""


def run(prepare, **env):
    code = CODE.replace("{prepare}", prepare)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **env}
    )
    told, faults = done.stdout.split()
    return told == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="freed memory goes back where there is a GPU")
def test_memory_that_is_asked_for_again_is_not_cleared_again():
    told, kept = run("machine.keep_freed_memory()")
    _, returned = run("None")
    assert told
    assert kept < returned / 10


def test_the_users_own_choice_stays():
    assert run("machine.keep_freed_memory()", MALLOC_ARENA_MAX="2")[0] is False


def test_what_is_set_in_the_environment_stays():
    code = "import os; from verigrad.engine import machine; machine.prepare_process(); "
    code += "print(os.environ['VLLM_LOGGING_LEVEL'])"
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "INFO"
