"""A recipe and a machine -> the number type that the policy's update is computed in."""

from collections.abc import Callable
from typing import Any

import torch

from verigrad.engine.settings import Config


def update_dtype(cfg: Config, device: torch.device) -> str:
    """`policy.update_dtype`, "same" and "auto" resolved: "float32" or "bfloat16".

    "auto" is bfloat16 where matrix products are several times faster in it and nothing is compared across the
    types: in reinforcement learning on a CPU that multiplies in it natively, old log-probabilities the
    trainer's own. Else it is policy.dtype.
    """
    wanted, sampled = cfg.policy.update_dtype, cfg.policy.dtype
    if wanted not in ("auto", "same"):
        return wanted
    own = cfg.verb == "train" and cfg.algorithm.old_logprobs == "trainer"
    return (
        "bfloat16" if wanted == "auto" and own and device.type == "cpu" and multiplies_natively() else sampled
    )


def multiplies_natively() -> bool:
    """Whether this CPU has instructions for products of bfloat16: without, they are slower than float32's."""
    ask: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # older torch has none
    found = ask()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
