"""A recipe -> which kind of engine samples, by what is installed; imports none of them."""

import importlib.util

from verigrad.engine.config import Config


def vllm_installed() -> bool:
    """Whether `import vllm` would find something."""
    return importlib.util.find_spec("vllm") is not None


def backend_of(cfg: Config) -> str:
    """ "vllm" or "transformers"."""
    if cfg.rollout.backend != "auto":
        return cfg.rollout.backend
    return "vllm" if vllm_installed() else "transformers"


def module_of(cfg: Config) -> str:
    """The module of that engine."""
    return f"verigrad.engine.rollout_{backend_of(cfg)}"
