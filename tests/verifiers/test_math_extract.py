"""The last closed box, looked for from the end, is the one a pass over the whole text finds."""

import random

import pytest

from verigrad.verifiers import math_extract
from verigrad.verifiers.math_extract import last_box

PIECES = [r"\boxed{", r"\fbox{", r"\boxed", r"\boxed ", "{", "}", "}", "\\", r"\{", r"\}", "5", " 7 ", "x",
          "ab", "\n", r"\frac{1}{2}", r"\\", r"\phantom{"]  # fmt: skip


def test_looking_from_the_end_changes_no_answer(monkeypatch):
    draw = random.Random(0)
    texts = ["".join(draw.choices(PIECES, k=draw.randint(1, 14))) for _ in range(20_000)]
    quick = [last_box(text) for text in texts]
    monkeypatch.setattr(math_extract, "FEW_BOXES", 0)
    slow = [last_box(text) for text in texts]
    assert sum(box is not None for box in slow) > 4000
    different = [(text, a, b) for text, a, b in zip(texts, quick, slow, strict=True) if a != b]
    assert not different, different[:3]


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{1} and \boxed{2 \fbox{3}", "3"),
        (r"\boxed{1 \boxed{2} 3}", "2"),
        (r"\boxed 5 or \\boxed 6", "5"),
        (r"\boxed{1}" + r"\boxed{" * 10, "1"),
        ("{" * 100 + r"\boxed{4}", "4"),
    ],
)
def test_the_last_box_that_closes(text, box):
    assert last_box(text) == box
