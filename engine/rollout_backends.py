"""The one place where a sampling engine is chosen, and whether attempts are completions or episodes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from verigrad.engine import model_files, sandboxing
from verigrad.engine.backends import backend_of, vllm_installed
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.dynamic_sampling import sampling_cap
from verigrad.engine.engine_fleet import EngineFleet
from verigrad.engine.engine_process import Child, EngineProcess, is_wanted, num_cores, on_gpu
from verigrad.engine.model_files import ModelFiles
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout import Engine, Sampler
from verigrad.engine.sandboxing import NoSandbox
from verigrad.sandboxes.base import SandboxError
from verigrad.sandboxes.pool import SandboxPool

MOST = 4  # engines, where the recipe does not say
SMALL_MODEL_BYTES = 2**28  # larger ones keep several cores busy by themselves
MEMORY_EACH_BYTES = 2 * 2**30  # of the machine, for each engine that nobody asked for


def most_engines(cfg: Config, *, training: bool) -> int:
    """How many engines there will be at most; a large model's weights may make it one: see `num_engines`."""
    if (asked := cfg.rollout.num_engines) is not None:
        if asked > 1 and on_gpu(cfg):
            raise ConfigError(
                f"rollout.num_engines = {asked} divides a CPU's cores, and here a GPU samples; remove it"
            )
        return asked
    if not (training and backend_of(cfg) == "vllm") or on_gpu(cfg):
        return 1
    if (
        cfg.rollout.max_staleness or cfg.sync.route == "shared"
    ):  # the trainer has a core; one memory, one engine
        return 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return max(1, min(num_cores(), MOST, memory // MEMORY_EACH_BYTES))


def num_engines(cfg: Config, model_folder: str, *, training: bool) -> int:
    """How many engines sample: the recipe's number, or where a small model trains on a CPU one per core."""
    most = most_engines(cfg, training=training)
    if cfg.rollout.num_engines is None and model_files.weight_bytes(model_folder) > SMALL_MODEL_BYTES:
        return 1
    return most


def threads_of(num: int) -> int:
    """Threads of each of `num` processes that compute at the same time."""
    return max(1, num_cores() // num)


def no_idle_places(cfg: Config) -> Config:
    """`rollout.max_seqs` no larger than a step fills, where nothing else is sampled: places cost memory."""
    rollout, dynamic = cfg.rollout, cfg.dynamic_sampling
    if cfg.eval.every or rollout.max_staleness or cfg.agent.tools:
        return cfg
    groups = rollout.groups_per_step
    if dynamic.enabled:
        groups = sampling_cap(groups, oversample=dynamic.oversample)
    fewer = {"max_seqs": min(rollout.max_seqs, groups * rollout.group_size)}
    return cfg.model_copy(update={"rollout": rollout.model_copy(update=fewer)})


def share_of(cfg: Config, num: int) -> Config:
    """The settings of one of `num` engines."""
    seqs = -(-cfg.rollout.max_seqs // num)
    rollout = cfg.rollout.model_copy(update={"num_engines": 1, "max_seqs": seqs})
    return cfg.model_copy(update={"rollout": rollout})


@contextmanager
def early_children(cfg: Config) -> Iterator[list[Child]]:
    """Processes for the engines that a training run has beside its own, which begin to import at once.

    To be given to `build_engine`; those that were not taken end with the block.
    """
    children: list[Child] = []
    if not on_gpu(cfg) and (vllm_installed() or cfg.rollout.backend != "vllm"):
        most = most_engines(cfg, training=True)
        num = most if is_wanted(cfg) else most - 1
        children += [Child(cfg, threads=threads_of(num + 1)) for _ in range(num)]
    try:
        yield children
    finally:
        for child in children:
            child.kill()


def build_engine(
    cfg: Config,
    model_folder: str,
    *,
    eos_ids: Sequence[int],
    seed: int,
    training: bool = False,
    children: list[Child] | None = None,
) -> Engine:
    """The engine the recipe asks for, on the weights in `model_folder`; several, where that is faster.

    `training`: it may sample while another part of the program trains, in a process of its own. Of `children`
    (see `early_children`) those needed are taken out.
    """
    if training:
        cfg = no_idle_places(cfg)
    num, elsewhere = num_engines(cfg, model_folder, training=training), training and is_wanted(cfg)
    if num == 1 and not elsewhere:
        return _built(cfg, model_folder, eos_ids=eos_ids, seed=seed)
    own, started = share_of(cfg, num), children if children is not None else []
    threads = threads_of(num + elsewhere)
    with ExitStack() as undo:
        engines: list[Engine] = []
        for _ in range(num if elsewhere else num - 1):
            child = started.pop() if started else Child(cfg, threads=threads)
            engines.append(EngineProcess(own, model_folder, eos_ids=eos_ids, seed=seed, child=child))
            undo.callback(engines[-1].close)
        if not elsewhere:
            engines.insert(0, _built(own, model_folder, eos_ids=eos_ids, seed=seed))
        elif not on_gpu(cfg):
            torch.set_num_threads(min(torch.get_num_threads(), threads))
        undo.pop_all()
    return engines[0] if num == 1 else EngineFleet(engines)


def _built(cfg: Config, model_folder: str, *, eos_ids: Sequence[int], seed: int) -> Engine:
    if backend_of(cfg) == "transformers":
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
