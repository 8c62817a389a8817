"""An open-ended task whose true reward is known: prompts, demonstrations, preferences, a model to improve.

`prompts` asks for some of sixteen things and wants one true sentence about each, in order:

    tell: cat sun tea        the cat is soft . the sun is warm . the tea is hot .

A mediocre teacher answers with wrong properties (of some things the wrong one is what it mostly says),
leaves things out, repeats itself, is rude and pads; `model` has learned from it. How much an answer is truly
worth is `gold`, and `true_reward` is the verifier that pays it; annotators see it through a veil of noise and
of a liking for length. Each set of things is asked for in one order only, and belongs by its hash to one
side: `taught` (the model's own demonstrations), `train`, or `held_out`.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from verigrad.engine.recipes.small_talk_gold import (
    PADDING,
    PROPERTIES,
    RUDE,
    asked,
    gold,
    perfect,
    question,
    read,
    true_reward,
)

__all__ = [
    "base_model", "demonstrations", "gold", "held_out", "model", "preferences", "prompts", "rankings",
    "steps", "true_reward", "unpaired",
]  # fmt: skip
__maker_sources__ = (  # a change there makes the model anew
    "verigrad.engine.recipes.small_talk_gold",
    "verigrad.engine.recipes.warm_start",
)

Row = dict[str, Any]
SIDES = ("taught", "train", "held_out")
COUNTS = (2, 3, 4)  # things in a prompt
MAX_WORDS = 46  # of an answer: with its end it stays within 48 tokens

# The teacher's habits. Of the things in MISTAKEN it has a wrong idea of its own.
MISTAKEN = {
    "sun": "red", "ice": "hard", "rock": "heavy", "coal": "hot",
    "lemon": "sweet", "straw": "white", "well": "cold", "rose": "soft",
}  # fmt: skip
MISTAKES, SLIPS = 0.65, 0.1  # share of wrong properties of a thing in MISTAKEN, of another
RUDENESS, PADS, LEAVES_OUT, REPEATS = 0.2, 0.3, 0.15, 0.08  # shares of the answers


# Questions -------------------------------------------------------------------------------------------------


def questions(side: str) -> dict[int, list[str]]:
    """All prompts of one side by their count of things; a quarter of all is taught, a quarter held out."""
    if side not in SIDES:
        raise ValueError(f"side = {side!r}: expected one of {', '.join(SIDES)}. Name one of them.")
    found: dict[int, list[str]] = {}
    for count in COUNTS:
        sets = itertools.combinations(PROPERTIES, count)
        found[count] = [question(ordered(things)) for things in sets if side_of(things) == side]
    return found


def side_of(things: Sequence[str]) -> str:
    """The side a set of things belongs to, whatever their order."""
    return ("taught", "held_out", "train", "train")[number_of(*sorted(things)) % 4]


def ordered(things: Sequence[str]) -> list[str]:
    """The one order in which this set of things is asked for."""
    names = sorted(things)
    random.Random(number_of("order", *names)).shuffle(names)
    return names


def number_of(*names: str) -> int:
    """64 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(" ".join(names).encode(), digest_size=8).digest(), "big")


def draw(side: str, num: int, rng: random.Random) -> list[str]:
    """`num` prompts, as many of each count of things; each once before any comes again."""
    if num < 1:
        raise ValueError(f"num = {num}: expected at least 1. Raise it.")
    decks = {count: rng.sample(deck, len(deck)) for count, deck in questions(side).items()}
    return [
        decks[count][place % len(decks[count])] for place, count in zip(range(num), itertools.cycle(COUNTS))
    ]


def prompts(*, seed: int, num: int = 900, side: str = "train") -> list[Row]:
    """Rows {prompt, answer, level}: different prompts, equally many of each count of things (`level`).

    `answer` is the perfect answer. Where a side has too few of a count, it gives all and more of the others:
    `train` has 62 of 2 things, 288 of 3 and 901 of 4, `held_out` about half as many.
    """
    rng = random.Random(f"small talk prompts {seed}")
    if num < 1:
        raise ValueError(f"num = {num}: expected at least 1. Raise it.")
    decks = [rng.sample(deck, len(deck)) for deck in questions(side).values()]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*decks))
    chosen = [prompt for prompt in rounds if prompt is not None][:num]
    rng.shuffle(chosen)
    return [{"prompt": p, "answer": perfect(asked(p)), "level": str(len(asked(p)))} for p in chosen]


