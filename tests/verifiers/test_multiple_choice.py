"""What multiple_choice reads as the pick, graded by hand; anything that names two choices is no pick."""

# ruff: noqa: E501, RUF001 - tables are read by columns, and hold look-alike letters on purpose

import time

import pytest

from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.binding import bind
from verigrad.verifiers.multiple_choice import multiple_choice

CITIES = ["London", "Paris", "Vitamin C", "A cat"]


def load(options):
    return bind(multiple_choice, name="multiple_choice", source="here", options=options)


def judge(text, answer="B", choices=None, **options):
    meta = {} if choices is None else {"choices": choices}
    (verdict,) = load(options).judge(Problem("p", "?", answer, meta), [Attempt(text)])
    return verdict


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{B}", r"\boxed{(B)}", r"\boxed{B.}", r"\boxed{b}", r"\boxed{\text{B}}", r"\boxed{\textbf{(B)}}", r"$$\boxed{\mathrm{B}}$$", r"\boxed{B) Paris}",
        r"So \boxed{B}, and again \boxed{(B)}.", r"A is too small, C too large. \boxed{B}", r"\boxed{\boxed{B}}", r"The answer is A... no: \boxed{B}",
        "<answer>B</answer>", "<answer> (B) </answer>", "Answer: B", "answer: b", "**Answer:** B", "**Answer: B**", "Answer:\nB", "Answer: (B)", "Answer: B.",
        "The answer is B", "The answer is (B).", "The correct answer is: **B**", "The correct option is B.", "Final answer: B) 42", "Answer: B because it is blue",
        "Answer is B. I think so.", "(A) is wrong, (C) is wrong.\nAnswer: B", "B", "(B)", "B.", "b", "B) 42", "**B**", "**B.**", "**(B)**", "I pick (B).", "It must be **B**",
        "<think>A? C? \\boxed{D}</think>B", "Answer: B\nAnswer: (B)", "Answer: B. A dog agrees.",
    ],
)  # fmt: skip
def test_it_reads_b(text):
    verdict = judge(text)
    assert (verdict.reward, verdict.outcome, verdict.extracted) == (1.0, "right", "B"), verdict.reason


@pytest.mark.parametrize("text", ["A", "(C)", r"\boxed{D}", "Answer: J", "The answer is (A)."])
def test_another_letter_is_wrong(text):
    verdict = judge(text)
    assert (verdict.reward, verdict.outcome) == (0.0, "wrong")
    assert verdict.extracted in "ACDJ"


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "I do not know.", "Paris", "42", "Answer:", "Answer: none of these", r"\boxed{}", r"\boxed{42}", r"\boxed{B",
        # two letters
        "A or B", "(A) or (B)", "Answer: A or B", "Answer: B or maybe C", "Answer: B/C", "Answer: B, C", "Answer: A, B, C, D", r"\boxed{A, B}", r"\boxed{B or C}",
        r"\boxed{A} \boxed{B}", "<answer>A</answer><answer>B</answer>", r"<answer>A</answer> \boxed{B}", "Answer: A Answer: B", "Answer: A\nAnswer: B", "ABCD", "(A)(B)(C)(D)",
        "**A** **B**", "Answer: either (b) or (c)", "Answer: B, not A",
        # a later correction, or text that takes it back
        "Answer: B\nWait, it is C.", r"\boxed{B} Actually (C).", "<answer>B</answer> or A", "Answer: B\nAnswer: I do not know", r"\boxed{B} \boxed{42}",
        # denials, echoes
        "The answer is not B.", "The answer is not (B).", "It is not (B).", "The answer isn't (B)", "(B) is wrong.", "Choose from A) 1 B) 2 C) 3\nB",
        # letters that are no picks or look like one
        "Answer: В", "Answer: Ｂ", "Answer: ⒝", "AB", "Answer: Bee", "Answer: A cat sat", "Plan B", "I think so", "Answer: K",
        # thinking
        "<think>Answer: B</think>", "<think>Answer: B",
    ],
)  # fmt: skip
def test_it_reads_nothing(text):
    verdict = judge(text)
    assert (verdict.outcome, verdict.reward, verdict.extracted) == ("unparseable", 0.0, ""), verdict.reason


@pytest.mark.parametrize(
    ("text", "answer", "outcome"),
    [
        ("Paris", "B", "right"),
        ("paris.", "B", "right"),
        (r"\boxed{\text{Paris}}", "B", "right"),
        ("The answer is Paris.", "B", "right"),
        ("**Paris**", "B", "right"),
        ("Answer: B) Paris", "B", "right"),
        ("Answer: C) Vitamin C", "C", "right"),
        ("Vitamin C", "C", "right"),
        ("Answer: A cat", "D", "right"),
        ("Answer: D) A cat", "D", "right"),
        ("Paris", "Paris", "right"),
        ("B", "Paris", "right"),
        ("London", "B", "wrong"),
        ("Answer: B) Vitamin C", "B", "unparseable"),  # letter and text of two choices
        ("Paris or London", "B", "unparseable"),
        ("Answer: Paris or London", "B", "unparseable"),
        ("It is Paris I think", "B", "unparseable"),
        ("Answer: E", "B", "unparseable"),  # four choices have no E
        ("Rome", "B", "unparseable"),
    ],
)
def test_the_text_of_a_choice_is_read_where_the_row_gives_it(text, answer, outcome):
    assert judge(text, answer, CITIES).outcome == outcome
    assert judge(text, answer, dict(zip("ABCD", CITIES, strict=True))).outcome == outcome


