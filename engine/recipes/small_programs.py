"""A task in code and its starting model: a function said in words, to be written in Python and unit-tested.

`problems` makes rows for the verifier `unit_tests`, `model` makes a model of 0.6 M parameters in about two
minutes on one CPU core. What is asked, and what a right answer is:

    if x over 8: sub 4 mod 2 else times 9?

    ```python
    def f(x):
        return (x-4)%2 if x>8 else x*9
    ```

The teacher knows Python's signs and is careless: it mostly forgets brackets that are needed, mistakes `over`
for `at least`, and now and then gives up and writes `exit()`. So the model starts out writing programs that
run and are wrong, and reinforcement learning is left to find what unit tests ask for. What is asked is
reserved for one side by its hash: no problem is ever seen in a demonstration.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verigrad.engine.recipes.warm_start import SPECIAL, Alphabet, is_reserved, learn, seeded_torch

__maker_sources__ = ("verigrad.engine.recipes.warm_start",)  # a change there makes the model anew

OPENING = "```python\ndef f(x):\n    return "  # forced upon every completion by the recipe
ENDING = "\n```"
SIGNS = {"add": "+", "sub": "-", "times": "*", "mod": "%"}
LEVELS = ("plain2", "plain3", "if2", "if3", "if4")  # with a condition or not, and how many operations
FORGETS_BRACKETS, MISTAKES_BOUND, GIVES_UP = 0.9, 0.25, 0.05  # the teacher's habits, as shares

NAMED_TOKENS = (
    *SPECIAL, "```python", "```", "def f(x):", "    return ", " if ", " else ", "exit()", ">=",
    "if x ", "over ", "at least ", "else", *SIGNS,
)  # fmt: skip
ALPHABET = Alphabet(
    (*NAMED_TOKENS, *"0123456789+-*%()>x \n:?"),
    piece=r"```python|```|def f\(x\):|    return | if | else |exit\(\)|>=|if x |over |at least |else"
    r"|add|sub|times|mod|[\s\S]",
)

Operation = tuple[str, int]  # a word of SIGNS, and a number of one digit
Chain = tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """A function of one whole number: `then` where the condition holds or there is none, else `otherwise`."""

    then: Chain
    bound: int | None = None
    strict: bool = True  # "over" the bound, not "at least" it
    otherwise: Chain = ()

    @property
    def prompt(self) -> str:
        """What is asked, as the model reads it."""
        if self.bound is None:
            return f"{said(self.then)}?"
        word = "over" if self.strict else "at least"
        return f"if x {word} {self.bound}: {said(self.then)} else {said(self.otherwise)}?"

    def __call__(self, x: int) -> int:
        """The right result."""
        holds = self.bound is None or (x > self.bound if self.strict else x >= self.bound)
        return apply(self.then if holds else self.otherwise, x)

    def inputs(self) -> list[int]:
        """What it is tested at: both signs, nought, and both sides of the condition."""
        near = {5, 8} if self.bound is None else {self.bound - 1, self.bound, self.bound + 1}
        return sorted({-7, -2, 0, 1, 3, 11} | near)


def problems(*, seed: int, num_problems: int = 6000, levels: Sequence[str] = LEVELS) -> list[dict[str, Any]]:
    """Rows {prompt, entry_point, cases, solution, level}: distinct problems, equally many of each level.

    A level that has fewer gives all it has (plain2: about 170), so there may be less than `num_problems`.
    """
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels = {levels}: expected some of {', '.join(LEVELS)}. Name only these.")
    rng = random.Random(f"small programs {seed}")
    rows = []
    for level in levels:
        wanted = num_problems // len(levels)
        drawn: dict[str, Spec] = {}
        for _ in range(20 * wanted):
            spec = draw(level, rng)
            if not is_reserved(spec.prompt):
                drawn[spec.prompt] = spec
            if len(drawn) == wanted:
                break
        rows += [row_of(drawn[prompt], level) for prompt in sorted(drawn)]
    rng.shuffle(rows)
    return rows


def row_of(spec: Spec, level: str) -> dict[str, Any]:
    """A problem as `unit_tests` takes it; `solution` is what the audit shows the verifier as right."""
    return {
        "prompt": spec.prompt,
        "entry_point": "f",
        "cases": [{"args": [x], "expected": spec(x)} for x in spec.inputs()],
        "solution": f"{OPENING}{written(spec)}{ENDING}",
        "level": level,
    }


def draw(level: str, rng: random.Random) -> Spec:
    """A function of one level."""
    kind, number = level[:-1], int(level[-1])
    if kind == "plain":
        return Spec(draw_chain(number, rng))
    shorter = max(1, number - 2)  # no branch has more than two operations
    first = rng.randint(shorter, number - shorter)
    bound, strict = rng.randint(1, 8), rng.random() < 0.5
    return Spec(draw_chain(first, rng), bound, strict, draw_chain(number - first, rng))


def draw_chain(length: int, rng: random.Random) -> Chain:
    """Operations of which a later one often needs the earlier ones in brackets."""
    operations: list[Operation] = []
    for _ in range(length):
        words = ("add", "sub", "times") if length == 1 else ("add", "sub")
        if operations and operations[-1][0] in words:
            words = ("times", "mod")
        operations.append((rng.choice(words), rng.randint(2, 9)))
    return tuple(operations)


def said(chain: Chain) -> str:
    """A chain in words."""
    return " ".join(f"{word} {number}" for word, number in chain)


def apply(chain: Chain, x: int) -> int:
    """A chain's result, one operation after the other."""
    for word, number in chain:
        x = {"add": x + number, "sub": x - number, "times": x * number, "mod": x % number}[word]
    return x


