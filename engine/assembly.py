"""A recipe to the parts of a run, built, joined, taken up from a checkpoint, and proved to agree."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from verigrad.engine import algorithms, data, model_files
from verigrad.engine.algorithms import Algorithm
from verigrad.engine.config import Config
from verigrad.engine.critic import FOLDER as CRITIC
from verigrad.engine.critic import Critic, open_critic
from verigrad.engine.curriculum import Curriculum, problem_stream
from verigrad.engine.data import ProblemStream
from verigrad.engine.dynamic_sampling import KeepRate
from verigrad.engine.engine_process import Child
from verigrad.engine.episode import EpisodeSampler
from verigrad.engine.flow import Flow
from verigrad.engine.monitor import Monitor
from verigrad.engine.policy import Policy, find_device
from verigrad.engine.prompts import Prompter
from verigrad.engine.quick_audit import audit_before_training, note_control
from verigrad.engine.rollout import Sampler
from verigrad.engine.rollout_backends import build_engine, build_prompter, early_children, sampler_of
from verigrad.engine.run import Run
from verigrad.engine.schema import Coefs
from verigrad.engine.scoring import Judges, Scorer, open_scorers
from verigrad.engine.screen import Screen
from verigrad.engine.sync import WeightSync
from verigrad.engine.warm_up import importing_engine
from verigrad.verifiers.base import Problem


@dataclass(slots=True)
class Loop:
    """The parts of a run, and the little besides the weights that changes from step to step."""

    policy: Policy
    sampler: Sampler
    sync: WeightSync
    scorer: Scorer  # pays the rewards
    judges: Judges  # of held-out answers
    monitor: Monitor  # of signs of reward hacking
    problems: ProblemStream | Curriculum
    evals: Mapping[str, list[Problem]]
    algorithm: Algorithm
    coefs: Coefs  # weights of the loss's side terms now
    critic: Critic | None = None  # where the advantage needs one
    flow: Flow | None = None  # where sampling runs ahead of training
    policy_version: int = 0  # rollout batches trained on
    keep_rate: KeepRate = field(default_factory=KeepRate)
    nonfinite_in_row: int = 0

    def save_model(self, folder: Path) -> None:
        """The weights of a checkpoint: the policy's, and below them the critic's."""
        self.policy.save_model(folder)
        if self.critic is not None:
            self.critic.save(folder / CRITIC)


@contextmanager
def open_loop(cfg: Config, run: Run, screen: Screen) -> Iterator[Loop]:
    """Build every part, take up the checkpoint if there is one, and prove that trainer and sampler agree."""
    find_device(cfg)
    with early_children(cfg) as children, open_scorers(cfg) as (scorer, judges):
        with run.timed("start"):  # what is cheap to get wrong is looked at before a model is made or fetched
            for judge in filter(None, (scorer, judges.second())):
                judge.require_fit(data.first_problem(cfg.data, seed=cfg.train.seed))
            with importing_engine(cfg):
                audit_before_training(cfg, run, screen)
            control = note_control(scorer.pool.verifier, run)
            model = model_files.fetch(cfg, progress=screen.progress)
            prompter = build_prompter(cfg, model)
            accept = prompter.refusal_above(cfg.rollout.max_prompt_tokens)
            dataset = data.load(cfg.data, seed=cfg.train.seed, accept=accept)
        if dataset.num_skipped:
            run.note(f"{dataset.num_skipped} malformed rows skipped, the first: {dataset.first_skipped}")
        folder = model.folder if run.resume_from is None else str(run.resume_from[1])
        sampled_from = model.folder if cfg.lora.rank else folder  # a checkpoint of adapters is no whole model
        with open_sampler(cfg, sampled_from, model, prompter, run, children) as sampler:
            with run.timed("start"):
                algorithm = algorithms.build(cfg)
                policy = Policy(cfg, folder, tokenizer=model.tokenizer, start_folder=model.folder)
                checkpoint = None if run.resume_from is None else run.resume_from[1]
                critic = open_critic(cfg, policy, model, checkpoint=checkpoint) if algorithm.critic else None
                loop = Loop(
                    policy=policy,
                    sampler=sampler,
                    sync=WeightSync(policy, sampler, dataset.train[:2], cfg=cfg),
                    scorer=scorer,
                    judges=judges,
                    monitor=Monitor(cfg, run, runs_code=scorer.runs_code, second=judges.second()),
                    problems=problem_stream(dataset.train, cfg),
                    evals=dataset.evals,
                    algorithm=algorithm,
                    coefs=algorithm.coefs,
                    critic=critic,
                )
                if cfg.rollout.max_staleness:
                    loop.flow = Flow(sampler, scorer, loop.problems, algorithm.keep, cfg, data=dataset.train)
                if run.resume_from is not None:
                    restore(loop, run.load_state())
                    screen.say(f"resuming after step {run.resume_from[0]}")
                run.note(f"weights reach the sampler by: {loop.sync.connect()}")
                loop.sync.push(loop.policy_version)
            run.judged_by = {
                "": scorer.identity,
                **{name: judges.of(name).identity for name in dataset.evals},
            }
            run.record_environment(
                data=dataset.fingerprint,
                model=model.fingerprint,
                prompts=prompter.template_hash,
                control=control,
            )
            with loop.flow.open() if loop.flow is not None else nullcontext():
                yield loop
            run.note(f"verifier health: {json.dumps(scorer.health())}")


@contextmanager
def open_sampler(
    cfg: Config,
    folder: str,
    model: model_files.ModelFiles,
    prompter: Prompter,
    run: Run,
    children: list[Child] | None = None,
) -> Iterator[Sampler]:
    """The engines on the weights in `folder`, closed whatever comes."""
    with run.timed("start"):
        engine = build_engine(
            cfg, folder, eos_ids=model.eos_ids, seed=cfg.train.seed, training=True, children=children
        )
    try:
        with sampler_of(cfg, engine, prompter) as sampler:
            if isinstance(sampler, EpisodeSampler):
                run.note(f"episodes run in sandboxes of kind {sampler.pool.settings.spec.backend}")
            yield sampler
    finally:
        engine.close()


def state_of(loop: Loop) -> dict[str, Any]:
    """What a checkpoint holds besides the weights; sampling and schedules are functions of step and seed."""
    with nullcontext() if loop.flow is None else loop.flow.held():
        drawn = {
            "problems": loop.problems.state(),
            "flow": None if loop.flow is None else loop.flow.state(),
        }
    return {
        **drawn,
        "policy": loop.policy.state(),
        "critic": None if loop.critic is None else loop.critic.state(),
        "policy_version": loop.policy_version,
        "keep_rate": float(loop.keep_rate),
        "nonfinite_in_row": loop.nonfinite_in_row,
        "undecided_in_row": loop.scorer.watch.steps_in_row,
        "monitor": loop.monitor.state(),
        "coefs": dataclasses.astuple(loop.coefs),
        "torch_rng": torch.get_rng_state(),
    }


def restore(loop: Loop, state: dict[str, Any]) -> None:
    """Take up `state_of`; the weights were loaded with the model."""
    loop.policy.load_state(state["policy"])
    if loop.critic is not None:
        loop.critic.load_state(state["critic"])
    loop.problems.load_state(state["problems"])
    if loop.flow is not None:
        loop.flow.load_state(state["flow"])
    loop.policy_version = state["policy_version"]
    loop.keep_rate = KeepRate(state["keep_rate"])
    loop.nonfinite_in_row = state["nonfinite_in_row"]
    loop.scorer.watch.steps_in_row = state.get("undecided_in_row", 0)
    loop.monitor.load_state(state.get("monitor", {}))
    loop.coefs = Coefs(*state["coefs"])
    torch.set_rng_state(state["torch_rng"])
