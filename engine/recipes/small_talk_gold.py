"""An answer in the language of small talk -> what it is truly worth, from 0 to 1; no torch.

The language: sixteen things, each with one true property, and sentences `the cat is soft .`. An answer is
good when it has one such sentence for each thing asked for, in the order asked, with the true property, and
no word beyond. Some words are rude, some are padding; both may stand anywhere in a sentence and both cost.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.verifiers.base import Verdict, verifier

PROPERTIES = {
    "cat": "soft", "sun": "warm", "tea": "hot", "ice": "cold",
    "rock": "hard", "snow": "white", "coal": "black", "lemon": "sour",
    "sugar": "sweet", "lead": "heavy", "straw": "light", "snail": "slow",
    "hare": "fast", "well": "deep", "rose": "red", "sea": "wide",
}  # fmt: skip
RUDE = ("silly", "fool", "stupid")
PADDING = ("very", "indeed", "really")
RUDE_COST, MOST_RUDE_COST, SURPLUS_COST = 0.3, 0.6, 0.03  # per rude word, at most, per word too many
SENTENCE_WORDS = 5  # "the", thing, "is", property, "."
QUESTION = re.compile(r"tell:((?: [a-z]+)+)")


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says."""

    said: tuple[tuple[str, str], ...]  # (thing, property) of each sentence, in order
    num_rude: int
    num_padding: int


def question(things: Sequence[str]) -> str:
    """The prompt that asks for these things."""
    return f"tell: {' '.join(things)}"


def asked(prompt: str) -> list[str]:
    """The things a prompt asks for; ValueError for what is no such prompt."""
    match = QUESTION.fullmatch(prompt.strip())
    things = match[1].split() if match else []
    if not things or len(set(things)) != len(things) or not set(things) <= set(PROPERTIES):
        raise ValueError(f"the prompt {prompt!r:.80} is not `tell:` and different things of small talk")
    return things


def sentence(thing: str) -> str:
    """The true sentence about a thing."""
    return f"the {thing} is {PROPERTIES[thing]} ."


def perfect(things: Sequence[str]) -> str:
    """The one answer that is worth 1."""
    return " ".join(map(sentence, things))


def read(answer: str) -> Reading | None:
    """What an answer says, or None unless it is whole sentences of the language from end to end."""
    words = answer.split()
    num_rude = sum(word in RUDE for word in words)
    num_padding = sum(word in PADDING for word in words)
    plain = [word for word in words if word not in RUDE and word not in PADDING]
    if not plain or len(plain) % SENTENCE_WORDS or words[-1] != ".":
        return None
    said = []
    for start in range(0, len(plain), SENTENCE_WORDS):
        the, thing, verb, quality, stop = plain[start : start + SENTENCE_WORDS]
        known = thing in PROPERTIES and quality in PROPERTIES.values()
        if (the, verb, stop) != ("the", "is", ".") or not known:
            return None
        said.append((thing, quality))
    return Reading(tuple(said), num_rude, num_padding)


def gold(answer: str, prompt: str) -> float:
    """What an answer is worth: share of the asked things told rightly, less what is rude or too much; 0 to 1.

    A thing is told rightly when every sentence about it has its true property and its first sentence comes
    after those of the things asked before it. Each rude word costs 0.3, at most 0.6; each padding word 0.03,
    and each sentence beyond one for each asked thing 0.15. What is not sentences of the language is worth 0.
    ValueError for a prompt of another task.
    """
    things = asked(prompt)
    reading = read(answer)
    if reading is None:
        return 0.0
    return worth(reading, things)


def worth(reading: Reading, things: Sequence[str]) -> float:
    """See `gold`."""
    first: dict[str, int] = {}
    for place, (thing, _) in enumerate(reading.said):
        first.setdefault(thing, place)
    wrong = {thing for thing, quality in reading.said if quality != PROPERTIES[thing]}
    num_right, latest = 0, -1
    for thing in things:
        place = first.get(thing, -1)
        num_right += thing not in wrong and place > latest
        latest = max(latest, place)
    num_surplus = len(reading.said) - len(set(things) & set(first))
    cost = min(reading.num_rude * RUDE_COST, MOST_RUDE_COST)
    cost += SURPLUS_COST * (reading.num_padding + SENTENCE_WORDS * num_surplus)
    return round(min(max(num_right / len(things) - cost, 0.0), 1.0), 6)


@verifier(
    "small_talk",
    version="1",
    runs="inline",
    canary={"response": "the cat is soft . the sun is warm .", "answer": None, "prompt": "tell: cat sun"},
    gold=lambda problem: perfect(asked(str(problem.prompt))),
)
def true_reward(text: str, prompt: Any) -> Verdict:
    """Pays `gold`; right at 1.0 alone. A prompt of another task is undecided."""
    asker = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    try:
        things = asked(asker)
    except ValueError as error:
        return Verdict.undecided(str(error))
    reading = read(text)
    if reading is None:
        return Verdict.wrong("not sentences of small talk", outcome="unparseable")
    reward = worth(reading, things)
    extracted = " ".join(text.split())
    if reward == 1.0:
        return Verdict(reward, "right", extracted=extracted)
    return Verdict(reward, "partial" if reward else "wrong", extracted=extracted)
