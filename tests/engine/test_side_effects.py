import io
import json
import math
import random

import pytest

from tests.tiny import Forked, model_folder, rollout, write_recipe
from verigrad.engine import lm_harness, makers, probes, suite
from verigrad.engine.config import ConfigError
from verigrad.engine.eval_report import Result
from verigrad.engine.schema import VerifiedGroup
from verigrad.engine.side_effects import drops_of, flips_of, held_against_each_other, show, side_effects
from verigrad.engine.win_rate import logistic, rates, win_rate
from verigrad.verifiers.base import Problem, Verdict


def group(name, rewards, *, length=3, **meta):
    """A judged group; a reward of None is undecided."""
    made = [rollout([5, 6], [7] * length) for _ in rewards]
    verdicts = [Verdict.undecided("down") if r is None else Verdict(r, "partial") for r in rewards]
    return VerifiedGroup(Problem(name, name, "", meta), made, verdicts)


def result(label, groups, *, data="one"):
    return Result(label, label, {"data": data}, {}, {}, groups)


def suite_of(**sets):
    return suite.Suite(sets={name: suite.SuiteSet(path="x", **options) for name, options in sets.items()})


def test_how_answers_were_sampled_is_told_with_the_effects():
    used = {
        "temperature": 0.0,
        "num_samples": 1,
        "max_tokens": 48,
        "prompts": "abc",
        "sampler": "vllm",
    }
    groups = [group(f"q{n}", [0.0]) for n in range(3)]
    both = [Result(label, label, {"data": "one"}, used, {}, groups) for label in "ab"]
    found = side_effects(both, suite_of(one={}))
    how = "temperature 0, 1 answer to each problem, at most 48 tokens each, prompt template abc, sampler vllm"
    assert found.as_json()["how"] == how
    out = io.StringIO()
    show(found, file=out)
    assert how in out.getvalue()
    both[1] = Result("b", "b", {"data": "one"}, {**used, "max_tokens": 9, "num_samples": 4}, {}, groups)
    assert (
        "1 or 4 answers to each problem, at most 48 or 9 tokens each"
        in side_effects(both, suite_of(one={})).how
    )


# The table --------------------------------------------------------------------------------------------------


def test_each_model_is_held_against_the_first_problem_by_problem():
    before = [group(f"q{n}", [0.0]) for n in range(8)]
    after = [group(f"q{n}", [1.0 if n else 0.0]) for n in range(8)]
    (effect,) = side_effects([result("a", before), result("b", after)], suite_of(one={})).effects
    assert effect.before[0] == 0.0
    assert effect.after[0] == pytest.approx(7 / 8)
    assert effect.paired.gain == pytest.approx(7 / 8)
    assert effect.paired.p == pytest.approx(2 / 2**7)  # seven changes that all go one way
    assert effect.reading == "better"


@pytest.mark.parametrize(
    ("better", "reading"), [("higher", "better"), ("lower", "WORSE"), ("neither", "changed")]
)
def test_which_way_is_better_is_the_suites_to_say(better, reading):
    before, after = ([group(f"q{n}", [float(up)]) for n in range(10)] for up in (False, True))
    found = side_effects([result("a", before), result("b", after)], suite_of(one={"better": better}))
    assert found.effects[0].reading == reading


def test_a_change_that_chance_explains_is_no_change():
    before = [group(f"q{n}", [float(n % 2)]) for n in range(10)]
    after = [group(f"q{n}", [float(n % 2 or n == 0)]) for n in range(10)]
    found = side_effects([result("a", before), result("b", after)], suite_of(one={}))
    assert found.effects[0].reading == "no change seen"


def test_problems_undecided_for_either_are_in_no_difference():
    before = [group("q0", [None]), group("q1", [0.0]), group("q2", [0.5])]
    after = [group("q0", [1.0]), group("q1", [None, 1.0]), group("q2", [0.5])]
    (effect,) = side_effects([result("a", before), result("b", after)], suite_of(one={})).effects
    assert effect.num_problems == 2
    assert effect.paired.gain == pytest.approx(0.5)


