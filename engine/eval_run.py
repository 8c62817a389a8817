"""Planned evaluations to results: each model sampled and judged in turn, then compared problem by problem."""

import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
from rich.console import Console

from verigrad.engine import (
    data,
    eval_plan,
    eval_report,
    eval_split,
    lm_harness,
    model_files,
    rollout_file,
    side_effects,
)
from verigrad.engine import suite as suites
from verigrad.engine.backends import backend_of
from verigrad.engine.checkpoint import name_of
from verigrad.engine.config import Config, ConfigError, DataConfig
from verigrad.engine.eval_plan import Planned, Subject
from verigrad.engine.eval_report import Comparison, Result
from verigrad.engine.evaluation import (
    attempt,
    avg_score,
    pass_score,
    require_column,
    require_decided,
    sampling_of,
    summarise,
)
from verigrad.engine.intervals import paired_difference
from verigrad.engine.policy import find_device
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout_backends import build_engine, build_prompter, sampler_of
from verigrad.engine.schema import VerifiedGroup
from verigrad.engine.scoring import Judges
from verigrad.engine.screen import Screen
from verigrad.verifiers import registry
from verigrad.verifiers.base import Problem


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model on this machine, and the problems it will be asked."""

    subject: Subject
    cfg: Config
    model: model_files.ModelFiles
    prompter: Prompter
    sets: Mapping[str, Sequence[Problem]]


def run(
    planned: Sequence[Planned], *, seed: int | None, output: str | None, as_json: bool, suite: str | None
) -> int:
    """Evaluate all, show the tables or one JSON object, and return the exit status.

    Everything that can be wrong with any of the models or its data is found before the first is sampled.
    """
    measured = None if suite is None else suites.load(suite)
    if measured is not None and measured.lm_eval is not None:
        lm_harness.require(measured.lm_eval)
    folder = None if output is None else Folder(Path(output), [one.subject.label for one in planned])
    with stdout_for_the_report() as report:
        with Screen(Console(stderr=True, highlight=False)) as screen:
            ready = [prepare(one, screen) for one in planned]
            if folder is not None:
                folder.open()
            results = [result for one in ready for result in results_of(one, seed, folder, screen)]
            comparisons = list(compared(results))
            found = None
            if measured is not None:
                found = side_effects.side_effects(results, measured)
                if measured.lm_eval is not None:
                    folders = {one.subject.label: one.model.folder for one in ready}
                    found = lm_harness.added(found, measured.lm_eval, folders, screen)
            if folder is not None:
                folder.write_comparisons(comparisons)
                if found is not None:
                    folder.write_side_effects(found)
                screen.say(f"written to {output}")
        if as_json:
            shown = eval_report.as_json(results, comparisons) | ({} if found is None else found.as_json())
            print(json.dumps(shown, allow_nan=False), file=report)
        else:
            if found is None or len(planned) == 1:
                eval_report.show(results, comparisons, file=report)
            if found is not None:
                side_effects.show(found, file=report)
    return 0


def prepare(planned: Planned, screen: Screen) -> Prepared:
    """Fetch the model and read its problems, the cheap questions first."""
    subject, cfg = planned.subject, for_this_machine(planned)
    find_device(cfg)
    require_fit(cfg)
    try:
        model = model_files.fetch(cfg, progress=screen.progress)
    except ConfigError as error:  # the user named it as an argument
        raise ConfigError(str(error).replace("policy.model = ", "")) from error
    if len(model.tokenizer.get_vocab()) <= len(model.tokenizer.all_special_ids):  # transformers makes one up
        raise ConfigError(f"{subject.label}: its folder holds no tokenizer; save the model's tokenizer there")
    prompter = build_prompter(cfg, model)
    accept = prompter.refusal_above(cfg.rollout.max_prompt_tokens)
    held_out = data.load_evals(cfg.data, seed=cfg.train.seed, accept=accept)
    for name, one in held_out.items():
        if one.num_skipped:
            screen.say(f"{name}: {one.num_skipped} malformed rows skipped, the first: {one.first_skipped}")
    sets = {name: one.problems for name, one in held_out.items()}
    eval_split.require_held_out(planned, sets)
    require_column(cfg.eval.by, sets)
    return Prepared(subject, cfg, model, prompter, sets)


def for_this_machine(planned: Planned) -> Config:
    """No trainer shares the GPU here; a model alone is sampled there in bfloat16, unless told otherwise."""
    cfg = planned.cfg
    rollout: dict[str, Any] = {"sleep": False}
    if "gpu_memory_frac" not in cfg.rollout.model_fields_set:
        rollout["gpu_memory_frac"] = 0.9
    policy: dict[str, Any] = {}
    on_gpu = torch.cuda.is_available() and cfg.policy.device != "cpu"
    if on_gpu and "dtype" not in cfg.policy.model_fields_set:
        policy["dtype"] = "bfloat16"
    parts = {
        "rollout": cfg.rollout.model_copy(update=rollout),
        "policy": cfg.policy.model_copy(update=policy),
    }
    return cfg.model_copy(update=parts)


def require_fit(cfg: Config) -> None:
    """Every set's first row fits its verifier, which exists: looked at before a model is fetched."""
    sources: dict[str, DataConfig] = {}
    if cfg.data.eval_path:
        update = {"path": cfg.data.eval_path, "split": cfg.data.eval_split}
        sources[""] = cfg.data.model_copy(update=update)
    elif cfg.data.path and cfg.data.num_eval:
        sources[""] = cfg.data
    rule = cfg.data.on_bad_row
    for name, one in cfg.data.evals.items():
        sources[name] = DataConfig(
            path=one.path, split=one.split, options=one.options, columns=one.columns, on_bad_row=rule
        )
    judges = Judges(cfg)
    for name, source in sources.items():
        verifier, options, setting = judges.choice(name)
        problem = data.first_problem(source, seed=cfg.train.seed)
        try:
            registry.load(verifier, options).check_row(problem)
        except ValueError as error:
            raise ConfigError(f"{setting}: {error}") from error


