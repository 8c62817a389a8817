"""The one place where a sampling engine is chosen, and whether attempts are completions or episodes."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from verigrad.engine import sandboxing
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.model_files import ModelFiles
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout import Engine, Sampler
from verigrad.engine.sandboxing import NoSandbox
from verigrad.sandboxes.base import SandboxError
from verigrad.sandboxes.pool import SandboxPool


def build_engine(
    cfg: Config, model_folder: str, *, eos_ids: Sequence[int], seed: int, training: bool = False
) -> Engine:
    """The engine the recipe asks for, started on the weights in `model_folder`.

    `training`: it may sample while another part of the program trains, in a process of its own.
    """
    if training and cfg.rollout.max_staleness:
        from verigrad.engine.engine_process import EngineProcess, is_wanted

        if is_wanted(cfg):
            return EngineProcess(cfg, model_folder, eos_ids=eos_ids, seed=seed)
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


def build_prompter(cfg: Config, model: ModelFiles) -> Prompter:
    """The model's prompts, with tools where the recipe has some."""
    if not cfg.agent.tools:
        return Prompter(model.tokenizer, cfg.prompts)
    from verigrad.engine.tool_prompts import ToolPrompter

    return ToolPrompter(model.tokenizer, cfg.prompts, cfg.agent, eos_ids=model.eos_ids)


@contextmanager
def sampler_of(cfg: Config, engine: Engine, prompter: Prompter) -> Iterator[Sampler]:
    """Attempts from the engine: single completions, or episodes with sandboxes of their own.

    Raises NoSandbox when episodes need one and none comes up.
    """
    if not cfg.agent.tools:
        yield Sampler(engine, prompter)
        return
    from verigrad.engine.episode import EpisodeSampler
    from verigrad.engine.tool_prompts import ToolPrompter

    assert isinstance(prompter, ToolPrompter), "build_prompter makes one where there are tools"
    with SandboxPool(sandboxing.chosen(cfg.sandbox), size=cfg.agent.max_sandboxes) as pool:
        try:
            pool.warm(1)
        except SandboxError as error:
            raise NoSandbox(f"agent.tools run in a sandbox, and none came up: {error}") from error
        yield EpisodeSampler(engine, prompter, cfg.agent, pool, max_seqs=cfg.rollout.max_seqs)


def vllm_installed() -> bool:
    """Whether `import vllm` would find something; imports nothing."""
    return importlib.util.find_spec("vllm") is not None
