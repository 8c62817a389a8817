"""Triton kernels to what NVIDIA's assembler makes of them for an sm_90, on a machine without a GPU."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TARGET = GPUTarget("cuda", 90, 32)


@dataclass(frozen=True)
class Compiled:
    registers: int
    stack_bytes: int  # what spilled, too
    local_bytes: int
    shared_bytes: int
    tensor_core_products: int  # of warp groups: sm_90's own
    old_products: int  # mma.sync, which sm_90 runs at a part of its speed
    spill_free: bool


def compiled(kernel, signature, constants, folder, *, num_warps, num_stages=3):
    """`signature`: type of each argument in order, "constexpr" for those of `constants`."""
    names = kernel.arg_names
    assert list(signature) == names
    pointers = [i for i, name in enumerate(names) if signature[name].startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    done = triton.compile(source, target=TARGET, options={"num_warps": num_warps, "num_stages": num_stages})
    binary = folder / f"{kernel.__name__}.cubin"
    binary.write_bytes(done.asm["cubin"])
    said = subprocess.run(
        [CUOBJDUMP, "-res-usage", binary], capture_output=True, text=True, check=True
    ).stdout
    used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", said)
    registers, stack, _, local = map(int, used.groups())
    ptx = done.asm["ptx"]
    return Compiled(
        registers=registers,
        stack_bytes=stack,
        local_bytes=local,
        shared_bytes=done.metadata.shared,
        tensor_core_products=len(re.findall(r"wgmma\.mma_async", ptx)),
        old_products=len(re.findall(r"mma\.sync", ptx)),
        spill_free=stack == 0 and local == 0,
    )