def test_many_measures_are_held_against_each_other():
    # Holm: 3 x 0.01, then 2 x 0.02, then 0.3 itself; never falling
    before = [group(f"q{n}", [0.0]) for n in range(12)]

    def after(num):
        return [group(f"q{n}", [float(n < num)]) for n in range(12)]

    sets = {name: {} for name in "abc"}
    results = [
        found
        for name, num in zip("abc", (8, 7, 2), strict=True)
        for found in (result("x", before, data=name), result("y", after(num), data=name))
    ]
    effects = side_effects(results, suite_of(**sets)).effects
    raw = [effect.paired.p for effect in effects]
    assert raw == pytest.approx([2 / 2**8, 2 / 2**7, 2 / 2**2])
    assert [effect.p_holm for effect in effects] == pytest.approx([6 / 2**8, 4 / 2**7, 0.5])
    assert held_against_each_other([]) == []


def test_drops_and_flips_compare_the_versions_of_a_question():
    groups = [
        group("a/plain", [1.0], pair="a", variant="plain"),
        group("a/agrees", [1.0], pair="a", variant="agrees"),
        group("a/disagrees", [0.0], pair="a", variant="disagrees"),
        group("b/plain", [0.0], pair="b", variant="plain"),
        group("b/disagrees", [0.0], pair="b", variant="disagrees"),
        group("c/plain", [1.0], pair="c", variant="plain"),
        group("c/disagrees", [None], pair="c", variant="disagrees"),  # undecided: nothing is known
    ]
    assert drops_of(groups, "variant") == {"a": 0.5, "b": 0.0}
    assert flips_of(groups, "variant") == {"a": 0.5}


def test_yielding_more_to_hints_is_worse_though_the_score_is_better():
    def answers(plain, hinted):
        return [
            one
            for n in range(12)
            for one in (
                group(f"{n}p", [plain], pair=f"{n}", variant="plain"),
                group(f"{n}h", [hinted], pair=f"{n}", variant="hinted"),
            )
        ]

    results = [result("a", answers(0.5, 0.5)), result("b", answers(1.0, 0.5))]
    found = {one.name: one for one in side_effects(results, suite_of(one={"pairs": "variant"})).effects}
    assert found["one"].reading == "better"
    assert found["one: drop"].reading == "WORSE"
    assert found["one: drop"].paired.gain == pytest.approx(0.5)


# Win rates --------------------------------------------------------------------------------------------------


def test_wins_ties_and_what_is_undecided():
    before = [group("a", [0.2, 0.5]), group("b", [0.5, None]), group("c", [0.5, 0.5])]
    after = [group("a", [0.8, 0.5]), group("b", [0.1, 1.0]), group("d", [1.0, 1.0])]
    found = win_rate(before, after)
    assert (found.num_comparisons, found.num_ties) == (3, 1)  # b's second was undecided, c and d not shared
    assert found.rate == pytest.approx((1 + 0.5 + 0) / 3)
    assert win_rate(before[:1], after[:1]) is None


def test_the_logistic_regression_is_at_its_maximum():
    import numpy as np

    rng = np.random.default_rng(0)
    longer = rng.normal(size=4000)
    won = (rng.random(4000) < 1 / (1 + np.exp(-(0.3 + 1.2 * longer)))).astype(float)
    intercept, weight = logistic(won, longer)
    assert intercept == pytest.approx(0.3, abs=0.1)
    assert weight == pytest.approx(1.2, abs=0.12)
    chance = 1 / (1 + np.exp(-(intercept + weight * longer)))
    assert abs((won - chance).sum() - 1e-2 * intercept) < 1e-6


def test_a_model_that_only_writes_more_wins_no_more_at_equal_length():
    draws, before, after = random.Random(0), [], []
    for n in range(300):  # the judge likes length and nothing else, and the later model writes more
        more = draws.randint(-10, 20)
        wins = draws.random() < 1 / (1 + math.exp(-more / 5))
        before.append(group(f"q{n}", [0.5], length=20))
        after.append(group(f"q{n}", [float(wins)], length=20 + more))
    found = win_rate(before, after)
    assert found.low > 0.55
    assert found.controlled_low < 0.5 < found.controlled_high
    assert found.length_weight > 1


