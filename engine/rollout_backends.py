"""The one place where a sampling engine is chosen."""

import importlib.util
from collections.abc import Sequence

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.rollout import Engine


def build_engine(cfg: Config, model_folder: str, *, eos_ids: Sequence[int], seed: int) -> Engine:
    """The engine the recipe asks for, started on the weights in `model_folder`."""
    backend = cfg.rollout.backend
    if backend == "auto":
        backend = "vllm" if vllm_installed() else "transformers"
    if backend == "transformers":
        from verigrad.engine.rollout_transformers import TransformersEngine

        return TransformersEngine(cfg, model_folder, eos_ids=eos_ids)
    if not vllm_installed():
        raise ConfigError(
            "rollout.backend = 'vllm', but vLLM is not installed; run `make setup`, "
            "or set rollout.backend = 'transformers'"
        )
    from verigrad.engine.rollout_vllm import VllmEngine

    return VllmEngine(cfg, model_folder, eos_ids=eos_ids, seed=seed)


def vllm_installed() -> bool:
    """Whether `import vllm` would find something; imports nothing."""
    return importlib.util.find_spec("vllm") is not None
