"""A TRL reward function -> a verifier (`trl:module:function`); a verifier -> a TRL reward function.

TRL itself is not needed for either. Its contract (docs of GRPOTrainer, 1.16): a reward function gets
`prompts`, `completions`, `completion_ids`, every other column of the data by name, and `trainer_state`,
`log_extra`, `log_metric`; it returns one float or None per completion. None is "does not apply": undecided.
"""

import atexit
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any

from verigrad.verifiers import registry
from verigrad.verifiers.adapters.completion_text import rows_of, text_of
from verigrad.verifiers.base import Attempt, Message, Problem, Verdict, verifier
from verigrad.verifiers.binding import as_verdict, await_if_needed
from verigrad.verifiers.isolation import VerifierPool

NOT_COLUMNS = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
log = logging.getLogger(__name__)
Completion = str | Sequence[Message]


@verifier("trl", version="1", deadline_s=30.0)
class TrlReward:
    """What a TRL reward function says; it is called once per group of attempts at one problem."""

    def __init__(
        self, *, reference: str, answer_column: str = "answer", kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """`reference`: `package.module:function` or `path/file.py:function`.

        `answer_column`: the name the function knows the right answer by; `kwargs`: more keyword arguments.
        """
        self.function = registry.find(reference, name=f"trl:{reference}")
        if not callable(self.function):
            raise ValueError(f"trl:{reference} is {type(self.function).__name__}; expected a reward function")
        self.name, self.answer_column, self.kwargs = f"trl:{reference}", answer_column, dict(kwargs or {})

    def verify(self, problem: Problem, attempts: Sequence[Attempt]) -> list[Verdict]:
        """One verdict per attempt. Raises what the function raises: that is undecided."""
        num = len(attempts)
        metrics: dict[str, float] = {}
        columns = {name: [value] * num for name, value in problem.meta.items()}
        columns[self.answer_column] = [problem.answer] * num
        texts = [attempt.text for attempt in attempts]
        chat = not isinstance(problem.prompt, str)
        given = {
            **columns,
            "prompts": [problem.prompt] * num,
            "completions": [[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
            "completion_ids": _NoTokens(num),
            "trainer_state": SimpleNamespace(global_step=0, max_steps=0, epoch=0.0),
            "log_extra": lambda column, values: None,  # a table of the trainer's, which nobody reads here
            "log_metric": lambda name, value: metrics.__setitem__(str(name), float(value)),
        }
        rewards = await_if_needed(self.function(**{**given, **self.kwargs}))
        try:
            rewards = list(rewards)
        except TypeError:
            rewards = None
        if rewards is None or len(rewards) != num:
            found = "no list" if rewards is None else f"{len(rewards)} rewards"
            raise ValueError(f"{self.name} returned {found} for {num} completions; expected one for each")
        return [self._verdict(reward, metrics) for reward in rewards]

    def _verdict(self, reward: Any, metrics: Mapping[str, float]) -> Verdict:
        if reward is None or (isinstance(reward, float) and math.isnan(reward)):
            return Verdict.undecided(f"{self.name} returned None: it does not apply")
        verdict = as_verdict(reward, name=self.name)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return Verdict(verdict.reward, verdict.outcome, finite, f"{self.name} returned {reward!r:.40}")


class _NoTokens(Sequence[Any]):
    """In place of `completion_ids`, which a verifier does not get: says so to a function that reads them."""

    def __init__(self, num: int) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: Any) -> Any:
        raise TypeError(
            "this reward function reads completion_ids, which a verifier is not given; read the text"
        )


class RewardFunc:
    """A verifier as GRPOTrainer's `reward_funcs` takes it; judges in killable worker processes."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        answer_column: str = "answer",
        num_workers: int = 2,
        deadline_s: float | None = None,
    ) -> None:
        self.__name__ = name  # what TRL calls it in its metrics
        self.answer_column = answer_column
        self.pool = VerifierPool(name, options=options, num_workers=num_workers, deadline_s=deadline_s)
        atexit.register(self.pool.close)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion, None where the check failed; other lists are columns of the data."""
        kept = {name: values for name, values in columns.items() if name not in NOT_COLUMNS}
        rows = rows_of({"prompt": prompts, **kept}, len(completions), what=self.__name__)
        pending = []
        # A verifier of whole groups sees neighbours with an equal row together: TRL keeps them side by side.
        for _, group in itertools.groupby(
            range(len(rows)), key=lambda at: json.dumps(rows[at], default=repr)
        ):
            places = list(group)
            attempts = [Attempt(text_of(completions[at])) for at in places]
            pending.append(self.pool.submit(self._problem(rows[places[0]]), attempts))
        verdicts = [verdict for future in pending for verdict in future.result()]
        if lost := [verdict.reason for verdict in verdicts if not verdict.decided]:
            log.warning(
                "%s: %d of %d undecided, the first: %s", self.__name__, len(lost), len(verdicts), lost[0]
            )
        return [verdict.reward for verdict in verdicts]

    def _problem(self, row: Mapping[str, Any]) -> Problem:
        prompt, answer = row["prompt"], row.get(self.answer_column)
        meta = {name: value for name, value in row.items() if name not in ("prompt", self.answer_column)}
        digest = hashlib.sha256(json.dumps(row, sort_keys=True, default=repr).encode()).hexdigest()
        return Problem(str(row.get("id", digest[:16])), prompt, answer, meta)

    def __enter__(self) -> "RewardFunc":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        self.pool.close()
        atexit.unregister(self.pool.close)


def as_reward_func(
    name: str,
    *,
    answer_column: str = "answer",
    num_workers: int = 2,
    deadline_s: float | None = None,
    **options: Any,
) -> RewardFunc:
    """The verifier `name`, with its `options`, as a TRL reward function.

    `answer_column` is the column of the data set with the right answer. ValueError for an unknown verifier or
    option, SandboxUnavailable when it needs a sandbox and none works here.
    """
    return RewardFunc(
        name, options, answer_column=answer_column, num_workers=num_workers, deadline_s=deadline_s
    )