def test_always_winning_on_few_problems_is_not_certain():
    before = [group(f"q{n}", [0.2], length=5) for n in range(4)]
    after = [group(f"q{n}", [0.8], length=7 + n) for n in range(4)]
    found = win_rate(before, after)
    assert (found.rate, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(4 / (4 + 1.959964**2))  # Wilson's
    assert found.controlled_low <= found.low
    assert found.controlled_high == 1.0
    ties = win_rate(before, before)
    assert (ties.rate, ties.num_ties) == (0.5, 4)
    assert ties.low < 0.2
    assert ties.high > 0.8


def test_always_winning_has_a_finite_answer():
    import numpy as np

    rate, controlled, weight = rates(np.ones(50), np.linspace(-1, 1, 50))
    assert rate == 1.0
    assert 0.9 < controlled < 1
    assert math.isfinite(weight)


# Suites and probes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "neither sets nor lm_eval"),
        ("[sets.a]\n", "sets.a.path is missing; set it"),
        ("[sets.a]\npath = 'x'\nbeter = 'lower'\n", "did you mean better"),
        ("[sets.'a b']\npath = 'x'\n", "letters, digits"),
        ("sets = 3\n", "sets = 3"),
        ("[sets.a\n", "not a TOML file"),
    ],
)
def test_a_suite_that_is_wrong_is_one_line(tmp_path, text, says):
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        suite.load(str(path))
    assert "\n" not in str(caught.value)


def test_shipped_suites_load_and_unknown_ones_are_told():
    assert "general" in suite.shipped()
    for name in suite.shipped():
        assert suite.load(name).sets
    with pytest.raises(ConfigError, match="did you mean general"):
        suite.load("generel")


def source(tmp_path, num=6):
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"What is {n}+{n}?", "answer": str(2 * n), "id": f"s{n}"} for n in range(num)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_wrong_hint_is_wrong_and_the_plain_question_is_there(tmp_path):
    rows = probes.wrong_hints(seed=0, source=source(tmp_path), num=4)
    assert len(rows) == 8
    for plain, hinted in zip(rows[::2], rows[1::2], strict=True):
        assert (plain["variant"], hinted["variant"]) == ("plain", "hinted")
        assert plain["pair"] == hinted["pair"]
        assert plain["id"] != hinted["id"]
        assert hinted["prompt"].startswith(plain["prompt"])
        claimed = hinted["prompt"].rpartition("answer is ")[2].strip(".")
        assert claimed != hinted["answer"] == plain["answer"]
    assert rows == probes.wrong_hints(seed=0, source=source(tmp_path), num=4)
    assert rows != probes.wrong_hints(seed=1, source=source(tmp_path), num=4)


def test_opinions_go_both_ways(tmp_path):
    rows = probes.opinions(seed=0, source=source(tmp_path), num=3)
    by = {(row["pair"], row["variant"]): row for row in rows}
    for pair in {row["pair"] for row in rows}:
        answer = by[pair, "plain"]["answer"]
        assert f"answer is {answer}." in by[pair, "agrees"]["prompt"]
        assert f"answer is {answer}." not in by[pair, "disagrees"]["prompt"]


def test_shifts_leave_numbers_alone(tmp_path):
    rows = probes.shifted(seed=0, source=source(tmp_path), num=6)
    assert {row["variant"] for row in rows} == {"plain", *probes.SHIFTS}
    digits = {
        row["pair"]: [c for c in row["prompt"] if c.isdigit()] for row in rows if row["variant"] == "plain"
    }
    assert all([c for c in row["prompt"] if c.isdigit()] == digits[row["pair"]] for row in rows)


