"""answer_format: one thought, one answer, nothing else; graded by hand."""

# ruff: noqa: E501, RUF001 - tables are read by columns, and hold look-alike signs on purpose

import time

import pytest

from verigrad.verifiers.answer_format import answer_format
from verigrad.verifiers.binding import bind


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><answer>b</answer>",
        "<think>\na\n</think>\n\n<answer>\nb\n</answer>\n",
        "  <think>a</think> <answer>b</answer>  ",
        "<think>2 < 3 > 1 </ think> <b></think><answer><i>b</i></answer>",
        "<think>" + "word " * 9000 + "</think><answer>b</answer>",
    ],
)
def test_right(text):
    verdict = answer_format(text)
    assert (verdict.reward, verdict.outcome) == (1.0, "right")
    assert set(verdict.parts.values()) == {1.0}


# (text, which of one_thought, one_answer, in_order, nothing_else, not_empty are kept)
BROKEN = [
    ("", "00000"), ("b", "00000"), ("<think>a</think>", "10000"), ("<answer>b</answer>", "01000"), ("<think>a</think> b", "10000"),
    ("<think>a<answer>b</answer>", "01000"), ("a</think><answer>b</answer>", "01000"), ("<think>a</think><answer>b", "10000"),
    ("<answer>b</answer><think>a</think>", "11000"), ("<think><answer>b</answer></think>", "11000"), ("<answer><think>a</think></answer>", "11000"),
    ("<think>a<answer></think>b</answer>", "11000"), ("</think>a<think></answer>b<answer>", "11000"), ("<think>a</answer></think><answer>b", "11000"),
    ("Hi <think>a</think><answer>b</answer>", "11101"), ("<think>a</think>so<answer>b</answer>", "11101"), ("<think>a</think><answer>b</answer>.", "11101"),
    ("<think>a</think><answer>b</answer>\u200b", "11101"), ("<think>a</think><answer>b</answer><|im_end|>", "11101"),
    ("<think>a</think><answer>b</answer><answer>c</answer>", "10000"), ("<think>a</think><think>a</think><answer>b</answer>", "01000"),
    ("<think>say <answer> then</think><answer>b</answer>", "10000"), ("<think></think><answer>b</answer>", "11110"),
    ("<think>a</think><answer> \n</answer>", "11110"), ("<think> </think><answer></answer>x", "11100"), ("<Think>a</Think><Answer>b</Answer>", "00000"),
    ("< think>a</ think>< answer>b</ answer>", "00000"), ("＜think＞a＜/think＞＜answer＞b＜/answer＞", "00000"), ("<think>" * 9 + "</think><answer>b</answer>", "01000"),
    ("<think>a</think><answer>b</answer>" * 2, "00000"), ("```<think>a</think><answer>b</answer>```", "11101"), ("\x00<think>a</think><answer>b</answer>", "11101"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kept"), BROKEN)
def test_each_broken_rule_is_named(text, kept):
    verdict = answer_format(text)
    assert (verdict.reward, verdict.outcome) == (0.0, "wrong")
    assert "".join(str(int(value)) for value in verdict.parts.values()) == kept
    assert all((name in verdict.reason) != bool(value) for name, value in verdict.parts.items())


@pytest.mark.parametrize(("text", "kept"), BROKEN)
def test_partial_pays_the_share_of_rules_and_nothing_for_no_structure(text, kept):
    verdict = answer_format(text, partial=True)
    assert verdict.reward == pytest.approx(kept.count("1") / 5)
    assert verdict.outcome == ("partial" if "1" in kept else "wrong")


def test_a_forced_prefix_is_part_of_the_text():
    prefix, completion = "<think>", "a</think><answer>b</answer>"
    assert answer_format(prefix + completion).reward == 1.0
    assert answer_format(prefix + "<think>" + completion).reward == 0.0  # and must not be written again


def test_other_tags():
    text = "<reasoning>a</reasoning><final>b</final>"
    assert answer_format(text, think="reasoning", answer_tag="final").reward == 1.0
    assert answer_format(text).reward == 0.0


@pytest.mark.parametrize("options", [{"think": "<think>"}, {"answer_tag": ""}, {"think": 3}, {"think": " a"}, {"think": "a" * 41}, {"partial": 1}])  # fmt: skip
def test_bad_options_are_refused_when_it_is_loaded(options):
    with pytest.raises(ValueError, match=r"answer_format: .* expected"):
        bind(answer_format, name="answer_format", source="here", options=options)


def test_two_tags_of_one_name_are_refused():
    with pytest.raises(ValueError, match="name two different tags"):
        bind(answer_format, name="answer_format", source="here", options={"think": "answer"})


def test_hostile_texts_take_no_time():
    started = time.perf_counter()
    for text in ("<think>" * 7000, "<" * 50_000, "<think></think>" * 3000, "</answer>" * 5000):
        assert answer_format(text).reward == 0.0
    assert time.perf_counter() - started < 1
