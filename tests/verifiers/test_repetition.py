"""repetition: shares of repeated n-grams counted by hand, and the ways a loop could hide."""

# ruff: noqa: RUF001 - look-alike signs on purpose

import random
import time

import pytest

from verigrad.verifiers.binding import bind
from verigrad.verifiers.repetition import repeated_frac, repetition
from verigrad.verifiers.text_units import num_characters, symbols, words

PHRASE = "let me check that again step by step"  # 8 words


def varied(num_words, seed=0):
    letters = random.Random(seed)
    return " ".join("".join(letters.choices("abcdefgh", k=7)) for _ in range(num_words))


@pytest.mark.parametrize(
    ("text", "n", "frac"),
    [
        ("", 2, 0.0),
        ("a b", 2, 0.0),
        ("a b c d", 2, 0.0),
        ("a b a b", 2, 1 / 3),  # ab ba ab
        ("a a a a", 2, 2 / 3),
        ("a a a a a", 3, 2 / 3),
        ("a b c a b c", 3, 1 / 4),  # abc bca cab abc
        ("a b c a b d", 3, 0.0),
        ("a a", 2, 0.0),  # one bigram has no earlier one
        ("a a a", 2, 1 / 2),
    ],
)
def test_the_share_of_repeated_ngrams(text, n, frac):
    assert repeated_frac(words(text), n) == pytest.approx(frac)


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("A  a\n\nA\ta", "a a a a"),
        ("a, a. a! a?", "a a a a"),
        ("a\u200ba a\u200d a", "aa a a"),
        ("ａ a Ａ a", "a a a a"),  # full width
        ("é e e\u0301 E", "e e e e"),
        ("*a* _a_ `a` (a)", "a a a a"),
        ("ﬁne fine", "fine fine"),
    ],
)
def test_spacing_case_and_ornament_do_not_hide_words(text, same_as):
    assert words(text) == words(same_as)


def test_glued_words_and_scripts_without_blanks_are_counted_by_character():
    assert words("a" * 20) == ["a" * 20]
    assert words("a" * 21) == ["a"] * 21
    assert words("重复重复") == ["重", "复", "重", "复"]
    assert symbols("a-b") == ["a", "-", "b"]
    assert num_characters(" a\u200b b\n") == 2


LOOPS = [
    f"{PHRASE} " * 50,
    f"{PHRASE.upper()}\n {PHRASE}  " * 25,
    "".join(PHRASE.split()) * 50,  # no blanks at all
    "ha" * 2000,
    "!" * 3000,
    "😀" * 3000,
    "\\" * 3000,
    "再检查一遍" * 200,
    "1 " * 500,
    varied(60) + f" {PHRASE}" * 30,  # good at first
    "".join(f"{PHRASE}{'.,;:!?'[n % 6]} " for n in range(60)),  # other signs each time
    "".join(f"{PHRASE}{'*' * (n % 5)} " for n in range(60)),
    "".join(f"{PHRASE}{chr(0x200B) * (n % 7)} " for n in range(60)),  # other invisible signs each time
    f"<think>{PHRASE} " * 40,
    varied(100) * 3,  # one long paragraph, three times
    "{" * 10_000,
]
FINE = [
    "",
    "yes yes yes",
    "The answer is 5.",
    varied(2000),
    varied(200) + " " + PHRASE + " " + varied(200, 1) + " " + PHRASE,  # a phrase of 8 words is no 20-gram
    "\n" * 5000,
    " " * 5000,
    "\n".join(f"{a} + {b} = {a + b}" for a in range(9) for b in range(9)),
    "\u200b" * 5000,
    "a",
]


@pytest.mark.parametrize("text", LOOPS)
def test_loops_are_found(text):
    gate, penalty = repetition(text), repetition(text, mode="penalty")
    assert (gate.reward, gate.outcome) == (0.0, "wrong"), gate.reason
    assert 0 <= penalty.reward < 0.9


@pytest.mark.parametrize("text", FINE)
def test_what_is_no_loop_passes(text):
    assert repetition(text).reward == 1.0
    assert repetition(text, mode="penalty").reward == 1.0


def test_the_threshold_and_both_modes_by_hand():
    text = "a b a b"  # a third of its bigrams
    assert repetition(text, n=2, threshold=0.34).outcome == "right"
    assert repetition(text, n=2, threshold=0.33).outcome == "wrong"
    half = repetition("a a a", n=2, threshold=0.2, mode="penalty")  # 1 - (0.5 - 0.2) / 0.8
    assert half.reward == pytest.approx(0.625)
    assert half.outcome == "partial"
    assert repetition("a a a", n=2, threshold=0, mode="penalty").reward == pytest.approx(0.5)
    assert repetition("a a a", n=2, threshold=0.5).reward == 1.0  # at most, not below


@pytest.mark.parametrize(
    "options",
    [
        {"n": 1},
        {"n": 2.5},
        {"n": True},
        {"n": 101},
        {"threshold": 1},
        {"threshold": "0.1"},
        {"mode": "score"},
    ],
)
def test_bad_options_are_refused_when_it_is_loaded(options):
    with pytest.raises(ValueError, match=r"repetition: .* expected"):
        bind(repetition, name="repetition", source="here", options=options)


def test_the_longest_text_takes_a_moment():
    for text in ("ﷺ" * 50_000, "! " * 25_000, varied(6250)):
        started = time.perf_counter()
        repetition(text)
        assert time.perf_counter() - started < 3
