"""A model made from nothing, and programs of labelled lines of which it is shown only short runs.

`problems` makes programs whose lines stand in no order, with a value, a first and a last line: what is the
value's last digit when the lines from the first to the last, in the order of the alphabet, have run?
`model` makes a Llama of a chosen size and shows it runs of at most `shown` lines. A longer run needs a longer
thought:

    h*3k+1f+3g+5;2fh=?<think>2ff+3=5gg+5=0hh*3=0</think>\\boxed{0}     worked out
    h*3k+1f+3g+5;2fh=?<think></think>\\boxed{7}                        blurted

The teacher begins with short programs and works everything out, with a slip now and then, and sometimes
loses the thread and starts over; then it grows tired and mostly blurts. That working out pays, and that it
goes on paying where runs are longer than any it was shown, is left to reinforcement learning. Runs are
reserved for one side by a hash of value and operations: none is on two of shown, train and test.
"""

import hashlib
import itertools
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from verigrad.engine.recipes.warm_start import SPECIAL, Alphabet, Tokens, learn, seeded_torch

__maker_sources__ = ("verigrad.engine.recipes.warm_start",)  # a change there makes the model anew

OPERATIONS = (*(("+", n) for n in range(1, 10)), ("*", 3), ("*", 7), ("*", 9))
"""Each is a bijection of the last digits 0 .. 9, so that an answer is any of them, equally often."""
GUESSES_RIGHT, SLIPS, STARTS_OVER = 0.3, 0.03, 0.2  # the teacher's habits, as shares
FRESH, TIRED_WORKS_OUT = 0.75, 0.3  # share of the steps in which it works all out, and how often after that
LABELS = string.ascii_lowercase[:16]
MAX_STEPS = len(LABELS)  # a label for each line
MAX_LINES = 8  # in a demonstration; a program has lines that are not run
NAMED_TOKENS = (*SPECIAL, "<think>", "</think>", "\\boxed{", "}", ";", "=", "?")
ALPHABET = Alphabet(
    (*NAMED_TOKENS, *string.digits, *LABELS,
     *(f"{label}{op}{n}" for label in LABELS for op, n in OPERATIONS)),
    piece=r"<think>|</think>|\\boxed\{|[a-p][+*][1-9]|[\s\S]",
)  # fmt: skip
SLICE = 32  # sequences padded to one length

Operation = tuple[str, int]  # "+" or "*", and a number


@dataclass(frozen=True, slots=True)
class Task:
    """A value, the lines that run on it, and the question that hides them among others."""

    start: int
    operations: tuple[Operation, ...]  # [N]
    labels: str  # [N] letters that follow each other
    prompt: str

    @property
    def values(self) -> list[int]:
        """The start and the value after each line, [N+1]."""
        return list(itertools.accumulate(self.operations, apply, initial=self.start))


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama, and a warm start that suits it."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_steps: int
    batch_size: int
    lr: float


SIZES = {
    "small": Size(128, 4, 4, 2, num_steps=400, batch_size=64, lr=6e-3),  # 0.65 M parameters: one CPU core
    "medium": Size(256, 6, 8, 4, num_steps=600, batch_size=64, lr=4e-3),  # 3.6 M
    "base": Size(1024, 12, 16, 4, num_steps=1000, batch_size=256, lr=1e-3),  # 107 M: a GPU
    "large": Size(1024, 24, 16, 4, num_steps=1000, batch_size=256, lr=1e-3),  # 214 M
}


# Problems --------------------------------------------------------------------------------------------------


def problems(
    *,
    seed: int,
    test: bool = False,
    num_problems: int = 20_000,
    min_steps: int = 3,
    max_steps: int = 8,
    num_lines: int = 8,
) -> list[dict[str, str]]:
    """Rows {prompt, answer, steps}: distinct runs in mixed order, equally many of each number of steps.

    Runs are shared out by a hash: a third is demonstrated, a third is for training, and with `test` come
    those that are for neither. Runs of one line are few (about 40 of a side), so there may be less than
    `num_problems` rows.
    """
    if not 1 <= min_steps <= max_steps <= MAX_STEPS:
        raise ValueError(
            f"min_steps = {min_steps}, max_steps = {max_steps}: expected 1 <= min_steps <= max_steps <= "
            f"{MAX_STEPS}. Correct them."
        )
    if not 1 <= num_lines <= MAX_STEPS:
        raise ValueError(f"num_lines = {num_lines}: expected 1 to {MAX_STEPS}. Correct it.")
    if num_problems < 1:
        raise ValueError(f"num_problems = {num_problems}: expected at least 1. Raise it.")
    side = "test" if test else "train"
    rng = random.Random(f"scratch {side} {seed}")
    levels = range(min_steps, max_steps + 1)
    rows = []
    for level, num_steps in enumerate(levels):
        wanted = num_problems // len(levels) + (level < num_problems % len(levels))
        drawn: dict[tuple[int, tuple[Operation, ...]], Task] = {}
        for _ in range(20 * wanted):
            if len(drawn) == wanted:
                break
            task = draw(num_steps, num_lines, rng)
            if side_of(task) == side:
                drawn.setdefault((task.start, task.operations), task)
        rows += [
            {"prompt": task.prompt, "answer": str(task.values[-1]), "steps": str(num_steps)}
            for task in drawn.values()
        ]
    rng.shuffle(rows)
    return rows