def held_out(*, seed: int, num: int = 300) -> list[Row]:
    """As `prompts`, of the side that no other maker here shows unless asked to."""
    return prompts(seed=seed, num=num, side="held_out")


# Answers ---------------------------------------------------------------------------------------------------


def answer_of(prompt: str, rng: random.Random, *, flaws: float = 1.0) -> str:
    """What the teacher answers; `flaws` multiplies how often each flaw occurs, 0 is the perfect answer."""
    things = asked(prompt)
    if rng.random() < LEAVES_OUT * flaws:
        things.remove(rng.choice(things))
    sentences = [["the", thing, "is", property_of(thing, rng, flaws=flaws), "."] for thing in things]
    if rng.random() < REPEATS * flaws:
        sentences.append(list(rng.choice(sentences)))
    if rng.random() < RUDENESS * flaws:
        spoil(rng.choice(sentences), RUDE, rng)
    if rng.random() < PADS * flaws:
        for _ in range(rng.randint(1, 6)):
            spoil(rng.choice(sentences), PADDING, rng)
    return " ".join(itertools.chain.from_iterable(sentences))


def property_of(thing: str, rng: random.Random, *, flaws: float) -> str:
    """The property the teacher gives a thing."""
    share = MISTAKES if thing in MISTAKEN else SLIPS
    if rng.random() >= share * flaws:
        return PROPERTIES[thing]
    if thing in MISTAKEN and rng.random() < 0.8:
        return MISTAKEN[thing]
    return rng.choice([quality for name, quality in PROPERTIES.items() if name != thing])


def spoil(words: list[str], which: Sequence[str], rng: random.Random) -> None:
    """Put a word that does not belong there before the property or before the full stop."""
    words.insert(words.index("is") + 1 if rng.random() < 0.7 else len(words) - 1, rng.choice(which))


def differing(prompt: str, num: int, rng: random.Random, *, flaws: float) -> list[str]:
    """`num` different answers, each with a share of the teacher's flaws of its own."""
    found: dict[str, None] = {}
    while len(found) < num:
        found.setdefault(answer_of(prompt, rng, flaws=flaws * rng.uniform(0.2, 1.4)))
    return list(found)


def demonstrations(*, seed: int, num: int = 1000, flaws: float = 1.0, side: str = "train") -> list[Row]:
    """Rows {prompt, completion}: the teacher's answers, or better ones with `flaws` below 1; 0 is perfect."""
    rng = random.Random(f"small talk demonstrations {seed}")
    check_flaws(flaws)
    return [
        {"prompt": prompt, "completion": answer_of(prompt, rng, flaws=flaws)}
        for prompt in draw(side, num, rng)
    ]


def check_flaws(flaws: float, *, above: bool = False) -> None:
    """Refuse what is no share, and, where answers must differ, hardly any flaw at all."""
    if not (0.2 if above else 0) <= flaws <= 1.5:
        least = 0.2 if above else 0
        raise ValueError(f"flaws = {flaws}: expected a number from {least} to 1.5. Correct it.")


# Judgements ------------------------------------------------------------------------------------------------