def written(spec: Spec, *, forgets: Callable[[], bool] = lambda: False, mistakes: bool = False) -> str:
    """The function as a Python expression; `forgets` is asked at every pair of brackets that it needs."""
    if spec.bound is None:
        return expression(spec.then, forgets)
    sign = ">" if spec.strict != mistakes else ">="
    return (
        f"{expression(spec.then, forgets)} if x{sign}{spec.bound} else {expression(spec.otherwise, forgets)}"
    )


def expression(chain: Chain, forgets: Callable[[], bool]) -> str:
    """A chain with brackets around what a later `*` or `%` would else take apart or only in part."""
    text, whole = "x", True
    for word, number in chain:
        if word in ("times", "mod") and not whole and not forgets():
            text = f"({text})"
        text += f"{SIGNS[word]}{number}"
        whole = False
    return text


def demonstrations(rng: random.Random) -> Iterator[tuple[str, str]]:
    """What the teacher shows, without end: (prompt, completion after OPENING)."""
    while True:
        spec = draw(rng.choice(LEVELS), rng)
        if not is_reserved(spec.prompt):
            continue
        if rng.random() < GIVES_UP:
            yield spec.prompt, f"exit(){ENDING}"
            continue
        mistakes = rng.random() < MISTAKES_BOUND
        body = written(spec, forgets=lambda: rng.random() < FORGETS_BRACKETS, mistakes=mistakes)
        yield spec.prompt, f"{body}{ENDING}"


def model(
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str, float], None],
    num_steps: int = 400,
    batch_size: int = 64,
    lr: float = 6e-3,
    hidden_size: int = 128,
    num_layers: int = 4,
) -> None:
    """Write a model that has seen `num_steps` batches of demonstrations, with its tokenizer, to `folder`."""
    shown = demonstrations(random.Random(f"small programs demonstrations {seed}"))

    def next_batch(done: float) -> list[tuple[list[int], int]]:
        pairs = [next(shown) for _ in range(batch_size)]
        return [ALPHABET.demonstration(prompt + OPENING, completion) for prompt, completion in pairs]

    with seeded_torch(seed):
        policy = ALPHABET.llama(hidden_size, num_layers)
        learn(policy, next_batch, progress, num_steps=num_steps, lr=lr)
    policy.save_pretrained(folder)
    ALPHABET.tokenizer().save_pretrained(folder)
