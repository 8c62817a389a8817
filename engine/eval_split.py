"""What a run wrote down about its problems -> whether it is asked what it held out, and nothing else."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from verigrad.engine import rollout_file
from verigrad.engine.config import ConfigError, DataConfig
from verigrad.engine.eval_plan import Planned, validated
from verigrad.verifiers.base import Problem

Asked = tuple[str, str]
"""A problem's id and prompt, as a rollout file has them: ids alone may be line numbers."""


def require_held_out(planned: Planned, sets: Mapping[str, Sequence[Problem]]) -> None:
    """Raise ConfigError where a run's own sets are not those it recorded while it trained.

    A set that it did not record, as it never evaluated or another recipe brings it, must not hold what it
    sampled to train on. What --data names is the user's choice.
    """
    run = planned.asked_of
    if run is None or run.run is None or run.recipe is None:
        return
    theirs = validated({"data": run.recipe.get("data", {})}, run.label).data
    for name, problems in sets.items():
        (path, num), (their_path, their_num) = (source_of(data, name) for data in (planned.cfg.data, theirs))
        wanted = {asked(problem) for problem in problems}
        held_out = recorded(run.run, name) if path == their_path else None
        if held_out is None:
            require_not_trained_on(run.run, name, wanted)
        elif strange := wanted - held_out:
            raise ConfigError(
                f"{planned.subject.label}: {len(strange)} of {len(wanted)} problems of {name} are not among "
                f"the {len(held_out)} that {run.run.name} held out (one is {min(strange)[0]!r}); {REMEDY}"
            )
        elif num == their_num and (missing := held_out - wanted):
            raise ConfigError(
                f"{planned.subject.label}: {len(missing)} of the {len(held_out)} problems of {name} that "
                f"{run.run.name} held out are missing (one is {min(missing)[0]!r}); {REMEDY}"
            )


REMEDY = "restore its data, prompts and tokenizer, or use --data"


def require_not_trained_on(run: Path, name: str, wanted: set[Asked]) -> None:
    """Raise ConfigError where the run's rollouts hold one of these."""
    for path in sorted((run / "rollouts").glob("step_*.parquet")):
        if strange := wanted & read(path):
            raise ConfigError(
                f"{run.name} was trained on {len(strange)} of {len(wanted)} problems of {name} (one is "
                f"{min(strange)[0]!r}, in {path.name}); {REMEDY}"
            )


def recorded(run: Path, name: str) -> set[Asked] | None:
    """The problems of a set by the run's newest record of it, or None where there is none."""
    files = [path for path in (run / "evals").glob("step_*.parquet")
             if re.fullmatch(rf"step_\d+_{re.escape(name)}\.parquet", path.name)]  # fmt: skip
    return read(max(files)) if files else None


def read(path: Path) -> set[Asked]:
    """The problems of a file of rollouts."""
    try:
        table = pq.read_table(path, columns=["problem_id", "prompt"])
    except (OSError, ValueError) as error:  # what pyarrow raises is one of both
        raise ConfigError(f"{path} cannot be read ({error}); restore it, or use --data") from error
    return set(zip(*(column.to_pylist() for column in table.columns), strict=True))


def source_of(cfg: DataConfig, name: str) -> tuple[str, int]:
    """Where a set comes from, and how many problems of it are asked for."""
    own = cfg.evals.get(name)
    return (own.path, own.num) if own else (cfg.eval_path or cfg.path, cfg.num_eval)


def asked(problem: Problem) -> Asked:
    """As a rollout file has it."""
    texts = (problem.id, rollout_file.as_text(problem.prompt))
    name, prompt = (text.encode("utf-8", "replace").decode("utf-8") for text in texts)
    return name, prompt
