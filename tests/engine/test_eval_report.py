"""Results to tables and JSON, by hand."""

import io
import json

from verigrad.engine.eval_report import Comparison, Result, as_json, show
from verigrad.engine.intervals import Paired

NAN = float("nan")


def result(label="a [b]", avg=0.5, **used):
    row = {
        "step": 0, "data": "d", "num_problems": 4, "num_samples": 2,
        "avg": avg, "avg_low": 0.25, "avg_high": 0.75,
        "pass_at": {"1": 0.5, "2": NAN}, "maj_at": {"1": 0.5, "2": 0.5},
        "pass_at_low": {"1": 0.125, "2": NAN}, "maj_at_low": {"1": 0.25, "2": NAN},
        "pass_at_high": {"1": 1.0, "2": NAN}, "maj_at_high": {"1": 0.75, "2": NAN},
        "truncated_frac": 0.125, "undecided_frac": 0.0, "completion_tokens_mean": 7.25,
    }  # fmt: skip
    base = {
        "model": "m1", "num_samples": 2, "temperature": 1.0, "max_tokens": 8, "prompts": "p1",
        "verifier": "v 1", "data": "d1", "sampler": "transformers float32", "seed": 0,
    }  # fmt: skip
    return Result(label, "path", row, {**base, **used}, {})


def printed(results, comparisons=()):
    file = io.StringIO()
    show(results, comparisons, file=file)
    return file.getvalue()


def line(text, start):
    (found,) = [one for one in text.splitlines() if one.startswith(start)]
    return " ".join(found.split())


def test_every_score_has_its_interval_and_what_was_used_is_there():
    text = printed([result()])
    assert "d: 4 problems" in text
    assert "a [b]" in text  # no markup
    assert line(text, "avg@2") == "avg@2 0.500 [0.250, 0.750]"
    assert line(text, "pass@1") == "pass@1 0.500 [0.125, 1.000]"
    assert line(text, "pass@2") == "pass@2 -"
    assert line(text, "maj@2") == "maj@2 0.500"  # one problem has no interval
    assert line(text, "truncated") == "truncated 12.5%"
    assert line(text, "completion tokens") == "completion tokens 7.2"
    for key, value in (
        ("temperature", "1.0"),
        ("max tokens", "8"),
        ("prompt template", "p1"),
        ("data", "d1"),
    ):
        assert line(text, key) == f"{key} {value}"
    assert line(text, "verifier") == "verifier v 1"
    assert line(text, "samples per problem") == "samples per problem 2"


def test_two_models_stand_side_by_side_and_are_compared():
    paired = Paired(0.25, -0.125, 0.5, 0.00004, 3, 1, 0)
    one = Comparison("d", "avg", "a", "b", 4, paired)
    text = printed([result("a"), result("b", avg=0.75)], [one])
    assert line(text, "avg@2") == "avg@2 0.500 [0.250, 0.750] 0.750 [0.250, 0.750]"
    assert line(text, "b - a") == "b - a avg +0.250 [-0.125, +0.500] <0.0001 3 1 0"


def test_models_that_differ_in_more_than_weights_are_said_to():
    text = printed([result("a"), result("b", temperature=0.5, verifier="v 2", model="m2")])
    assert line(text, "note:").endswith("b differs from a in more than its weights: temperature, verifier")
    assert "note" not in printed([result("a"), result("b", model="m2")])


def test_models_that_share_no_problems_are_not_compared():
    assert "no comparison" in printed([result("a"), result("b")])


def test_categories_have_a_table():
    row = dict(result().row)
    row["by"] = {"even": {"num_problems": 3, "avg": 0.5, "avg_low": 0.25, "avg_high": 0.75}}
    other = dict(row, by={"odd": {"num_problems": 1, "avg": 1.0, "avg_low": NAN, "avg_high": NAN}})
    used = result().used
    text = printed([Result("a", "x", row, used, {}), Result("b", "y", other, used, {})])
    assert line(text, "even") == "even 0.500 [0.250, 0.750] of 3 -"
    assert line(text, "odd") == "odd - 1.000 of 1"


def test_json_has_no_nan():
    made = as_json([result()], [Comparison("d", "avg", "a", "b", 4, Paired(0.0, NAN, NAN, 1.0, 0, 0, 4))])
    text = json.dumps(made, allow_nan=False)
    back = json.loads(text)
    assert back["evaluations"][0]["pass_at"] == {"1": 0.5, "2": None}
    assert back["evaluations"][0]["used"]["verifier"] == "v 1"
    assert back["comparisons"][0]["low"] is None
    assert back["comparisons"][0]["num_same"] == 4
