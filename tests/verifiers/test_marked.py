"""Where tags and boxes begin and end, whatever is nested, doubled or left open."""

import time

import pytest

from verigrad.verifiers.marked import (
    Unreadable,
    boxes,
    last_line,
    nothing_follows,
    one_box,
    one_tag,
    short,
    tags,
)


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("", []),
        (r"\boxed{1}", ["1"]),
        (r"\boxed {1} \fbox{2}", ["1", "2"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\boxed{1}}", ["1"]),
        (r"\boxed{1 \boxed{2} 3}", ["2"]),
        (r"\boxed{1} \boxed{2", ["1"]),
        (r"\boxed{\boxed{1}", ["1"]),
        (r"\boxed{\{1\}}", [r"\{1\}"]),
        (r"\boxed{a} } \boxed{b}", ["a", "b"]),
        (r"\boxedx{1} {2} boxed{3}", []),
        (r"\\boxed{1}", []),  # a line break and a word
    ],
)
def test_boxes(text, contents):
    assert [content for content, _ in boxes(text)] == contents
    assert all(text[:end].endswith("}") for _, end in boxes(text))


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("<a>1</a>", ["1"]),
        ("<a>1</a> <a>2</a>", ["1", "2"]),
        ("<a>1<a>2</a>", ["1<a>2"]),
        ("<a>1", []),
        ("1</a>", []),
        ("</a><a>", []),
    ],
)
def test_tags(text, contents):
    assert [content for content, _ in tags(text, "a")] == contents


def test_one_of_each():
    assert one_tag("x<a>1</a>y", "a") == ("1", "y")
    assert one_box(r"\boxed{1} = \boxed{ 1 }.") == (" 1 ", ".")
    for text in ("", "<a>1", "<a>1</a><a>1</a>", "</a><a>", "<a><a>1</a>", "</a><a></a>"):
        with pytest.raises(Unreadable):
            one_tag(text, "a")
    for text in ("", r"\boxed{1} \boxed{2}"):
        with pytest.raises(Unreadable):
            one_box(text)


def test_what_may_follow():
    for after in ("", ".", " \n", "$.", "**", r"\]", "}$$", r"\)."):
        nothing_follows(after)
    for after in ("a", "\n1", ". But", ", 3", "?", "\u200b"):
        with pytest.raises(Unreadable):
            nothing_follows(after)


def test_lines():
    assert last_line("a\n b \n\n ") == "b"
    assert last_line("") == ""
    assert short("a\n  b") == "a b"
    assert len(short("x" * 10**6)) == 80


def test_every_one_of_them_takes_linear_time():
    started = time.perf_counter()
    for text in (
        "<a>" * 17_000,
        r"\boxed{" * 7000,
        r"\boxed" + " " * 45_000,
        "\\" * 50_000,
        "{" * 50_000,
        "</a>" * 12_000,
    ):
        boxes(text)
        tags(text, "a")
    assert time.perf_counter() - started < 1
