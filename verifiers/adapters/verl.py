"""A verl-style `compute_score` -> a verifier (`verl:module:function`); a verifier -> such a function.

The contract (verl's custom_reward_function; rllm and others follow it):
`compute_score(data_source, solution_str, ground_truth, extra_info=None)` -> a number, or a dict with "score".
"""

import atexit
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from verigrad.verifiers import registry
from verigrad.verifiers.base import Attempt, Problem, Verdict, verifier
from verigrad.verifiers.binding import as_verdict, await_if_needed
from verigrad.verifiers.isolation import VerifierPool


class Undecided(RuntimeError):
    """The check itself failed; verl knows no reward for that, and 0 would blame the answer."""


@verifier("verl", version="1", deadline_s=30.0)
class ComputeScore:
    """What a `compute_score` says of the whole completion, its thinking included, as in verl."""

    def __init__(
        self, *, reference: str, data_source: str = "", kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """`reference`: `package.module:function` or `path/file.py:function`.

        `data_source` is for rows without that column; `kwargs` are verl's reward_kwargs.
        """
        self.function: Callable[..., Any] = registry.find(reference, name=f"verl:{reference}")
        if not callable(self.function):
            raise ValueError(f"verl:{reference} is {type(self.function).__name__}; expected compute_score")
        self.name, self.data_source, self.kwargs = f"verl:{reference}", data_source, dict(kwargs or {})

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Its score as a verdict, the other numbers of its dict as parts. None is undecided."""
        meta = dict(problem.meta)
        own = meta.get("reward_model")  # where verl's own data sets keep it
        truth = problem.answer
        if truth is None and isinstance(own, Mapping):
            truth = own.get("ground_truth")
        extra = meta.get("extra_info")
        said = await_if_needed(
            self.function(
                data_source=str(meta.get("data_source", self.data_source)),
                solution_str=response,
                ground_truth=truth,
                extra_info=dict(extra) if isinstance(extra, Mapping) else meta,
                **self.kwargs,
            )
        )
        parts: dict[str, float] = {}
        if isinstance(said, Mapping):
            if "score" not in said:
                raise ValueError(f"{self.name} returned a dict without 'score': {sorted(map(str, said))[:8]}")
            numbers = {name: value for name, value in said.items() if isinstance(value, (bool, int, float))}
            parts = {str(name): float(value) for name, value in numbers.items() if name != "score"}
            said = said["score"]
        verdict = as_verdict(said, name=self.name)
        if not verdict.decided:
            return Verdict.undecided(f"{self.name} returned None")
        return Verdict(verdict.reward, verdict.outcome, parts, f"{self.name} returned {said!r:.40}")


class ScoreFunc:
    """A verifier as a `compute_score`; may be called from many threads."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        num_workers: int = 2,
        deadline_s: float | None = None,
    ) -> None:
        self.__name__ = name
        self.pool = VerifierPool(name, options=options, num_workers=num_workers, deadline_s=deadline_s)
        atexit.register(self.pool.close)

    def __call__(
        self,
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """{"score", "acc", "outcome", "reason"}; Undecided when the check itself failed."""
        meta = {**(extra_info or {}), "data_source": data_source}
        key = json.dumps([meta, ground_truth], sort_keys=True, default=repr)
        problem = Problem(hashlib.sha256(key.encode()).hexdigest()[:16], "", ground_truth, meta)
        (verdict,) = self.pool.submit(problem, [Attempt(solution_str)]).result()
        if verdict.reward is None:
            raise Undecided(f"{self.__name__} could not decide: {verdict.reason}")
        right = verdict.outcome == "right"
        return {"score": verdict.reward, "acc": right, "outcome": verdict.outcome, "reason": verdict.reason}


def as_compute_score(
    name: str, *, num_workers: int = 2, deadline_s: float | None = None, **options: Any
) -> ScoreFunc:
    """The verifier `name`, with its `options`, as a `compute_score`.

    `ground_truth` becomes the answer, `extra_info` the other columns. ValueError for an unknown verifier or
    option, SandboxUnavailable when it needs a sandbox and none works here.
    """
    return ScoreFunc(name, options, num_workers=num_workers, deadline_s=deadline_s)
