"""A work file to what both sides need to know. Standard library alone: TRL's environment reads it too."""

import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

RACES = Path(__file__).resolve().parent / "races"
SIDES = ("verigrad", "trl_transformers", "trl_vllm")
"""Ours by its default path; TRL as it comes; TRL with vLLM in its process, patched to run on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of work, fixed before anything is measured."""

    name: str
    title: str
    against: str  # "best": the faster of TRL's modes; "shipped": TRL as it comes
    bar: float | None  # least ratio of TRL's seconds per step to ours; None only shows it
    bar_vllm: float | None  # the same against TRL with vLLM, whatever `against` says
    bar_memory: float | None  # most of TRL's peak memory that ours may take, both above their imports
    model: dict[str, Any]  # options of makers.model
    prompt_tokens: int  # 0: as long as the sum is
    groups: int  # problems per step
    samples: int  # completions per problem
    max_tokens: int
    steps: int
    warmup: int  # first steps, not counted
    rounds: int
    minutes: float  # no further round is begun that would go beyond them
    seed: int
    optim: dict[str, Any]  # lr, betas, eps, weight_decay, max_grad_norm

    @property
    def num_problems(self) -> int:
        """Enough that no step sees one twice."""
        return self.groups * (self.steps + 1)

    @property
    def max_prompt_tokens(self) -> int:
        """Room for the longest prompt."""
        return max(self.prompt_tokens, 16)


def is_work(path: Path) -> bool:
    """Whether this is a work file rather than a recipe."""
    return "against" in tomllib.loads(path.read_text())


def load(path: Path) -> Work:
    """Read benchmarks/races/NAME.toml; a name or table that is not known is an error."""
    tree = tomllib.loads(path.read_text())
    known = set(Work.__dataclass_fields__) - {"name"}
    if unknown := sorted(set(tree) - known):
        raise SystemExit(f"{path}: {unknown[0]} is no part of a work; it has {', '.join(sorted(known))}")
    tree = {"bar": None, "bar_vllm": None, "bar_memory": None, "seed": 0, **tree}
    if missing := sorted(known - set(tree)):
        raise SystemExit(f"{path}: {missing[0]} is missing; a work has {', '.join(sorted(known))}")
    return Work(name=path.stem, **tree)


def changed(work: Work, *, rounds: int | None, steps: int | None) -> Work:
    """The same with fewer or more rounds and steps; at least one step more than the warm-up."""
    steps = work.steps if steps is None else max(steps, work.warmup + 1)
    return replace(work, rounds=work.rounds if rounds is None else max(1, rounds), steps=steps)


def as_dict(work: Work) -> dict[str, Any]:
    """All of it, for a result or a job."""
    return asdict(work)
