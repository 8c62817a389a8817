"""A reasoning-gym task and its settings -> rows; such a row and a completion -> the task's own verdict.

Needs the package `reasoning-gym`. A row holds what rebuilds its entry (name, config, index), and no verdict
depends on anything that travelled with it. Scoring is confined: see verifiers/adapters/confined.py, and
plain_answers.py for the nine tasks that evaluate the answer as code.
"""

import difflib
import functools
import hashlib
import inspect
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verigrad.verifiers import interpreter
from verigrad.verifiers.adapters import confined, plain_answers
from verigrad.verifiers.base import Outcome, Problem, Verdict, verifier
from verigrad.verifiers.marked import tags

COLUMN = "reasoning_gym"
# Tasks that pay for what does not solve them, found by running them (0.1.25).
DEFECTIVE = {
    "game_of_life_halting": "pays any text",
    "puzzle24": "does not look at which numbers it gave, so one answer fits every row",
}
NO_ORACLE = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
EVALUATED: dict[str, Callable[[str], str | None]] = {
    "countdown": plain_answers.arithmetic,
    "puzzle24": plain_answers.arithmetic,
    "simple_integration": plain_answers.algebra,
    "intermediate_integration": plain_answers.algebra,
    "polynomial_multiplication": plain_answers.algebra,
    "string_insertion": plain_answers.literal,
    "spiral_matrix": plain_answers.literal,
    "binary_matrix": plain_answers.literal,
    "n_queens": plain_answers.literal,
}