def results_of(one: Prepared, seed: int | None, folder: "Folder | None", screen: Screen) -> Iterator[Result]:
    """One model on all its sets; each is on disk before the next is sampled."""
    cfg = one.cfg
    if seed is not None:
        cfg = cfg.model_copy(update={"train": cfg.train.model_copy(update={"seed": seed})})
    screen.say(f"{one.subject.label}: {', '.join(f'{len(p)} problems of {n}' for n, p in one.sets.items())}")
    with Judges(cfg) as judges, contextlib.ExitStack() as stack:
        engine = build_engine(cfg, one.model.folder, eos_ids=one.model.eos_ids, seed=cfg.train.seed)
        stack.callback(engine.close)
        sampler = stack.enter_context(sampler_of(cfg, engine, one.prompter))
        for name, problems in one.sets.items():
            judge = judges.of(name)
            groups = attempt(name, problems, sampler, judge, cfg=cfg, progress=screen.progress)
            if folder is not None:  # also what the verifier could not judge: it says why
                folder.write_rollouts(one.subject, name, groups)
            require_decided(name, groups, judge)
            row = summarise(name, groups, step=one.subject.step, ks=cfg.eval.pass_k, by=cfg.eval.by)
            row |= judge.take_health()
            policy = judge.pool.verifier.policy
            used = used_by(one, cfg, name, f"{judge.name} {policy.version}")
            score = scores(groups, cfg.eval.pass_k)
            result = Result(one.subject.label, one.subject.model, row, used, score, groups)
            if folder is not None:
                folder.write_row(result, cfg)
            yield result


def used_by(one: Prepared, cfg: Config, name: str, verifier: str) -> dict[str, Any]:
    """What shaped the numbers, besides the weights."""
    num_samples, temperature = sampling_of(cfg, name)
    backend = backend_of(cfg)
    return {
        "model": one.model.fingerprint,
        "num_samples": num_samples,
        "temperature": temperature,
        "max_tokens": cfg.rollout.max_tokens,
        "prompts": one.prompter.template_hash,
        "verifier": verifier,
        "data": data.fingerprint_of(one.sets[name]),
        "sampler": f"{backend} {cfg.policy.dtype}",
        "seed": cfg.train.seed,
    }


