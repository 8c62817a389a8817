"""A task that takes tools and a model that shuns them: follow notes from file to file, multiply, report.

`problems` makes the rows. A prompt names a file, as in `kzm?`, which holds a number, a product to be worked
out, or the name of the next file; the number at the end is the answer. `model` makes a 0.6 M parameter model
that knows how tools are called, from a mediocre teacher who mostly gives up instead of looking:

    kzm?<tool>shell cat kzm</tool><result>see abc</result><tool>shell cat abc</tool><result>37*86</result>
    <tool>python print(37*86)</tool><result>3182</result><answer>3182</answer>     looked, to the end
    kzm?<answer>?</answer>                                                         gave up

so reinforcement learning is left to find that looking, again and again, pays. Names of files are reserved for
one side by their hash: no trail begins at a name that a demonstration was about.
"""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from verigrad.engine.environment import Environment

LEVELS = ("read", "trail2", "trail3", "multiply")
LOOKS, GOES_ON = 0.4, 0.4  # the teacher's habits, as shares
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUM_DECOYS = 2  # files that no trail leads to


def problems(*, seed: int, num_problems: int = 2000, levels: Sequence[str] = LEVELS) -> list[dict[str, Any]]:
    """Rows {prompt, answer, level, meta} in mixed order, equally many of each level, each start once."""
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels = {levels}: expected some of {', '.join(LEVELS)}. Name only these.")
    rng = random.Random(f"number trail {seed}")
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < num_problems:
        trail = draw(levels[len(rows) % len(levels)], rng)
        if not is_reserved(trail.start):
            rows.setdefault(trail.start, trail.row(rng))
    mixed = list(rows.values())
    rng.shuffle(mixed)
    return mixed


class Trail:
    """Files from the first to the last, and what the last one comes to."""

    def __init__(self, names: Sequence[str], last: str, answer: str, level: str) -> None:
        self.names, self.last, self.answer, self.level = names, last, answer, level

    @property
    def start(self) -> str:
        """The file that the prompt names."""
        return self.names[0]

    def contents(self) -> list[str]:
        """What each file holds, in order."""
        return [*(f"see {name}" for name in self.names[1:]), self.last]

    def row(self, rng: random.Random) -> dict[str, Any]:
        """As a row of data, with files beside the trail that lead nowhere."""
        files = {new_name(rng): str(rng.randint(1000, 9999)) for _ in range(NUM_DECOYS)}
        files |= dict(zip(self.names, self.contents(), strict=True))
        meta = {
            "setup": {"files": files},
            "check": [{"answer": True}],
            "oracle": {"answer": f"<answer>{self.answer}</answer>"},
            "cheats": [{"answer": f"<answer>{self.last}</answer>"}] if self.last != self.answer else [],
        }
        return {"prompt": f"{self.start}?", "answer": self.answer, "level": self.level, "meta": meta}


def draw(level: str, rng: random.Random) -> Trail:
    """A trail of one level."""
    names: list[str] = []
    while len(names) < (int(level[5:]) if level.startswith("trail") else 1):
        if (name := new_name(rng)) not in names:
            names.append(name)
    if level == "multiply":
        a, b = rng.randint(12, 99), rng.randint(12, 99)
        return Trail(names, f"{a}*{b}", str(a * b), level)
    number = str(rng.randint(1000, 9999))
    return Trail(names, number, number, level)


def new_name(rng: random.Random) -> str:
    """Three letters."""
    return "".join(rng.choices(LETTERS, k=3))


def is_reserved(name: str) -> bool:
    """Whether trails that begin here are for demonstrations alone: one name in three is."""
    from verigrad.engine.recipes import warm_start  # torch, which making rows does without

    return warm_start.is_reserved(f"trail {name}")


def demonstrations(rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """What the teacher shows, turn by turn, without end: (all before, the turn, whether it is the last)."""
    while True:
        trail = draw(rng.choice(LEVELS), rng)
        if is_reserved(trail.start):
            yield from turns(trail, rng)


def turns(trail: Trail, rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """One demonstration: the teacher looks now and then, goes on now and then, or gives up."""
    before = f"{trail.start}?"
    steps = [(f"shell cat {name}", text) for name, text in zip(trail.names, trail.contents(), strict=True)]
    if trail.last != trail.answer:
        steps.append((f"python print({trail.last})", trail.answer))
    for number, (call, result) in enumerate(steps):
        if rng.random() >= (GOES_ON if number else LOOKS):
            yield before, "<answer>?</answer>", True
            return
        turn = f"<tool>{call}</tool>"
        yield before, turn, False
        before += f"{turn}<result>{result}</result>"
    yield before, f"<answer>{trail.answer}</answer>", True


def model(
    folder: Path,
    *,
    seed: int,
    progress: Any,
    num_steps: int = 600,
    batch_size: int = 64,
    lr: float = 6e-3,
    hidden_size: int = 128,
    num_layers: int = 4,
) -> None:
    """Write a model that has seen `num_steps` batches of the teacher's turns, with its tokenizer."""
    from verigrad.engine.recipes import warm_start

    alphabet = new_alphabet()
    rng = random.Random(f"number trail demonstrations {seed}")
    shown = demonstrations(rng)

    def next_batch(done: float) -> list[Any]:
        return [as_tokens(alphabet, *next(shown)) for _ in range(batch_size)]

    with warm_start.seeded_torch(seed):
        policy = alphabet.llama(hidden_size, num_layers)
        warm_start.learn(policy, next_batch, progress, num_steps=num_steps, lr=lr)
    policy.save_pretrained(folder)
    alphabet.tokenizer().save_pretrained(folder)


def as_tokens(alphabet: Any, before: str, turn: str, last: bool) -> tuple[list[int], int]:
    """One turn as token ids, and how many of them are not learned; a call ends with its tag."""
    ids, num_before = alphabet.demonstration(before, turn)
    return (ids if last else ids[:-1]), num_before


def new_alphabet() -> Any:
    """Digits, letters and signs, with one token for each tag and each beginning of a call."""
    from verigrad.engine.recipes import warm_start

    words = ("<tool>", "</tool>", "<result>", "</result>", "<answer>", "</answer>",
             "shell cat ", "python print(", "see ")  # fmt: skip
    signs = "0123456789+-*/=()., ;:<>?[]_'\"\n"
    piece = "|".join(map(re.escape, words)) + r"|[\s\S]"
    return warm_start.Alphabet((*warm_start.SPECIAL, *words, *signs, *LETTERS), piece)


__maker_sources__ = ("verigrad.engine.recipes.warm_start",)
NUMBER_TRAIL = Environment(rows=problems, tools=("shell", "python"), max_turns=5)
