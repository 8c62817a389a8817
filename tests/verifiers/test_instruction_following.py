"""What instruction_following calls kept and broken: texts graded by hand, and IFEval's rows."""

# ruff: noqa: E501 - a table is read by columns

import time

import pytest

from verigrad.verifiers import registry
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.instruction_checks import KINDS, num_sentences
from verigrad.verifiers.instruction_following import holds, loosened
from verigrad.verifiers.instruction_rows import IFEVAL, checked


def judge(text, *constraints, prompt="Say something.", options=None, **meta):
    columns = {"constraints": list(constraints), **meta} if constraints else meta
    problem = Problem("p", prompt, None, columns)
    return registry.load("instruction_following", options or {}).judge(problem, [Attempt(text)])[0]


# (text, constraint, whether the text keeps it)
CASES = [
    ("one two three", {"kind": "words", "n": 3}, True),
    ("one two", {"kind": "words", "n": 3}, False),
    ("one two three", {"kind": "words", "n": 3, "relation": "less than"}, False),
    ("one-two, three!", {"kind": "words", "n": 3, "relation": "exactly"}, True),
    ("... --- ...", {"kind": "words", "n": 1}, False),
    ("abc", {"kind": "characters", "n": 3}, True),
    ("  abcd\n", {"kind": "characters", "n": 3}, False),
    ("a\n\nb", {"kind": "lines", "n": 2}, True),
    ("It is 3.14. Dr. Smith agrees, e.g. today! Really?", {"kind": "sentences", "n": 3, "relation": "exactly"}, True),
    ("No stop at the end", {"kind": "sentences", "n": 1, "relation": "exactly"}, True),
    ("One. Two.", {"kind": "sentences", "n": 3}, False),
    ("你好。再见。", {"kind": "sentences", "n": 2, "relation": "exactly"}, True),
    ("a\n\nb\n\n\nc\n", {"kind": "paragraphs", "n": 3}, True),
    ("a\nb", {"kind": "paragraphs", "n": 2}, False),
    ("a\n***\nb", {"kind": "paragraphs", "n": 2, "separator": "***"}, True),
    ("***\na\n***\nb\n***", {"kind": "paragraphs", "n": 2, "separator": "***"}, True),
    ("a\n***\n***\nb", {"kind": "paragraphs", "n": 3, "separator": "***"}, False),
    ("x\n\n\"Well, y", {"kind": "paragraph_first_word", "paragraph": 2, "word": "well"}, True),
    ("x\n\nWelling", {"kind": "paragraph_first_word", "paragraph": 2, "word": "well"}, False),
    ("Well", {"kind": "paragraph_first_word", "paragraph": 2, "word": "well"}, False),
    ("Cats chase mice.", {"kind": "keywords", "words": ["cat", "MICE"]}, True),
    ("Cats chase.", {"kind": "keywords", "words": ["cat", "mice"]}, False),
    ("a.c", {"kind": "keywords", "words": ["a.c"]}, True),
    ("abc", {"kind": "keywords", "words": ["a.c"]}, False),
    ("concatenate", {"kind": "forbidden_words", "words": ["cat"]}, True),
    ("The Cat.", {"kind": "forbidden_words", "words": ["cat"]}, False),
    ("cat, cat; scatter", {"kind": "keyword_frequency", "word": "cat", "n": 2, "relation": "exactly"}, True),
    ("cat, Cat; scatter", {"kind": "keyword_frequency", "word": "cat", "n": 3}, False),
    ("a\nb\nc", {"kind": "lines", "n": 2}, False),
    ("Banana", {"kind": "letter_frequency", "letter": "a", "n": 3, "relation": "exactly"}, True),
    ("Banana", {"kind": "letter_frequency", "letter": "b", "n": 1, "relation": "less than"}, False),
    ("NASA and the WHO met Ann", {"kind": "capital_words", "n": 2, "relation": "exactly"}, True),
    ("Nasa and Who", {"kind": "capital_words", "n": 1}, False),
    ("all lower 1", {"kind": "lowercase"}, True),
    ("All lower", {"kind": "lowercase"}, False),
    ("123", {"kind": "lowercase"}, False),
    ("ALL UPPER!", {"kind": "uppercase"}, True),
    ("ALL UPPEr!", {"kind": "uppercase"}, False),
    ("no comma; here", {"kind": "no_commas"}, True),
    ("1,000", {"kind": "no_commas"}, False),
    ("一，二", {"kind": "no_commas"}, False),  # noqa: RUF001
    ("Dear  Ann, hello", {"kind": "start_phrase", "phrase": "dear ann"}, True),
    ("Oh dear Ann", {"kind": "start_phrase", "phrase": "dear ann"}, False),
    ('"... any questions?"', {"kind": "end_phrase", "phrase": "Any questions?"}, True),
    ("Any questions? No.", {"kind": "end_phrase", "phrase": "Any questions?"}, False),
    ('"all of it"', {"kind": "quoted"}, True),
    ('"one" of it', {"kind": "quoted"}, False),
    ('"', {"kind": "quoted"}, False),
    ("* a\n* b\n- c", {"kind": "bullets", "n": 3}, True),
    ("* a\n**b**\n---\n-5 degrees", {"kind": "bullets", "n": 1}, True),
    ("1. a\n2. b", {"kind": "bullets", "n": 2}, False),
    ("SECTION 1\na\nSection 2\nb", {"kind": "sections", "marker": "SECTION", "n": 2}, True),
    ("In section 1 and section 2", {"kind": "sections", "marker": "SECTION", "n": 2}, False),
    ("*one* and **two**", {"kind": "highlights", "n": 2}, True),
    ("** ** * * 2*3*4", {"kind": "highlights", "n": 2}, False),
    ("Dear [name], at [address]", {"kind": "placeholders", "n": 2}, True),
    ("Dear [], [", {"kind": "placeholders", "n": 1}, False),
    ("<<A title>>\ntext", {"kind": "title"}, True),
    ("<<>> << >> <a>", {"kind": "title"}, False),
    ('{"a": [1]}', {"kind": "json"}, True),
    ('```json\n{"a": 1}\n```', {"kind": "json"}, True),
    ('Here: {"a": 1}', {"kind": "json"}, False),
    ("[" * 40_000, {"kind": "json"}, False),
    ("5", {"kind": "json"}, False),
    ("Bye.\n\nP.S. I forgot", {"kind": "postscript"}, True),
    ("Bye. P.P.S I forgot", {"kind": "postscript", "marker": "P.P.S"}, True),
    ("The ships are here", {"kind": "postscript"}, False),
    ("Bye.\nP.S.", {"kind": "postscript"}, False),
    ("So: my answer is  No.", {"kind": "choice", "options": ["My answer is yes.", "My answer is no."]}, True),
    ("No.", {"kind": "choice", "options": ["My answer is yes.", "My answer is no."]}, False),
    ("a\n******\nb", {"kind": "two_responses"}, True),
    ("a\n******\na", {"kind": "two_responses"}, False),
    ("a******b******c", {"kind": "two_responses"}, False),
    ("say something.  Here it is", {"kind": "repeat_prompt"}, True),
    ("Say something.", {"kind": "repeat_prompt"}, False),
    ("Here it is. Say something.", {"kind": "repeat_prompt"}, False),
    ("Das ist ein ganz gewöhnlicher deutscher Satz.", {"kind": "language", "language": "de"}, True),
    ("This is a quite ordinary English sentence.", {"kind": "language", "language": "de"}, False),
    ("ಇದು ಒಂದು ವಾಕ್ಯ", {"kind": "language", "language": "kn"}, True),
    ("यह एक वाक्य है जो हिंदी में है", {"kind": "language", "language": "ru"}, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "constraint", "kept"), CASES, ids=[f"{c['kind']}-{n}" for n, (_, c, _) in enumerate(CASES)]
)
def test_each_kind_is_judged_as_by_hand(text, constraint, kept):
    verdict = judge(text, constraint)
    assert verdict.reward == float(kept), verdict
    assert list(verdict.parts) == [constraint["kind"]]