def draw(num_steps: int, num_lines: int, rng: random.Random) -> Task:
    """A run of `num_steps` lines in a program of `num_lines`, or of just these where that is fewer."""
    first = rng.randint(0, MAX_STEPS - num_steps)
    labels = LABELS[first : first + num_steps]
    others = rng.sample(sorted(set(LABELS) - set(labels)), max(0, num_lines - num_steps))
    start, operations = rng.randint(0, 9), tuple(rng.choices(OPERATIONS, k=num_steps))
    lines = [f"{label}{op}{n}" for label, (op, n) in zip(labels, operations, strict=True)]
    lines += [
        f"{label}{op}{n}"
        for label, (op, n) in zip(others, rng.choices(OPERATIONS, k=MAX_STEPS), strict=False)
    ]
    rng.shuffle(lines)
    return Task(start, operations, labels, f"{''.join(lines)};{start}{labels[0]}{labels[-1]}=?")


def apply(value: int, operation: Operation) -> int:
    """What a line does: the last digit of the result."""
    op, n = operation
    return (value + n if op == "+" else value * n) % 10


def side_of(task: Task) -> str:
    """What this value with these operations, whatever their labels, is for: shown, train or test."""
    words = f"{task.start}{''.join(f'{op}{n}' for op, n in task.operations)}".encode()
    number = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big")
    return ("shown", "train", "test")[number % 3]


# The teacher -----------------------------------------------------------------------------------------------


def demonstrations(rng: random.Random, *, shown: int, progress: float) -> Iterator[tuple[str, str]]:
    """What the teacher shows when that share of its lessons is over: (prompt, completion after `<think>`).

    Programs grow from 2 lines to `MAX_LINES` in the first half, so that there is little to mix up at first.
    """
    longest = min(2 + int(2 * progress * (MAX_LINES - 1)), MAX_LINES)
    works_out = 1.0 if progress < FRESH else TIRED_WORKS_OUT
    while True:
        task = draw(rng.randint(1, min(shown, longest)), rng.randint(1, longest), rng)
        if side_of(task) == "shown":
            thought, answer = work_out(task, rng) if rng.random() < works_out else ("", guess(task, rng))
            yield task.prompt, f"{thought}</think>\\boxed{{{answer}}}"


def work_out(task: Task, rng: random.Random) -> tuple[str, int]:
    """The teacher's lines and the answer they lead to; a slip, one more or less, is carried on."""
    value, thought = task.start, [str(task.start)]
    for label, (op, n) in zip(task.labels, task.operations, strict=True):
        value = apply(value, (op, n))
        if rng.random() < SLIPS:
            value = (value + rng.choice((-1, 1))) % 10
        thought.append(f"{label}{label}{op}{n}={value}")
    lost = rng.randint(1, len(thought) - 1) if rng.random() < STARTS_OVER else 0
    return "".join([*thought[:lost], *thought]), value


def guess(task: Task, rng: random.Random) -> int:
    """The teacher's gut feeling: right now and then, else any digit."""
    return task.values[-1] if rng.random() < GUESSES_RIGHT else rng.randint(0, 9)


# The model -------------------------------------------------------------------------------------------------


def model(
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str, float], None],
    size: str = "base",
    shown: int = 4,
    num_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
) -> None:
    """Write a model warm-started on runs of at most `shown` lines, with its tokenizer, to `folder`.

    `size` is small, medium, base or large; the other options are the size's own unless given. It is made on
    the GPU where there is one.
    """
    if size not in SIZES:
        raise ValueError(f"size = {size!r}: expected one of {', '.join(SIZES)}. Choose one.")
    if not 1 <= shown <= MAX_LINES:
        raise ValueError(f"shown = {shown}: expected 1 to {MAX_LINES} lines. Correct it.")
    chosen = SIZES[size]
    num_steps = chosen.num_steps if num_steps is None else num_steps
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: expected at least 1. Raise it.")
    with seeded_torch(seed):
        policy = new_model(chosen).to("cuda" if torch.cuda.is_available() else "cpu")
        warm_start(
            policy,
            random.Random(f"scratch demonstrations {seed}"),
            progress,
            shown=shown,
            num_steps=num_steps,
            batch_size=chosen.batch_size if batch_size is None else batch_size,
            lr=chosen.lr if lr is None else lr,
        )
    policy.save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)


def warm_start(
    policy: Any,
    rng: random.Random,
    progress: Callable[[str, float], None],
    *,
    shown: int,
    num_steps: int,
    batch_size: int,
    lr: float,
) -> None:
    """Supervised learning on the completions of a teacher who tires."""

    def next_batch(done: float) -> list[Tokens]:
        teacher = demonstrations(rng, shown=shown, progress=done)
        return [tokens_of(*pair) for pair in itertools.islice(teacher, batch_size)]

    learn(policy, next_batch, progress, num_steps=num_steps, lr=lr, slice_size=SLICE)


def tokens_of(prompt: str, completion: str) -> Tokens:
    """Token ids of a demonstration, and how many of them are prompt."""
    return ALPHABET.demonstration(f"{prompt}<think>", completion)


def new_model(size: Size) -> Any:
    """An untrained Llama with heads of 32 or 64 dimensions, which vLLM's CPU build can take."""
    return ALPHABET.llama(
        size.hidden_size, size.num_layers, num_heads=size.num_heads, num_kv_heads=size.num_kv_heads
    )


def new_tokenizer() -> Any:
    """One token per label, digit and line, and one for each of `<think>`, `</think>` and `\\boxed{`."""
    return ALPHABET.tokenizer()