def scores(groups: Sequence[VerifiedGroup], ks: Sequence[int]) -> dict[str, dict[int, float]]:
    """avg and each pass@k by problem, called by a digest of all that the problem holds."""
    found: dict[str, dict[int, float]] = {name: {} for name in ("avg", *(f"pass@{k}" for k in ks))}
    for group in groups:
        problem, num = data.digest_of(group.problem, group.problem.id), len(group.correctness)
        if num:
            found["avg"][problem] = avg_score(group)
        for k in ks:
            if k <= num:
                found[f"pass@{k}"][problem] = pass_score(group, k)
    return found


def compared(results: Sequence[Result]) -> Iterator[Comparison]:
    """Each other model against the first, on the problems of a set that both were scored on."""
    firsts: dict[str, Result] = {}
    for result in results:
        first = firsts.setdefault(str(result.row["data"]), result)
        if first is result:
            continue
        for name in [score for score in first.scores if score in result.scores]:
            before, after = first.scores[name], result.scores[name]
            both = [problem for problem in before if problem in after]
            if len(both) > 1:
                paired = paired_difference([before[p] for p in both], [after[p] for p in both])
                data_name = str(result.row["data"])
                yield Comparison(data_name, name, first.label, result.label, len(both), paired)


class Folder:
    """Where -o writes: eval.jsonl, and for each model its settings and rollouts."""

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self.path = path.expanduser()
        self.folders = dict(zip(labels, folder_names(labels), strict=True)) if len(labels) > 1 else {}
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise ConfigError(f"-o {path}: is there already, and not empty; name a new folder")

    def open(self) -> None:
        """Make it, once nothing else can be wrong."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"-o {self.path}: cannot be made ({error.strerror}); name another") from error

    def of(self, label: str) -> Path:
        """One model's part: the folder itself if there is only one."""
        return self.path / self.folders.get(label, ".")

    def write_rollouts(self, subject: Subject, name: str, groups: Sequence[VerifiedGroup]) -> None:
        """Every rollout, in the columns of a run's."""
        path = self.of(subject.label) / "evals" / f"{name_of(subject.step)}_{name}.parquet"
        rollout_file.write(path, subject.step, groups, {})

    def write_row(self, result: Result, cfg: Config) -> None:
        """One line of eval.jsonl, and the settings it was made with."""
        with (self.path / "eval.jsonl").open("a") as file:
            file.write(json.dumps(eval_report.row_json(result), allow_nan=False) + "\n")
        settings = tomli_w.dumps(eval_plan.used_tree(cfg))
        (self.of(result.label) / "config.toml").write_text(settings)

    def write_comparisons(self, comparisons: Sequence[Comparison]) -> None:
        """comparisons.json, where there is anything to compare."""
        if comparisons:
            rows = [eval_report.comparison_json(one) for one in comparisons]
            (self.path / "comparisons.json").write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")

    def write_side_effects(self, found: side_effects.SideEffects) -> None:
        """side_effects.json."""
        text = json.dumps(found.as_json(), indent=1, allow_nan=False)
        (self.path / "side_effects.json").write_text(text + "\n")


def folder_names(labels: Sequence[str]) -> list[str]:
    """A name for each label's folder, no two alike even where case does not count."""
    names: list[str] = []
    taken = {"eval.jsonl", "comparisons.json", "side_effects.json"}
    for label in labels:
        name = plain = re.sub(r"[^\w.-]+", "_", label).lstrip(".") or "model"
        for number in itertools.count(2):
            if name.casefold() not in taken:
                break
            name = f"{plain}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


@contextlib.contextmanager
def stdout_for_the_report() -> Iterator[Any]:
    """Standard output as a file for the report alone; what libraries print meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w") as report:
            yield report
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