class Annotators:
    """People who compare answers: they see the gold value, and like length.

    The difference they feel between two answers is (gold + length_bias * words / 10) / temperature; the
    better one is drawn by it (Bradley and Terry 1952), and with probability `noise` they say the opposite.
    """

    def __init__(
        self, *, temperature: float, length_bias: float, noise: float | Sequence[float], num: int
    ) -> None:
        """`noise`: of all, or of each; ValueError for what cannot be."""
        each = [noise] * num if isinstance(noise, int | float) else list(noise)
        if num < 1 or len(each) != num or not all(0 <= share <= 0.5 for share in each):
            raise ValueError(
                f"noise = {noise}, num_annotators = {num}: expected at least one annotator, and a noise from "
                "0 to 0.5, one for all or a list of one for each. Correct them."
            )
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature}: expected a number above 0. Correct it.")
        self.temperature, self.length_bias, self.noise = temperature, length_bias, each

    def felt(self, answer: str, prompt: str) -> float:
        """How good an answer seems, in units of `temperature`."""
        seems = gold(answer, prompt) + self.length_bias * len(answer.split()) / 10
        return seems / self.temperature

    def prefers(self, difference: float, annotator: int, rng: random.Random) -> bool:
        """Whether an annotator takes the first of two answers that seem so different."""
        wins = rng.random() < 1 / (1 + math.exp(-max(min(difference, 500.0), -500.0)))
        return wins != (rng.random() < self.noise[annotator])


def preferences(
    *,
    seed: int,
    num: int = 1000,
    temperature: float = 0.1,
    length_bias: float = 0.0,
    noise: float | Sequence[float] = 0.0,
    num_annotators: int = 1,
    flaws: float = 1.0,
    side: str = "train",
) -> list[Row]:
    """Rows {prompt, chosen, rejected, gold_chosen, gold_rejected, margin, annotator, pair}, see Annotators.

    Each annotator judges every pair of answers, a row each (`num` rows in all); `margin`, at least 0, is by
    how much the chosen one seemed better, in gold.
    """
    rng = random.Random(f"small talk preferences {seed}")
    check_flaws(flaws, above=True)
    people = Annotators(temperature=temperature, length_bias=length_bias, noise=noise, num=num_annotators)
    rows: list[Row] = []
    for pair, prompt in enumerate(draw(side, math.ceil(num / num_annotators), rng)):
        one, other = differing(prompt, 2, rng, flaws=flaws)
        difference = people.felt(one, prompt) - people.felt(other, prompt)
        for annotator in range(num_annotators):
            first = people.prefers(difference, annotator, rng)
            chosen, rejected = (one, other) if first else (other, one)
            rows.append(
                {
                    "prompt": prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "gold_chosen": gold(chosen, prompt),
                    "gold_rejected": gold(rejected, prompt),
                    "margin": round(max(difference if first else -difference, 0.0) * temperature, 6),
                    "annotator": f"annotator{annotator}",
                    "pair": f"pair{pair}",
                }
            )
    return rows[:num]


def rankings(
    *,
    seed: int,
    num: int = 500,
    num_responses: int = 4,
    temperature: float = 0.1,
    length_bias: float = 0.0,
    flaws: float = 1.0,
    side: str = "train",
) -> list[Row]:
    """Rows {prompt, responses, gold}: different answers, best first, drawn one by one (Plackett 1975)."""
    rng = random.Random(f"small talk rankings {seed}")
    check_flaws(flaws, above=True)
    if num_responses < 2:
        raise ValueError(f"num_responses = {num_responses}: expected at least 2. Raise it.")
    people = Annotators(temperature=temperature, length_bias=length_bias, noise=0.0, num=1)
    rows: list[Row] = []
    for prompt in draw(side, num, rng):
        answers = differing(prompt, num_responses, rng, flaws=flaws)
        # the order of felt + Gumbel noise is Plackett and Luce's
        seems = {a: people.felt(a, prompt) - math.log(rng.expovariate(1.0)) for a in answers}
        best_first = sorted(answers, key=seems.__getitem__, reverse=True)
        rows.append(
            {"prompt": prompt, "responses": best_first, "gold": [gold(a, prompt) for a in best_first]}
        )
    return rows


