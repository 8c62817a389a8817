"""A task set of Prime Intellect's `verifiers` (v1) -> rows (`prime:module:Taskset`); a row -> its verdict.

That package's pins contradict vLLM's, so it usually lives in an environment of its own: `python` names its
interpreter, and both the rows and the verifier's workers come from there. Single-turn tasks only: the trace
that a task scores is built from the prompt and one completion.
"""

import asyncio
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from verigrad.sandboxes.base import Sandbox
from verigrad.verifiers import interpreter, registry
from verigrad.verifiers.base import POLICY_ATTRIBUTE, Attempt, Policy, Problem, Verdict
from verigrad.verifiers.binding import as_verdict

COLUMN = "prime"
TESTED = "0.4.0"


def rows(
    reference: str,
    *,
    seed: int,
    python: str = "",
    size: int = 1000,
    config: Mapping[str, Any] | None = None,
) -> Sequence[dict[str, Any]]:
    """The first `size` tasks of a task set, as rows `{prompt, answer?, meta}`.

    `config` goes to the task set, and the run's seed where its config has a `seed` that is not given.
    ValueError for a task set that is not there, or whose tasks need more than a prompt and a completion.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size = {size!r}: expected a whole number of rows above 0")
    request = {"reference": reference, "config": dict(config or {}), "size": size, "seed": seed}
    made: list[dict[str, Any]] = interpreter.ask(python, __name__, request)
    return made


class PrimeTask:
    """The reward that a task's own functions give one completion; its metrics and rewards are the parts."""

    def __init__(
        self,
        *,
        reference: str,
        python: str = "",
        config: Mapping[str, Any] | None = None,
        runtime: bool = False,
    ) -> None:
        """`reference`: `package.module:Taskset` or `path/file.py:Taskset`, found by `python`.

        `runtime` gives rewards that ask for one our sandbox, as new; without it such tasks are refused.
        """
        self.reference, self.config, self.runtime = reference, dict(config or {}), runtime
        self.taskset: Any = None
        policy = Policy(
            name=f"prime:{reference}",
            version="1",
            runs="sandbox" if runtime else "worker",
            deadline_s=30.0,
            warm_up=self._load,
            python=python,
        )
        setattr(self, POLICY_ATTRIBUTE, policy)

    def _load(self) -> None:
        self.taskset = taskset_of(self.reference, self.config)

    def check_row(self, problem: Problem) -> None:
        """ValueError for a row that is not of `rows`, or whose rewards need a runtime that is not given."""
        row = problem.meta.get(COLUMN)
        if not isinstance(row, Mapping) or "data" not in row:
            raise ValueError(
                f"verifier 'prime:{self.reference}' needs the column {COLUMN!r} that data.path = "
                f"'prime:{self.reference}' gives its rows, and problem {problem.id!r} has none"
            )
        if row.get("needs_runtime") and not self.runtime:
            raise ValueError(
                f"the rewards {', '.join(row['needs_runtime'])} of {self.reference} need a runtime to run "
                "programs in, and would be left out without a word; set verifier.options.runtime = true to "
                "give them a sandbox"
            )

    def verify(self, problem: Problem, attempt: Attempt) -> Verdict:
        """Score the completion as the package would. Raises what its functions raise: that is undecided."""
        if self.taskset is None:
            self._load()
        kind = self.taskset.task_type()
        data = kind.data_type().model_validate(problem.meta[COLUMN]["data"])
        task = kind(data, self.taskset.config.task)
        if (missing := needing_runtime(task)) and not self.runtime:
            raise ValueError(f"the rewards {', '.join(missing)} need a runtime")
        trace = trace_of(task, problem, attempt)
        box = SandboxRuntime(attempt.sandbox) if self.runtime else None
        asyncio.run(_score(task, trace, box))
        unscored = [name for name, reward in trace.rewards.items() if reward is None]
        if unscored or not trace.rewards:
            return Verdict.undecided(f"no score for {', '.join(unscored) or 'any reward'}")
        parts = {str(name): reward.score for name, reward in trace.rewards.items()}
        parts |= {str(name): value for name, value in trace.metrics.items() if value is not None}
        verdict = as_verdict(trace.reward, name=f"prime:{self.reference}")
        finite = {name: float(value) for name, value in parts.items() if math.isfinite(value)}
        said = ", ".join(f"{name} {reward.score:.3g}" for name, reward in trace.rewards.items())
        return Verdict(verdict.reward, verdict.outcome, finite, said[:200])


async def _score(task: Any, trace: Any, box: "SandboxRuntime | None") -> None:
    if box is not None:
        await task.setup(trace, box)
    await task.score(trace, box)