def test_every_kind_has_a_text_that_keeps_it_and_one_that_does_not():
    assert len(KINDS) >= 20
    for kind in KINDS:
        assert {kept for _, constraint, kept in CASES if constraint["kind"] == kind} == {True, False}, kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_text_keeps_nothing(kind):
    given = {
        "n": 0, "relation": "at least", "words": ["a"], "word": "a", "letter": "a", "marker": "P", "phrase": "a",
        "options": ["a"], "language": "en", "paragraph": 1, "prompt": "a",
    }  # fmt: skip
    spec = KINDS[kind]
    one = checked(kind, kind, {name: given[name] for name in spec.needs}, "a")
    assert not holds(one, " \n")


def test_all_must_hold_or_the_share_is_paid():
    wanted = [
        {"kind": "words", "n": 2},
        {"kind": "lowercase"},
        {"kind": "no_commas"},
        {"kind": "words", "n": 9},
    ]
    verdict = judge("two words", *wanted)
    assert (verdict.reward, verdict.outcome) == (0.0, "wrong")
    assert verdict.parts == {"words": 1.0, "lowercase": 1.0, "no_commas": 1.0, "words 2": 0.0}
    assert verdict.reason == "3 of 4 hold; not words 2"
    verdict = judge("two words", *wanted, options={"partial": True})
    assert (verdict.reward, verdict.outcome) == (0.75, "partial")
    assert judge("two words", *wanted[:3]).outcome == "right"


