"""What countdown calls right: expressions graded by hand, with what a policy might try instead of solving."""

# ruff: noqa: E501, RUF001 - tables are read by columns, and hold look-alike signs on purpose

import ast
import random
import re
import time
from fractions import Fraction
from operator import add, mul, sub, truediv

import pytest

from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.binding import bind
from verigrad.verifiers.countdown import countdown

NUMS, TARGET = [3, 4, 8, 2], 24


def load(options):
    return bind(countdown, name="countdown", source="here", options=options)


def judge(text, *, nums=NUMS, target=TARGET, answer=None, **options):
    meta = {"nums": nums} if target is None else {"nums": nums, "target": target}
    (verdict,) = load(options).judge(Problem("p", "?", answer, meta), [Attempt(text)])
    return verdict


def tagged(expression):
    return f"<answer>{expression}</answer>"


@pytest.mark.parametrize(
    "expression",
    [
        "(3*2)*(8-4)", "3*(4+8/2)", " 8 * ( 4 + 2 - 3 ) ", "((4-3)+2)*8", "8*(2-(3-4))", "(3*2)*(8-4) = 24", "(3*2)*(8-4)=24",
        "3×2×(8−4)", r"3 \times 2 \cdot (8-4)", "(8÷2+4)*3", r"\left(8-4\right)*3*2", "$3*2*(8-4)$", "((((3))))*2*(8-4)", "\n3*2*(8-4)\n",
    ],
)  # fmt: skip
def test_right(expression):
    verdict = judge(tagged(expression))
    assert (verdict.reward, verdict.outcome) == (1.0, "right"), verdict.reason
    assert dict(verdict.parts) == {"format": 1.0, "right": 1.0}


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("3*8", "does not use 4"),  # 24 with two of four
        ("24", "uses 24"),
        ("3*8*(4-2)/2", "uses 2"),  # twice
        ("3+4+8+2", "another value"),
        ("3*4*8*2", "another value"),
        ("3/(4-8/2)", "divides by zero"),
        ("8*3*(4-3)", "uses 3"),
        ("2*4*3", "does not use 8"),
        ("(3*2)*(8-4)+0", "uses 0"),
    ],
)
def test_wrong(expression, why):
    verdict = judge(tagged(expression))
    assert (verdict.reward, verdict.outcome) == (0.0, "wrong")
    assert why in verdict.reason


@pytest.mark.parametrize(
    "expression",
    [
        "", "   ", "()", "3 * 2 (8-4)", "3*2(8-4)", "(3)(2)*(8-4)", "34-8-2", "3 4-8-2", "-3*-8", "-(4-8)*3*2", "+3*2*(8-4)", "3*2*(8-4", "3*2*8-4)",
        ")3*2*(8-4)(", "3**2*(8-4)", "3^2", "3*2*(8-4)=25", "3*2*(8-4)=24=24", "24=3*2*(8-4)", "= 24", "3*2*(8-4)=", "3//2", "8%4", "3.0*2*(8-4)", "3e0*2",
        "03*2*(8-4)", "3_*2", "３*2*(8-4)", "٣*2*(8-4)", "3²*2", "3*2*(8-4)\u200b", "3*2*(8-4) or 3*8", "3*2*(8-4), 3*8", "3*2*(8-4);", "sum([3,8])",
        "__import__('os')._exit(0)", "int('24')", "3!*4", "max(24,3)", "3*2*(8-4) # 4", "9" * 900, "(" * 400 + "3" + ")" * 400 + "*2*(8-4)" * 40, "1e999999", "*", "3+", "3 + * 4",
    ],
)  # fmt: skip
def test_unreadable(expression):
    verdict = judge(tagged(expression))
    if expression == "34-8-2":  # joined digits are another number, not a reading fault
        assert (verdict.outcome, verdict.reward) == ("wrong", 0.0)
    else:
        assert (verdict.outcome, verdict.reward) == ("unparseable", 0.0), verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3*2*(8-4)",  # no tags
        "<think><answer>3*2*(8-4)</answer></think>",  # only thought of
        "<think><answer>3*2*(8-4)</answer>",
        "<answer>3*8</answer><answer>3*2*(8-4)</answer>",  # two tries
        "<answer>3*2*(8-4)</answer> <answer>3*2*(8-4)</answer>",
        "<answer>3*2*(8-4)",
        "3*2*(8-4)</answer>",
        "</answer>3*2*(8-4)<answer>",
        "<answer><answer>3*2*(8-4)</answer></answer>",
        "<answer>3*2*(8-4)</answer> Wait, that is wrong: 3*8.",
        "<ANSWER>3*2*(8-4)</ANSWER>",
        "＜answer＞3*2*(8-4)＜/answer＞",
        r"\boxed{3*2*(8-4)}",
    ],
)
def test_the_answer_stands_once_and_last(text):
    assert judge(text).outcome == "unparseable"


def test_thinking_may_hold_anything():
    assert judge("<think>maybe <answer>3*8</answer>?</think>So\n<answer>3*2*(8-4)</answer>.\n").reward == 1.0


