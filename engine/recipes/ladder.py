"""The quickstart's task and starting model: sums and products on seven levels, taught by a mediocre teacher.

`problems` makes the rows, `model` makes a 0.6 M parameter model in about two minutes on one CPU core. The
teacher mostly blurts an answer, often wrong, and sometimes works it out, digit by digit, with slips:

    57+48=?<think>7+8+0=15;5+4+1=10</think>\\boxed{105}     worked out
    57+48=?<think></think>\\boxed{125}                      blurted

so the model starts out mostly blurting, and reinforcement learning is left to find that working it out pays.
Pairs of numbers are reserved for one side by their hash: no problem, in either order of its numbers, is ever
seen in a demonstration.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from verigrad.engine.recipes.warm_start import SPECIAL, Alphabet, Tokens, is_reserved, learn, seeded_torch

__maker_sources__ = ("verigrad.engine.recipes.warm_start",)  # a change there makes the model anew

LEVELS = ("add2", "add3", "add4", "add5", "mul2", "mul3", "mul4")  # operation and digits
DEMO_WEIGHTS = {2: 0.36, 3: 0.30, 4: 0.20, 5: 0.14}  # by digits: the teacher likes easy ones
WORKS_OUT, GUESSES_RIGHT, SLIPS = 0.4, 0.3, 0.05  # the teacher's habits, as shares
SLIP_SIZES = {"+": (-2, -1, 1, 2), "*": (-10, -1, 1, 10)}
LARGEST_STEP = {"+": 19, "*": 89}  # 9+9+1 and 9*9+8

NAMED_TOKENS = (*SPECIAL, "<think>", "</think>", "\\boxed{")
CHARACTERS = "0123456789+-*/=()., ;:<>?{}%\nabcdefghijklmnopqrstuvwxyz"
ALPHABET = Alphabet(
    (*NAMED_TOKENS, *CHARACTERS, "<reserved0>", "<reserved1>"),  # 64
    piece=r"<think>|</think>|\\boxed\{|[\s\S]",
)

Calculation = tuple[int, str, int]  # first number, "+" or "*", second number


def problems(*, seed: int, num_problems: int = 7000, levels: Sequence[str] = LEVELS) -> list[dict[str, str]]:
    """Rows {prompt, answer, level}: distinct problems in mixed order, equally many of each level.

    A level that has fewer gives all it has (mul2: about 480), so there may be less than `num_problems` rows.
    """
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels = {levels}: expected some of {', '.join(LEVELS)}. Name only these.")
    rng = random.Random(f"ladder problems {seed}")
    rows = []
    for level in levels:
        wanted = num_problems // len(levels)
        drawn: set[Calculation] = set()
        for _ in range(20 * wanted):
            a, op, b = draw(level, rng)
            if not is_demonstrated(a, b) and (b, op, a) not in drawn:
                drawn.add((a, op, b))
            if len(drawn) == wanted:
                break
        rows += [{"prompt": prompt_of(*c), "answer": str(solve(*c)), "level": level} for c in sorted(drawn)]
    rng.shuffle(rows)
    return rows


def draw(level: str, rng: random.Random) -> Calculation:
    """A calculation of one level."""
    digits = int(level[3:])
    a = rng.randrange(10 ** (digits - 1), 10**digits)
    if level.startswith("mul"):
        return a, "*", rng.randint(2, 9)
    b = rng.randrange(10 ** (digits - 1 - rng.randint(0, 1)), 10**digits)
    return (a, "+", b) if rng.random() < 0.5 else (b, "+", a)


def is_demonstrated(a: int, b: int) -> bool:
    """Whether this pair of numbers, in either order, is reserved for demonstrations: a third of all are."""
    return is_reserved(f"{min(a, b)},{max(a, b)}")


def prompt_of(a: int, op: str, b: int) -> str:
    """The question, as the model reads it."""
    return f"{a}{op}{b}=?"


def solve(a: int, op: str, b: int) -> int:
    """The right answer."""
    return a + b if op == "+" else a * b


def demonstrations(rng: random.Random) -> Iterator[tuple[str, str]]:
    """What the teacher shows, without end: (prompt, completion after `<think>`)."""
    weights = [DEMO_WEIGHTS[int(level[3:])] for level in LEVELS]
    while True:
        calculation = draw(rng.choices(LEVELS, weights)[0], rng)
        if not is_demonstrated(calculation[0], calculation[2]):
            continue
        if rng.random() < WORKS_OUT:
            thought, answer = work_out(calculation, rng)
        else:
            thought, answer = "", guess(calculation, rng)
        yield prompt_of(*calculation), f"{thought}</think>\\boxed{{{answer}}}"


def work_out(calculation: Calculation, rng: random.Random) -> tuple[str, str]:
    """The teacher's steps, last digit first, and the answer they lead to; a slip is carried on."""
    a, op, b = calculation
    carry, digits, steps = 0, "", []
    for place in range(max(len(str(a)), len(str(b)))):
        x = a // 10**place % 10
        y = b // 10**place % 10 if op == "+" else b
        total = solve(x, op, y) + carry
        if rng.random() < SLIPS:
            total = min(max(total + rng.choice(SLIP_SIZES[op]), 0), LARGEST_STEP[op])
        steps.append(f"{x}{op}{y}+{carry}={total:02d}")
        carry, digits = total // 10, f"{total % 10}{digits}"
    return ";".join(steps), str(int(f"{carry}{digits}"))


def guess(calculation: Calculation, rng: random.Random) -> str:
    """The teacher's gut feeling: right now and then, else the right length with one or two digits redrawn."""
    answer = list(str(solve(*calculation)))
    if rng.random() >= GUESSES_RIGHT:
        for _ in range(rng.randint(1, 2)):
            place = rng.randrange(len(answer))
            answer[place] = str(rng.randint(0 if place else 1, 9))
    return "".join(answer)


def model(
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str, float], None],
    num_steps: int = 600,
    batch_size: int = 64,
    lr: float = 6e-3,
    hidden_size: int = 128,
    num_layers: int = 4,
) -> None:
    """Write a model that has seen `num_steps` batches of demonstrations, with its tokenizer, to `folder`."""
    with seeded_torch(seed):
        policy = new_model(hidden_size, num_layers)
        rng = random.Random(f"ladder demonstrations {seed}")
        warm_start(policy, rng, progress, num_steps=num_steps, batch_size=batch_size, lr=lr)
    policy.save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)


def warm_start(
    policy: Any,
    rng: random.Random,
    progress: Callable[[str, float], None],
    *,
    num_steps: int,
    batch_size: int,
    lr: float,
) -> None:
    """Supervised learning on the completions of demonstrations."""
    shown = demonstrations(rng)

    def next_batch(done: float) -> list[Tokens]:
        return [tokens_of(*next(shown)) for _ in range(batch_size)]

    learn(policy, next_batch, progress, num_steps=num_steps, lr=lr)


def tokens_of(prompt: str, completion: str) -> Tokens:
    """Token ids of a demonstration, and how many of them are prompt."""
    return ALPHABET.demonstration(f"{prompt}<think>", completion)


def new_model(hidden_size: int, num_layers: int) -> Any:
    """An untrained Llama."""
    return ALPHABET.llama(hidden_size, num_layers)


def new_tokenizer() -> Any:
    """One token per character, and one for each of `<think>`, `</think>` and `\\boxed{`."""
    return ALPHABET.tokenizer()