def test_thinking_is_not_judged():
    assert judge("<think>A, B, C</think>no comma", {"kind": "no_commas"}).reward == 1.0
    assert judge("<think>no comma", {"kind": "no_commas"}).outcome == "unparseable"


def test_loose_forgives_an_introduction_a_closing_line_and_asterisks():
    text = "Sure, here it is:\n**just lower case**\nHope this helps!"
    assert judge(text, {"kind": "lowercase"}).reward == 0.0
    assert judge(text, {"kind": "lowercase"}, options={"mode": "loose"}).reward == 1.0
    assert judge(text, {"kind": "start_phrase", "phrase": "just"}, options={"mode": "loose"}).reward == 1.0
    assert loosened("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_rows_of_ifeval_work_as_they_are():
    row = {
        "key": 1000,
        "instruction_id_list": [
            "punctuation:no_comma",
            "length_constraints:number_words",
            "detectable_format:title",
        ],
        "kwargs": [
            {"num_words": None, "relation": None},
            {"num_words": 4.0, "relation": "at least"},
            {"num_words": None},
        ],
    }
    verdict = judge("<<Title>> one two three", **row)
    assert verdict.reward == 1.0
    assert set(verdict.parts) == set(row["instruction_id_list"])
    assert judge("<<Title>> one, two three", **row).reward == 0.0


def test_all_25_instructions_of_ifeval_are_known():
    given = {
        "keywords": ["a"], "keyword": "a", "frequency": 1, "relation": "at least", "forbidden_words": ["zz"],
        "letter": "a", "let_frequency": 1, "let_relation": "at least", "language": "en", "num_sentences": 1,
        "num_paragraphs": 1, "num_words": 1, "nth_paragraph": 1, "first_word": "a", "num_placeholders": 1,
        "postscript_marker": "P.S.", "num_bullets": 1, "num_highlights": 1, "section_spliter": "Part",
        "num_sections": 1, "prompt_to_repeat": "a", "end_phrase": "a", "capital_frequency": 1,
        "capital_relation": "at least",
    }  # fmt: skip
    assert len(IFEVAL) == 25
    for name, (kind, renamed, _) in IFEVAL.items():
        assert kind in KINDS
        verdict = judge("a", instruction_id_list=[name], kwargs=[{key: given[key] for key in renamed}])
        assert verdict.reward in (0.0, 1.0)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "a row needs the column constraints"),
        ({"constraints": []}, "expected a list of 1 to 50"),
        ({"constraints": "words"}, "expected a list"),
        ({"constraints": [{"n": 3}]}, "expected an object with 'kind'"),
        ({"constraints": [{"kind": "word", "n": 3}]}, "no kind 'word'; did you mean 'words'"),
        ({"constraints": [{"kind": "words"}]}, "words lacks 'n'"),
        ({"constraints": [{"kind": "words", "n": "3"}]}, "n = '3'; expected a whole number"),
        ({"constraints": [{"kind": "words", "n": -1}]}, "expected a whole number"),
        ({"constraints": [{"kind": "words", "n": True}]}, "expected a whole number"),
        ({"constraints": [{"kind": "words", "n": 3, "relation": "about"}]}, "expected one of at least"),
        ({"constraints": [{"kind": "words", "n": 3, "num": 3}]}, "no parameter 'num'"),
        ({"constraints": [{"kind": "keywords", "words": "cat"}]}, "expected a list of texts"),
        ({"constraints": [{"kind": "language", "language": "klingon"}]}, "ISO 639-1"),
        ({"constraints": [{"kind": "letter_frequency", "letter": "ab", "n": 1}]}, "one letter"),
        ({"instruction_id_list": ["punctuation:no_commas"]}, "did you mean 'punctuation:no_comma'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}, "expected as many"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"n": 1}]}, "no parameter 'n'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "constraints": [{"kind": "json"}]}, "not both"),
    ],
)
def test_a_broken_row_is_named_and_never_a_zero(meta, message):
    with pytest.raises(ValueError, match=message):
        judge("any text", **meta)