class SandboxRuntime:
    """Our sandbox with the verbs of a v1 runtime that rewards use; paths lie below the sandbox's HOME."""

    type = "verigrad"

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.env: dict[str, str] = {}

    async def run(self, argv: list[str], env: Mapping[str, str]) -> Any:
        """A command to its end. A program stopped at a limit has the exit code 124, as from `timeout`."""
        from verifiers.v1 import ProgramResult  # type: ignore[import-not-found]

        done = self.sandbox.exec(argv, env={**self.env, **env})
        code = done.exit_code if done.exit_code is not None else 128 + done.signal if done.signal else 124
        texts = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
        return ProgramResult(code, *texts)

    async def read(self, path: str, max_bytes: int | None = None) -> bytes:
        """A file; FileNotFoundError when it is none, or too large."""
        from verigrad.sandboxes.base import ProgramFault

        try:
            data = self.sandbox.read_file(path)
        except ProgramFault as error:
            raise FileNotFoundError(str(error)) from error
        return data if max_bytes is None else data[:max_bytes]

    async def write(self, path: str, data: bytes) -> None:
        """Put a file there."""
        self.sandbox.write_file(path, data)

    async def alive(self) -> bool:
        """Whether it still runs anything."""
        return bool((await self.run(["true"], {})).exit_code == 0)


def taskset_of(reference: str, config: Mapping[str, Any], *, seed: int | None = None) -> Any:
    """The task set, made of its own config class; ValueError names what is missing or not known."""
    try:
        import verifiers.v1 as vf
        from verifiers.v1.utils.generic import concrete_type  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            f"the package `verifiers` cannot be imported here ({error}); install verifiers=={TESTED} in an "
            "environment of its own, and set the option `python` to that environment's interpreter"
        ) from error
    kind = registry.find(reference, name=f"prime:{reference}", what="task set")
    if not (isinstance(kind, type) and issubclass(kind, vf.Taskset)):
        raise ValueError(f"prime:{reference} is {kind!r:.60}; expected a class of verifiers.v1.Taskset")
    settings = concrete_type(kind, vf.TasksetConfig) or vf.TasksetConfig
    given = dict(config)
    if seed is not None and "seed" in settings.model_fields:
        given.setdefault("seed", seed)
    if unknown := sorted(set(given) - set(settings.model_fields)):
        known = ", ".join(settings.model_fields)
        raise ValueError(f"the config of {reference} has no {unknown[0]!r}; it has {known}")
    return kind(settings.model_validate(given))


def needing_runtime(task: Any) -> list[str]:
    """The task's rewards, metrics and judges that cannot be asked without a runtime."""
    named = [(fn.__name__, fn) for kind in ("reward", "metric") for fn in task.hooks(kind)]
    named += [(judge.reward_name, judge.score) for judge in task.plugged_judges()]
    asked = [(name, inspect.signature(fn).parameters.get("runtime")) for name, fn in named]
    return [name for name, it in asked if it is not None and it.default is inspect.Parameter.empty]


def trace_of(task: Any, problem: Problem, attempt: Attempt) -> Any:
    """What the package would have recorded of this rollout."""
    import verifiers.v1 as vf

    prompt = problem.prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    said = [kinds[str(turn["role"])](content=turn["content"]) for turn in turns]
    nodes = [
        vf.MessageNode(parent=at - 1 if at else None, message=message, sampled=False)
        for at, message in enumerate(said)
    ]
    reply = vf.AssistantMessage(content=attempt.final_text)
    nodes.append(vf.MessageNode(parent=len(nodes) - 1, message=reply, sampled=True))
    return vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=nodes,
        is_completed=True,
        ok=True,
        stop_condition="max_tokens" if attempt.truncated else "done",
    )


def _made(reference: str, config: Mapping[str, Any], size: int, seed: int) -> list[dict[str, Any]]:
    taskset = taskset_of(reference, config, seed=seed)
    return [_row(reference, taskset, task) for task in taskset.take(size)]


def _row(reference: str, taskset: Any, task: Any) -> dict[str, Any]:
    if type(task).toolsets(task.config) or type(taskset).toolsets(taskset.config):
        raise ValueError(f"the tasks of {reference} need tool servers, which this adapter does not run")
    data = task.data
    if data.prompt is None:
        raise ValueError(f"the tasks of {reference} have no prompt: a simulated user opens the conversation")
    prompt = data.prompt
    if not isinstance(prompt, str) or data.system_prompt:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else []
        turns = turns or [turn.model_dump(mode="json", exclude_none=True) for turn in prompt]
        if data.system_prompt:
            turns.insert(0, {"role": "system", "content": data.system_prompt})
        prompt = turns
    held = json.loads(data.model_dump_json(exclude_none=True))
    row = {"prompt": prompt, "meta": {COLUMN: {"data": held, "needs_runtime": needing_runtime(task)}}}
    answer = held.get("answer")
    return row | ({"answer": answer} if isinstance(answer, (str, int, float)) and answer != "" else {})


if __name__ == "__main__":
    interpreter.answer_with(_made)