BLOOD = ["O", "A", "B", "AB"]
CLAIMS = ["True", "False", "Not given", "None of the above"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"), (r"\boxed{A}", "A"), ("B", "B"), ("**B**", "B"), ("Answer: B", "B"), (r"\boxed{AB}", "D"), ("Answer: (D) AB", "D"),
        ("Answer: O", "A"), ("A) O", "A"), ("C) B", "C"), ("The answer is C) B", "C"), ("Answer: C) A", ""), ("Answer: B) O", ""),
    ],
)  # fmt: skip
def test_a_label_wins_over_another_choices_text(text, letter):
    assert judge(text, "B", BLOOD).extracted == letter


@pytest.mark.parametrize("choices", [CLAIMS, None])
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B. False", "B"), ("B) False", "B"), ("**B. False**", "B"), ("Answer: B. False", "B"), (r"\boxed{B. False}", "B"), ("The answer is (B) False.", "B"),
        ("C. Not given", "C"), ("Answer: C) Not given", "C"), (r"\boxed{\text{C. Not given}}", "C"), ("D. None of the above", "D"), ("<answer>B: False</answer>", "B"),
    ],
)  # fmt: skip
def test_a_choices_own_text_denies_nothing(text, answer, choices):
    assert judge(text, answer, choices).outcome == "right"


@pytest.mark.parametrize("choices", [CITIES, None])
@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{B is wrong}", r"\boxed{not B}", r"\boxed{\neg B}", r"\boxed{B} is wrong.", r"It is not \boxed{B}.", r"It can't be $\boxed{B}$", "<answer>not B</answer>",
        "Answer: B is incorrect", "The answer is B, which is wrong", "I don't think the answer is B", "Answer: B (wrong)", "B) is wrong", "Answer: B isn't it",
    ],
)  # fmt: skip
def test_a_denial_never_wins(text, choices):
    assert judge(text, "B", choices).outcome == "unparseable"


@pytest.mark.parametrize(
    "text", ["Answer: B) Paris is wrong", r"\boxed{Paris is wrong}", r"\boxed{Paris} is not right"]
)
def test_a_denied_text_never_wins(text):
    assert judge(text, "B", CITIES).outcome == "unparseable"


@pytest.mark.parametrize(
    "text",
    ["B) London", r"\boxed{B) London}", "Answer: B. London", "Answer: B, London", "Answer: London (B)", "Answer: B) Rome", "Answer: B: Rome", r"\boxed{B} London"],
)  # fmt: skip
def test_a_letter_beside_a_text_that_is_not_its_own_is_no_pick(text):
    assert judge(text, "B", CITIES).outcome == "unparseable"


@pytest.mark.parametrize(
    "text",
    [
        "Answer: B because it is not red", "Answer: B. The others are wrong.", "Answer: B) Paris because it is the capital", "Answer: Paris (B)", "(B), as it is the capital",
        r"It is not \boxed{A}. It is \boxed{B}", r"If not, \boxed{B}", "Answer: (B) is correct", "**B) Paris**",
    ],
)  # fmt: skip
def test_reasons_around_a_pick_deny_nothing(text):
    assert judge(text, "B", CITIES).outcome == "right"


def test_a_text_that_two_choices_share_is_no_pick():
    assert judge("yes", "A", ["yes", "Yes.", "no"]).outcome == "unparseable"
    assert judge("no", "C", ["yes", "Yes.", "no"]).outcome == "right"


@pytest.mark.parametrize(
    ("answer", "choices", "says"),
    [
        (1, None, "answer = 1; expected one of the letters A, B"),
        (None, None, "answer = None"),
        ("K", None, "answer = 'K'"),
        ("E", CITIES, "expected one of the letters A, B, C, D"),
        (["A", "B"], None, "answer = "),
        ("Rome", CITIES, "answer = 'Rome'"),
        ("A", ["one"], "expected 2 to 10 texts"),
        ("A", "Paris", "choices = 'Paris'"),
        ("A", list("abcdefghijk"), "expected 2 to 10 texts"),
        ("A", {"A": "x", "C": "y"}, "choices = "),
    ],
)
def test_a_row_it_cannot_work_with_is_an_error(answer, choices, says):
    with pytest.raises(ValueError, match="multiple_choice") as raised:
        judge("A", answer, choices)
    assert says in str(raised.value)


@pytest.mark.parametrize("letters", ["", "A", "BA", "ABX", "abcd", 4, ["A", "B"]])
def test_letters_are_the_first_of_the_alphabet(letters):
    with pytest.raises(ValueError, match="letters = "):
        load({"letters": letters})
    assert judge("E", "B", letters="ABCD").outcome == "unparseable"


def test_hostile_texts_take_no_time():
    started = time.perf_counter()
    for text in (
        "answer is " * 5000, "answer" + " " * 45_000, "(A" * 20_000, "\\text{" * 8000, "**A" * 15_000, "\\boxed{" * 7000 + "B" + "}" * 7000, "A " * 25_000,
        "answer:" + "*" * 45_000, "<answer>" * 6000, "not " * 12_000, "B) " * 15_000,
    ):  # fmt: skip
        judge(text)
        judge(text, "B", CITIES)
    assert time.perf_counter() - started < 4