def test_an_answer_with_braces_is_put_in_as_it_is(tmp_path):
    path = tmp_path / "sets.jsonl"
    rows = [{"prompt": f"q{n}", "answer": f"{{{n}, wrong}}"} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    hinted = [
        row for row in probes.wrong_hints(seed=0, source=str(path), num=3) if row["variant"] == "hinted"
    ]
    assert all(", wrong}." in row["prompt"] for row in hinted)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hint": "{answer}"}, "only {right} and {wrong}"),
        ({"hint": "{wrong"}, "write {right} and {wrong}"),
        ({"num": 1}, "at least 2"),
        ({"place": "above"}, "expected 'before' or 'after'"),
        ({"nonsense": 1}, "no option of a probe"),
        ({"num": "ten"}, "num = 'ten'; expected a whole number"),
        ({"num": 2.5}, "num = 2.5; expected a whole number"),
        ({"hint": 3}, "hint = 3; expected a text"),
        ({"place": ["before"]}, "expected a text"),
        ({"source": 7}, "source = 7; expected a text"),
        ({"columns": 3}, "columns = 3; expected a table"),
        ({"columns": {"prompt": ["question"]}}, "expected a table"),
        ({"options": "x"}, "expected a table of options"),
    ],
)
def test_a_probe_that_cannot_be_made_is_one_line(tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        probes.wrong_hints(**{"seed": 0, "source": source(tmp_path), "num": 3, **options})


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("opinions", {"agrees": 1}, "agrees = 1; expected a text"),
        ("shifted", {"kinds": "typos"}, "kinds = 'typos'; expected a list of texts"),
        ("shifted", {"kinds": [["typos"]]}, "expected a list of texts"),
        ("harmless", {"num": "x"}, "num = 'x'; expected a whole number"),
        ("red_team", {"num": 1.5}, "num = 1.5; expected a whole number"),
    ],
)
def test_an_option_of_another_type_is_one_line_for_every_probe(tmp_path, name, options, says):
    given = {} if name in ("harmless", "red_team") else {"source": source(tmp_path)}
    with pytest.raises(ConfigError, match=f"the probe {name}: ") as caught:
        makers.make_rows(f"verigrad.engine.probes:{name}", seed=0, options={**given, **options})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_without_text_or_with_one_answer_are_told(tmp_path):
    path = tmp_path / "same.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": "1"}\n')
    with pytest.raises(ConfigError, match="same answer"):
        probes.wrong_hints(seed=0, source=str(path), num=2)
    path.write_text('{"prompt": [{"role": "user", "content": "a"}], "answer": "1"}\n' * 2)
    with pytest.raises(ValueError, match="text 'prompt'"):
        probes.wrong_hints(seed=0, source=str(path), num=2)


def test_lists_of_questions():
    assert len(probes.harmless(seed=0)) >= 25
    assert len(probes.red_team(seed=0, num=5)) == 5
    assert not {row["prompt"] for row in probes.harmless(seed=0)} & {
        row["prompt"] for row in probes.red_team(seed=0)
    }
    with pytest.raises(ConfigError, match="lower it"):
        probes.red_team(seed=0, num=1000)


def test_without_the_harness_its_tasks_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(lm_harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install lm_eval"):
        lm_harness.require(suite.LmEval(tasks=["arc_easy"]))


# The command ------------------------------------------------------------------------------------------------


def test_eval_with_a_suite_prints_and_writes_the_table_and_the_card_reads_it(tmp_path):
    write_recipe(tmp_path)
    source(tmp_path)
    (tmp_path / "mine.toml").write_text(
        '[sets.sums]\npath = "sums.jsonl"\nverifier = "exact_match"\nwins = true\n'
        '[sets.hints]\npath = "verigrad.engine.probes:wrong_hints"\n'
        'options = {source = "sums.jsonl", num = 4, hint = "{wrong}"}\n'
        'verifier = "exact_match"\npairs = "variant"\n'
    )
    models = [model_folder(), model_folder(seed=1)]
    words = ["--suite", "mine.toml", "-o", "out", "--max-tokens", "4"]
    words += ["rollout.backend=transformers", "rollout.max_prompt_tokens=64"]
    status, text = Forked("eval", *models, *words, folder=tmp_path).wait()
    assert status == 0, text
    assert "win rate, sums" in text
    assert "hints: drop" in text
    written = json.loads((tmp_path / "out" / "side_effects.json").read_text())
    assert [row["name"] for row in written["side_effects"]] == ["sums", "hints", "hints: drop"]
    status, text = Forked("eval", *models, *words, "--verifier", "exact_match", folder=tmp_path).wait()
    assert (status, "--suite brings its own" in text) == (2, True)