def test_the_options():
    right = "3*2*(8-4)"
    assert judge(tagged("3*8"), use_all=False).reward == 1.0
    assert judge(tagged("3*8*2/2"), use_all=False).reward == 0.0  # at most once still
    assert judge(tagged(right + "=24"), equals_target=False).outcome == "unparseable"
    assert judge(tagged(right) + " Done, I hope.", trailing_text=True).reward == 1.0
    boxed = {"extract": "boxed"}
    assert judge(rf"It is $\boxed{{{right}}}$.", **boxed).reward == 1.0
    assert judge(rf"\boxed{{{right}}} and \boxed{{ {right} }}", **boxed).reward == 1.0
    assert judge(rf"\boxed{{3*8}} or \boxed{{{right}}}", **boxed).outcome == "unparseable"
    assert judge(rf"\boxed{{{right}", **boxed).outcome == "unparseable"
    assert judge(f"First 3*8, no.\n{right}\n\n", extract="last_line").reward == 1.0
    assert judge(f"{right}\nThat was it", extract="last_line").outcome == "unparseable"


def test_format_reward_is_for_expressions_that_can_be_read():
    assert judge(tagged("3*8"), format_reward=0.1).reward == 0.1
    assert judge(tagged("3*8"), format_reward=0.1).outcome == "partial"
    assert dict(judge(tagged("3*8"), format_reward=0.1).parts) == {"format": 1.0, "right": 0.0}
    assert judge(tagged("3*8 or 24"), format_reward=0.1).reward == 0.0
    assert judge("24", format_reward=0.1).reward == 0.0
    assert judge(tagged("3*2*(8-4)"), format_reward=0.1).reward == 1.0


def test_rationals_are_exact_and_numbers_may_repeat():
    assert judge(tagged("8/(3-8/3)"), nums=[3, 3, 8, 8]).reward == 1.0  # 8 / (1/3)
    assert judge(tagged("8/(3-8/3)"), nums=[3, 8, 8]).reward == 0.0
    assert judge(tagged("5-7"), nums=[5, 7], target=-2).reward == 1.0
    assert judge(tagged("5-7 = -2"), nums=[5, 7], target=-2).reward == 1.0
    assert judge(tagged("999999999999*999999999999"), nums=[10**12 - 1] * 2).reward == 0.0


def test_equal_answers_read_the_same():
    assert (
        judge(tagged("3 × 2*( 8-4 ) = 24")).extracted == judge(tagged("3*2*(8-4)")).extracted == "3*2*(8-4)"
    )
    assert judge("none").extracted == ""


def test_the_target_may_be_the_answer():
    assert judge(tagged("3*8"), nums=[3, 8], target=None, answer="24").reward == 1.0
    assert judge(tagged("3*8"), nums=[3, 8], target=None, answer=24).reward == 1.0


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"target": None}, r"answer \(the row has no target\) = None; expected a whole number"),
        ({"target": True}, "target = True"),
        ({"target": "3*8"}, "target = '3\\*8'"),
        ({"target": 2.5}, "target = 2.5"),
        ({"nums": []}, r"nums = \[\]; expected a list of 1 to 100 whole numbers"),
        ({"nums": "3 8"}, "nums = '3 8'"),
        ({"nums": [3, -8]}, "nums = "),
        ({"nums": [3, True]}, "nums = "),
        ({"nums": [3, 2.5]}, "nums = "),
        ({"nums": [1] * 101}, "nums = "),
    ],
)
def test_a_row_it_cannot_work_with_is_an_error(row, says):
    with pytest.raises(ValueError, match=says):
        judge(tagged("3*8"), **row)


def test_a_row_without_numbers_is_refused_before_judging():
    with pytest.raises(ValueError, match="needs 'nums'"):
        load({}).check_row(Problem("p", "?", 24))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"extract": "xml"}, "extract = 'xml'; expected one of answer_tag, boxed, last_line"),
        ({"use_all": "no"}, "use_all = 'no'; expected true or false"),
        ({"format_reward": 1.0}, "format_reward = 1.0; expected a number from 0 to 0.99"),
        ({"format_reward": float("nan")}, "format_reward = nan"),
        ({"use_al": True}, "did you mean 'use_all'"),
    ],
)
def test_a_bad_option_is_refused_when_it_is_loaded(options, says):
    with pytest.raises(ValueError, match="countdown") as raised:
        load(options)
    assert says in str(raised.value)


def test_hostile_texts_take_no_time():
    started = time.perf_counter()
    for text in (
        "<answer>" * 6000,
        tagged("(" * 40_000),
        tagged("1+" * 20_000),
        "\\boxed{" * 7000,
        tagged("=" * 40_000),
        "\\boxed" + " " * 45_000,
    ):
        for extract in ("answer_tag", "boxed", "last_line"):
            assert judge(text, extract=extract).reward == 0.0
    assert time.perf_counter() - started < 2


def reference(node):
    """The value of a Python expression of whole numbers and + - * /, read by Python's own parser."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp) or type(node.op) not in PYTHON_SIGNS:
        raise SyntaxError
    return PYTHON_SIGNS[type(node.op)](reference(node.left), reference(node.right))


PYTHON_SIGNS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}


def test_random_texts_are_read_as_python_reads_them():
    """Precedence, brackets and malformed texts against another parser; the target is what that parser says."""
    draw = random.Random(5)
    num_read = 0
    for _ in range(8000):
        text = "".join(
            draw.choices(["3", "4", "8", "2", "+", "-", "*", "/", "(", ")", " "], k=draw.randint(1, 9))
        )
        try:
            value = reference(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, ValueError):
            assert judge(tagged(text)).outcome == "unparseable", text
            continue
        except ZeroDivisionError:
            assert judge(tagged(text)).outcome == "wrong", text
            continue
        num_read += 1
        numbers = [int(digits) for digits in re.findall(r"\d+", text)]
        if value.denominator == 1:
            assert judge(tagged(text), nums=numbers, target=int(value)).reward == 1.0, text
        assert judge(tagged(text), nums=numbers, target=int(value) + 1).reward == 0.0, text
    assert num_read > 500