def test_a_prompt_of_messages_can_be_repeated():
    prompt = [{"role": "system", "content": "x"}, {"role": "user", "content": "Why is it so?"}]
    assert judge("Why is it so? Because.", {"kind": "repeat_prompt"}, prompt=prompt).reward == 1.0
    with pytest.raises(ValueError, match="no prompt to repeat"):
        judge("x", {"kind": "repeat_prompt"}, prompt="")


@pytest.mark.parametrize("options", [{"mode": "lenient"}, {"partial": "yes"}, {"partail": True}])
def test_bad_options_are_refused_when_loaded(options):
    with pytest.raises(ValueError, match="instruction_following"):
        registry.load("instruction_following", options)


def test_hostile_texts_cost_little_time():
    started = time.perf_counter()
    wanted = [
        {"kind": "sentences", "n": 1}, {"kind": "bullets", "n": 1}, {"kind": "highlights", "n": 1}, {"kind": "title"},
        {"kind": "placeholders", "n": 1}, {"kind": "postscript"}, {"kind": "sections", "marker": "S", "n": 1},
        {"kind": "paragraphs", "n": 1}, {"kind": "end_phrase", "phrase": "x"}, {"kind": "json"},
    ]  # fmt: skip
    for text in (
        "*" * 50_000,
        "[" * 50_000,
        "<" * 50_000,
        "a." * 25_000,
        "\n" * 49_000 + "x",
        "P." * 25_000,
        " \t" * 25_000 + "x",
        "- " * 25_000,
    ):
        judge(text, *wanted, options={"mode": "loose"})
    assert time.perf_counter() - started < 30


def test_sentences_are_counted_as_a_reader_would():
    assert num_sentences("") == 0
    assert num_sentences("Hi!!! What?! Ok...") == 3
    assert num_sentences("J. R. R. Tolkien wrote it. I read it.") == 2
    assert num_sentences("A list:\n\nFirst thing\n\nSecond thing") == 3