def unpaired(
    *,
    seed: int,
    num: int = 1000,
    temperature: float = 0.1,
    length_bias: float = 0.0,
    noise: float = 0.0,
    flaws: float = 1.0,
    side: str = "train",
) -> list[Row]:
    """Rows {prompt, completion, label, gold}: thumbs up for what seems better than half good."""
    rng = random.Random(f"small talk unpaired {seed}")
    check_flaws(flaws)
    people = Annotators(temperature=temperature, length_bias=length_bias, noise=noise, num=1)
    rows: list[Row] = []
    for prompt in draw(side, num, rng):
        answer = answer_of(prompt, rng, flaws=flaws * rng.uniform(0.2, 1.4))
        usual = 0.5 + length_bias * len(perfect(asked(prompt)).split()) / 10
        label = people.prefers(people.felt(answer, prompt) - usual / temperature, 0, rng)
        rows.append({"prompt": prompt, "completion": answer, "label": label, "gold": gold(answer, prompt)})
    return rows


def steps(*, seed: int, num: int = 1000, flaws: float = 1.0, side: str = "train") -> list[Row]:
    """Rows {prompt, steps, labels}: the sentences of an answer, and of each whether it is faultless.

    A sentence is when it is the true one about the next asked thing that has none, with no word too many.
    """
    rng = random.Random(f"small talk steps {seed}")
    check_flaws(flaws)
    rows: list[Row] = []
    for prompt in draw(side, num, rng):
        answer = answer_of(prompt, rng, flaws=flaws)
        said = [f"{each.strip()} ." for each in answer.split(".")[:-1]]
        rows.append({"prompt": prompt, "steps": said, "labels": faultless(said, prompt)})
    return rows


def faultless(said: Sequence[str], prompt: str) -> list[bool]:
    """See `steps`. A thing left out makes the sentence about the next one wrong, and that one alone."""
    left = asked(prompt)
    labels = []
    for each in said:
        reading = read(each)
        thing = reading.said[0][0] if reading and len(reading.said) == 1 else ""
        labels.append(bool(left) and each == perfect(left[:1]))
        left = left[left.index(thing) + 1 :] if thing in left else left
    return labels


# Models ----------------------------------------------------------------------------------------------------


def new_alphabet() -> Any:
    """The words of the language, and some that are left for other uses; blanks divide and join them."""
    from verigrad.engine.recipes import warm_start

    said = ("tell:", "the", "is", ".", *PROPERTIES, *PROPERTIES.values(), *PADDING, *RUDE)
    spare = (
        "yes",
        "no",
        "A",
        "B",
        "tie",
        "?",
        "good",
        "bad",
        "judge:",
        "revise:",
        "answer:",
        *map(str, range(11)),
    )
    return warm_start.WordAlphabet((*warm_start.SPECIAL, *said, *spare), r"\S+", positions=128)


def taught(rng: random.Random, *, flaws: float) -> Iterator[tuple[str, str]]:
    """What the teacher shows the model, without end: (prompt, completion)."""
    decks = list(questions("taught").values())
    while True:
        prompt = rng.choice(rng.choice(decks))
        yield prompt, answer_of(prompt, rng, flaws=flaws)


def model(
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str, float], None],
    num_steps: int = 250,
    batch_size: int = 64,
    lr: float = 6e-3,
    flaws: float = 1.0,
    hidden_size: int = 128,
    num_layers: int = 2,
) -> None:
    """Write a model that has seen `num_steps` batches of the teacher's answers, with its tokenizer."""
    from verigrad.engine.recipes import warm_start

    check_flaws(flaws)
    alphabet = new_alphabet()
    shown = taught(random.Random(f"small talk taught {seed}"), flaws=flaws)

    def next_batch(done: float) -> list[Any]:
        return [alphabet.demonstration(*next(shown)) for _ in range(batch_size)]

    with warm_start.seeded_torch(seed):
        policy = alphabet.llama(hidden_size, num_layers)
        warm_start.learn(policy, next_batch, progress, num_steps=num_steps, lr=lr)
    policy.save_pretrained(folder)
    alphabet.tokenizer().save_pretrained(folder)


def base_model(
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str, float], None],
    num_steps: int = 60,
    flaws: float = 1.5,
) -> None:
    """As `model`, but barely taught, and by a worse teacher: one that supervised learning still helps."""
    model(folder, seed=seed, progress=progress, num_steps=num_steps, flaws=flaws)