def rows(
    name: str,
    *,
    seed: int,
    size: int = 1000,
    config: Mapping[str, Any] | None = None,
    allow_defective: bool = False,
) -> Sequence[dict[str, Any]]:
    """Rows `{prompt, answer, meta}` of a task, or of several as `composite`; the same ones for the same seed.

    `config` goes to the task; a `seed` in it comes before the run's. ValueError for what is not known.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size = {size!r}: expected a whole number of rows above 0")
    settings = {"seed": seed, **dict(config or {}), "size": size}
    require_sound(name, settings, allow_defective=allow_defective)
    # In a process of its own: some tasks depend on the order of sets, which workers have fixed.
    made: list[dict[str, Any]] = interpreter.ask("", __name__, {"name": name, "settings": settings})
    return made


def _made(name: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    dataset = dataset_of(name, json.dumps(settings, sort_keys=True))
    return [_row(name, settings, index, entry_of(dataset, index)) for index in range(settings["size"])]


def _row(name: str, settings: Mapping[str, Any], index: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": entry["question"]}
    if entry["answer"] is not None:
        row["answer"] = str(entry["answer"])
    source = {"name": name, "config": dict(settings), "index": index, "sha256": _digest(entry)}
    return row | {"meta": {COLUMN: source, "task": _task(name, entry)}}


def _import() -> None:
    """A second of imports, before the clock of a check runs."""
    _package()


def _gold(problem: Problem) -> str | None:
    """The listed answer, which five tasks do not have."""
    return None if problem.answer is None else f"<answer>{problem.answer}</answer>"


@verifier(
    "reasoning_gym",
    version="1",
    canary={
        "response": "<answer>94*4 - 61 - 6</answer>",
        "answer": None,
        "meta": {
            COLUMN: {
                "name": "countdown",
                "config": {"seed": 1, "size": 30},
                "index": 0,
                "sha256": "65f0b68362d0aee3",
            }
        },
    },
    warm_up=_import,
    gold=_gold,
)
class ReasoningGym:
    """Right when the task's own scorer gives the answer the threshold; its score is a part of the verdict."""

    def __init__(
        self,
        *,
        threshold: float = 1.0,
        partial: bool = False,
        whole_text: bool = False,
        allow_defective: bool = False,
    ) -> None:
        """`threshold`: score an answer must reach, and less pays 0; `partial` pays the score from there on.

        `whole_text`: a completion without `<answer>` tags is its own answer, instead of unparseable.
        """
        if isinstance(threshold, bool) or not 0 < threshold <= 1:
            raise ValueError(
                f"reasoning_gym: threshold = {threshold!r}; expected a number above 0, at most 1"
            )
        if reason := confined.unavailable():
            raise ValueError(f"reasoning_gym evaluates what models write, and {reason}; judge there")
        self.threshold, self.partial, self.whole_text = threshold, partial, whole_text
        self.allow_defective = allow_defective

    def check_row(self, problem: Problem) -> None:
        """ValueError for a row that was not made by `rows`, or of a task that pays wrong answers."""
        source = problem.meta.get(COLUMN)
        if not isinstance(source, Mapping) or set(source) != {"name", "config", "index", "sha256"}:
            raise ValueError(
                f"verifier 'reasoning_gym' needs the column {COLUMN!r} that data.path = 'reasoning_gym:NAME' "
                f"gives its rows, and problem {problem.id!r} has none. Use that data, or another verifier."
            )
        require_sound(str(source["name"]), source["config"], allow_defective=self.allow_defective)

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Score one answer in a process of its own."""
        source = problem.meta[COLUMN]
        dataset = dataset_of(source["name"], json.dumps(source["config"], sort_keys=True))
        entry = entry_of(dataset, source["index"])
        if _digest(entry) != source["sha256"]:
            return Verdict.undecided("reasoning-gym here makes another row of it: was another version used?")
        found = tags(text, "answer")
        if not found and not self.whole_text:
            return Verdict.wrong("no <answer> tags", outcome="unparseable")
        answer = (found[-1][0] if found else text).strip()
        task = _task(source["name"], entry)
        if (guard := EVALUATED.get(task)) and (why := guard(answer)):
            return Verdict.wrong(f"the answer {why}", outcome="unparseable")
        known = None if task in NO_ORACLE else entry["answer"]
        score = score_of(lambda said: float(dataset.score_answer(said, entry)), answer, known=known)
        return score if isinstance(score, Verdict) else self._verdict(score, answer)

    def _verdict(self, score: float, answer: str) -> Verdict:
        reward = 0.0 if score < self.threshold else score if self.partial else 1.0
        outcome: Outcome = "right" if reward >= 1 else "partial" if reward > 0 else "wrong"
        reason = f"the task's score is {score:.3g}"
        return Verdict(reward, outcome, {"score": score}, reason, extracted=answer[:200])


def score_of(score: Callable[[str], float], answer: str, *, known: str | None) -> "float | Verdict":
    """What the scorer says of the answer, in a confined child; a Verdict when it says no number.

    The known right answer is scored first. That a scorer cannot read an answer blames the answer only then.
    """

    def prepare() -> bool:
        if known is None:
            return False
        if score(known) < 1:
            raise ValueError("the scorer refuses the answer that its own row lists")
        return True

    def job(sound: bool) -> dict[str, Any]:
        try:
            return {"score": score(answer)}
        except MemoryError:
            raise
        except Exception as error:
            return {"raised": f"{type(error).__name__}: {error}"[:300], "sound": sound}

    try:
        said = confined.call(prepare, job)
    except confined.ChildFailed as error:
        return Verdict.undecided(str(error))
    if "raised" not in said:
        return float(said["score"])
    if said["sound"]:
        return Verdict.wrong(f"the scorer cannot read it ({said['raised']})", outcome="unparseable")
    return Verdict.undecided(f"the scorer raised {said['raised']}")


def entry_of(dataset: Any, index: int) -> dict[str, Any]:
    """One entry, the same in every process: a task that forgets its own seed draws from the global one."""
    random.seed(f"{dataset.seed} {index}")
    entry: dict[str, Any] = dataset[index]
    return entry


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{entry['question']}\0{entry['answer']}".encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=64)
def dataset_of(name: str, config: str) -> Any:
    """The task's data set, from its config as JSON; ValueError names what is not known."""
    gym = _package()
    known_tasks = gym.factory.DATASETS
    if name not in known_tasks:
        raise ValueError(f"reasoning-gym has no task {name!r}; {_nearest(name, sorted(known_tasks))}")
    settings = json.loads(config)
    known = list(inspect.signature(known_tasks[name][1]).parameters)
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"task {name!r} has no setting {unknown[0]!r}; {_nearest(unknown[0], known)}")
    if name == "composite":
        settings["datasets"] = [
            gym.composite.DatasetSpec(**{"config": {}, **part}) for part in settings["datasets"]
        ]
    try:
        return gym.create_dataset(name, **settings)
    except AssertionError as error:  # how its configs refuse a value
        raise ValueError(f"task {name!r} refuses its config: {error}") from error


def require_sound(name: str, config: Mapping[str, Any], *, allow_defective: bool) -> None:
    """ValueError for a task that pays answers which do not solve it."""
    parts = config.get("datasets") if name == "composite" else None
    if name == "composite" and not (isinstance(parts, list) and all(isinstance(p, Mapping) for p in parts)):
        raise ValueError("composite needs config.datasets = [{name, weight, config?}, ...]")
    for task in [name, *(str(part.get("name")) for part in parts or ())]:
        if task in DEFECTIVE and not allow_defective:
            raise ValueError(
                f"reasoning-gym's {task} {DEFECTIVE[task]}: what it pays teaches nothing. Choose another "
                "task, or set allow_defective = true in data.options and verifier.options."
            )


def _task(name: str, entry: Mapping[str, Any]) -> str:
    """The task an entry is of: that of `composite` differs from entry to entry."""
    return str(entry["metadata"].get("source_dataset", name)) if name == "composite" else name


def _package() -> Any:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reasoning-gym cannot be imported ({error}); install it: pip install 'verigrad[adapters]'"
        ) from error
    return reasoning_gym


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)[:300]}"


if __name__ == "__main__":
    interpreter.answer_with(_made)
