"""combine: sums and gates by hand, whom an undecided part stops, and a canary that a model cannot write."""

# ruff: noqa: E501 - a table is read by columns

import itertools
import json

import pyarrow.parquet
import pytest

from verigrad.sandboxes.base import SandboxLost
from verigrad.verifiers import registry
from verigrad.verifiers.base import Attempt, Problem, Verdict, verifier
from verigrad.verifiers.binding import bind
from verigrad.verifiers.combine import KNOWN, Combine
from verigrad.verifiers.isolation import VerifierPool

FORMAT = {"verifier": "answer_format", "weight": 0.2}
RIGHT = {"verifier": "exact_match", "weight": 0.8}
BOTH = {"format": FORMAT, "right": {**RIGHT, "gate": True}}
GOOD = "<think>6 * 7</think><answer>42</answer>"


# Plug-ins, which the tests below load by this file's path.
@verifier("says", runs="inline", deadline_s=3.0)
def says(text: str, reward: float = 1.0, outcome: str = "", extracted: str = "") -> Verdict:
    """Whatever it is told to say."""
    return Verdict(
        reward, outcome or ("right" if reward == 1 else "partial"), reason=text, extracted=extracted
    )


@verifier("first", runs="inline")
def first(text: str) -> Verdict:
    """The first of two (reward, outcome) in the text."""
    return Verdict(*json.loads(text)[0])


@verifier("second", runs="inline")
def second(text: str) -> Verdict:
    """The second of two (reward, outcome) in the text."""
    return Verdict(*json.loads(text)[1])


@verifier("breaks", runs="inline", deadline_s=1.0)
def breaks(text: str) -> bool:
    """Raises."""
    return {}[text]


@verifier("silent", runs="inline", deadline_s=1.0)
def silent(text: str) -> None:
    """Never decides."""


@verifier("memory", runs="inline")
def memory(text: str) -> bool:
    """Runs out of memory."""
    raise MemoryError


@verifier("shortest", deadline_s=2.0, canary={"response": "x", "answer": None})
def shortest(texts: list[str]) -> list[float]:
    """Right for the shortest of a group."""
    return [float(len(text) == min(map(len, texts))) for text in texts]


@verifier("boxed", runs="sandbox")
def boxed(sandbox: object) -> bool:
    """Wants the world."""
    return sandbox is not None


class Box:
    """A sandbox with nothing in it but a list of what was done to it."""

    def __init__(self):
        self.done = []

    def reset(self):
        self.done.append("reset")

    def load(self, archive):
        self.done.append(archive)


@verifier("writes", runs="sandbox", canary={"response": "ok", "answer": None})
def writes(sandbox: Box, text: str) -> bool:
    """Leaves something behind; right in a box where nobody else has."""
    clean = "written" not in sandbox.done or "reset" in sandbox.done[sandbox.done.index("written") :]
    sandbox.done.append("written")
    return clean


@verifier("loses", runs="sandbox")
def loses(sandbox: object) -> bool:
    """Its sandbox dies."""
    raise SandboxLost("gone")


@verifier("in_worker", deadline_s=0.5, canary={"response": "ok", "answer": None})
def in_worker(text: str) -> bool:
    """Sleeps when told to."""
    if "sleep" in text:
        import time

        time.sleep(60)
    return text == "ok"


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    """Looking through the installed packages takes a moment for each part."""
    monkeypatch.setattr(registry, "installed", dict)


def here(name):
    return f"{__file__}:{name}"


def part(name, **more):
    return {"verifier": here(name), **more}


def load(parts, **options):
    return registry.load("combine", {"parts": parts, **options})


def judge(parts, text=GOOD, *, answer="42", meta=None, **options):
    (verdict,) = load(parts, **options).judge(Problem("p", "?", answer, meta or {}), [Attempt(text)])
    return verdict


def told(*rewards, **settings):
    """Parts a, b, ... that say these rewards."""
    return {
        name: part("says", options={"reward": reward}, **settings.get(name, {}))
        for name, reward in zip("abcdef", rewards, strict=False)
    }


def gated(which, **weights):
    return {name: {"gate": name in which, "weight": weights.get(name, 1.0)} for name in "abcdef"}


@pytest.mark.parametrize(
    ("rewards", "gates", "weights", "total", "outcome"),
    [
        ((1.0,), "", {}, 1.0, "right"),
        ((0.0,), "", {}, 0.0, "wrong"),
        ((0.5,), "", {}, 0.5, "partial"),
        ((1.0, 1.0), "", {"a": 0.2, "b": 0.8}, 1.0, "right"),
        ((1.0, 0.0), "", {"a": 0.2, "b": 0.8}, 0.2, "partial"),
        ((0.0, 1.0), "", {"a": 0.2, "b": 0.8}, 0.8, "partial"),
        ((0.5, 0.5), "", {"a": 0.2, "b": 0.8}, 0.5, "partial"),
        ((1.0, 1.0, 1.0), "", {"a": 0.1, "b": 0.2, "c": 0.7}, 1.0, "right"),
        ((1.0, 1.0), "", {"a": 2.0, "b": 3.0}, 5.0, "right"),
        ((1.0, 0.0), "b", {"a": 0.2, "b": 0.8}, 0.0, "wrong"),
        ((1.0, 0.99), "b", {"a": 0.2, "b": 0.8}, 0.0, "wrong"),  # a gate is passed or not
        ((0.0, 1.0), "b", {"a": 0.2, "b": 0.8}, 0.8, "partial"),
        ((1.0, 1.0), "b", {"a": 0.2, "b": 0.8}, 1.0, "right"),
        ((1.0, 1.0), "ab", {"a": 0.2, "b": 0.8}, 1.0, "right"),
        ((1.0, 0.0), "ab", {}, 0.0, "wrong"),
        ((0.0, 1.0), "ab", {}, 0.0, "wrong"),
        ((1.0, 0.0), "b", {"b": 0.0}, 0.0, "wrong"),  # a gate may weigh nothing
        ((1.0, 1.0), "b", {"b": 0.0}, 1.0, "right"),
        ((0.5, 1.0), "b", {"b": 0.0}, 0.5, "partial"),
        ((1.0, 0.0), "", {"b": 0.0}, 1.0, "right"),  # only recorded
        ((1.0, -1.0), "", {"b": 0.5}, 0.5, "partial"),
        ((0.0, -1.0), "", {"b": 0.5}, -0.5, "wrong"),
        ((0.0, -1.0), "a", {"b": 0.5}, -0.5, "wrong"),  # a closed gate is no way around a penalty
        ((0.0, 1.0, -0.5), "a", {}, 0.0, "wrong"),
        ((2.0,), "", {}, 2.0, "partial"),  # a plug-in that pays more than 1 and does not call it right
        ((0.1,) * 3, "", {}, 0.3, "partial"),
    ],
)
def test_sums_and_gates(rewards, gates, weights, total, outcome):
    verdict = judge(told(*rewards, **gated(gates, **weights)))
    assert verdict.reward == pytest.approx(total)
    assert verdict.outcome == outcome
    assert list(verdict.parts.values()) == list(rewards), "every part is recorded as it was paid"


@pytest.mark.parametrize(
    ("rewards", "gates", "total", "outcome"),
    [
        ((0.5,), "a", 0.0, "wrong"),  # what closes its gate is not right, whatever it says
        ((0.5,), "", 0.5, "partial"),
        ((0.0,), "", 0.0, "wrong"),
        ((1.0, 0.5), "b", 0.0, "wrong"),
        ((1.0, 0.0), "", 1.0, "partial"),
        ((0.5, 1.5), "", 2.0, "right"),
        ((-1.0, 1.0), "a", 0.0, "wrong"),
        ((-2.0, 1.0), "a", -1.0, "wrong"),
    ],
)
def test_parts_that_all_say_right_are_right_only_for_the_whole_reward(rewards, gates, total, outcome):
    parts = told(*rewards, **gated(gates))
    for given in parts.values():
        given["options"]["outcome"] = "right"
    verdict = judge(parts)
    assert (verdict.reward, verdict.outcome) == (total, outcome)


SAYS = [
    (None, "error"), (-1.0, "wrong"), (-1.0, "right"), (0.0, "wrong"), (0.0, "right"), (0.0, "unparseable"), (0.0, "timeout"),
    (0.5, "partial"), (0.5, "right"), (1.0, "right"), (1.0, "partial"), (2.0, "right"), (2.0, "wrong"),
]  # fmt: skip


def test_the_outcome_fits_the_reward_for_every_pair_of_parts():
    settings = list(itertools.product((0.0, 0.5, 1.0), (False, True)))  # weight, gate
    for setting in itertools.product(settings, repeat=2):
        weights, gates = zip(*setting, strict=True)
        if not any(weights):
            continue
        names = ("first", "second")
        both = Combine({n: part(n, weight=w, gate=g) for n, (w, g) in zip(names, setting, strict=True)})
        for said in itertools.product(SAYS, repeat=2):
            verdict = both.verify(Problem("p", "?"), Attempt(json.dumps(said)), 0, 0)
            case = (setting, said, verdict)
            counts = [bool(w or g) for w, g in setting]
            if any(c and reward is None for c, (reward, _) in zip(counts, said, strict=True)):
                assert (verdict.reward, verdict.outcome) == (None, "error"), case
                continue
            paid = [reward or 0.0 for reward, _ in said]
            total = weights[0] * paid[0] + weights[1] * paid[1]
            closed = any(g and reward < 1 for g, reward in zip(gates, paid, strict=True))
            assert verdict.reward == (min(total, 0.0) if closed else total), case
            if verdict.outcome == "right":
                assert verdict.reward >= sum(weights) > 0, case
                assert not closed, case
                assert all(o == "right" for c, (_, o) in zip(counts, said, strict=True) if c), case
            else:
                assert (verdict.outcome == "partial") == (verdict.reward > 0), case
                full = not closed and total >= sum(weights)
                assert not full or any(o != "right" for c, (_, o) in zip(counts, said, strict=True) if c), (
                    case
                )


@pytest.mark.parametrize(
    ("text", "reward", "outcome", "parts"),
    [
        (GOOD, 0.0, "wrong", {"format": 1.0, "right": 0.0}),  # exact_match wants the bare text
        ("<think>6 * 7</think>42", 0.8, "partial", {"format": 0.0, "right": 1.0}),
        ("43", 0.0, "wrong", {"format": 0.0, "right": 0.0}),
        ("", 0.0, "unparseable", {"format": 0.0, "right": 0.0}),
    ],
)
def test_two_built_in_parts(text, reward, outcome, parts):
    verdict = judge(BOTH, text)
    assert (verdict.reward, verdict.outcome, dict(verdict.parts)) == (reward, outcome, parts)


def test_part_options_and_columns_arrive():
    parts = {
        "number": {"verifier": "countdown", "weight": 1, "gate": True, "options": {"use_all": False}},
        "short": {"verifier": "length_budget", "weight": 0.5, "options": {"slope": 0.1}},
    }
    meta = {"nums": [6, 7, 9], "target": 42, "budget": 8}
    verdict = judge(parts, "<answer>6*7</answer>", meta=meta)
    assert (verdict.reward, verdict.outcome, verdict.extracted) == (1.5, "right", "6*7")
    with pytest.raises(
        ValueError, match=r"part 'number': .*needs 'nums'.*options\.parts\.number\.options\.nums"
    ):
        load(parts).check_row(Problem("p", "?", 42, {"budget": 8}))


@pytest.mark.parametrize(
    ("settings", "decided"),
    [({"weight": 0.1}, False), ({"weight": 0, "gate": True}, False), ({"weight": 0}, True)],
)
def test_an_undecided_part_that_counts_leaves_the_whole_undecided(settings, decided):
    verdict = judge({"a": part("says"), "b": part("silent", **settings)})
    assert (verdict.reward is not None) == decided
    assert dict(verdict.parts) == {"a": 1.0}
    assert decided or verdict.reason.startswith("b is undecided")


def test_an_undecided_part_counts_even_behind_a_closed_gate():
    parts = {"a": part("says", options={"reward": 0.0}, gate=True), "b": part("silent")}
    assert judge(parts).reward is None


def test_a_part_that_raises_is_named_and_never_a_zero():
    with pytest.raises(RuntimeError, match="part 'b' raised KeyError"):
        judge({"a": part("says"), "b": part("breaks")})
    verdict = judge({"a": part("says"), "b": part("breaks", weight=0)})
    assert (verdict.reward, dict(verdict.parts)) == (1.0, {"a": 1.0})
    assert "KeyError" in verdict.reason
    with pytest.raises(MemoryError):  # the worker ends on it, and must see it as it is
        judge({"a": part("says"), "b": part("memory", weight=0)})


@pytest.mark.parametrize(
    ("gate", "answer_from", "extracted"),
    [("", "", "x"), ("b", "", "y"), ("", "b", "y"), ("b", "a", "x"), ("", "c", "")],
)  # fmt: skip
def test_the_answer_read_is_that_of_the_gate_or_of_the_part_named(gate, answer_from, extracted):
    parts = {
        "c": part("says"),
        "a": part("says", options={"extracted": "x"}),
        "b": part("says", options={"extracted": "y"}, gate=gate == "b"),
    }
    assert judge(parts, answer_from=answer_from).extracted == extracted


def test_the_reason_is_one_short_line():
    many = {f"part {n}": part("says", options={"reward": 0.5}) for n in range(20)}
    verdict = judge(many, "line\n" * 5000)
    assert "\n" not in verdict.reason
    assert len(verdict.reason) <= 500
    assert len(verdict.parts) == 20


def test_a_combine_may_be_a_part():
    inner = {"verifier": "combine", "weight": 2.0, "options": {"parts": told(1.0, 0.0)}}
    assert judge({"inner": inner, "a": part("says")}).reward == 3.0


def test_a_group_verifier_sees_its_group():
    loaded = load({"a": part("says", weight=0.5), "short": part("shortest", weight=0.5)})
    assert loaded.group
    verdicts = loaded.judge(Problem("p", "?"), [Attempt("abc"), Attempt("a"), Attempt("ab")])
    assert [verdict.reward for verdict in verdicts] == [0.5, 1.0, 0.5]
    assert [dict(verdict.parts)["short"] for verdict in verdicts] == [0.0, 1.0, 0.0]


def test_deadlines_add_up_and_all_parts_are_warmed_up():
    assert load({"a": part("says"), "b": part("in_worker")}).policy.deadline_s == 3.5
    assert load({"a": part("says"), "b": part("shortest")}).policy.deadline_s == 16 * 3.0 + 2.0
    assert load({"a": part("says")}).policy.warm_up is None
    assert load({"a": {"verifier": "math_answer"}}).policy.warm_up is not None
    assert load({"a": part("says"), "b": {"verifier": "repetition"}}).policy.version == "1; a 0, b 1"


def test_it_runs_where_its_parts_must():
    assert load({"a": part("says")}).policy.runs == "inline"
    assert load({"a": part("says"), "b": part("in_worker")}).policy.runs == "worker"
    assert load({"a": part("in_worker"), "b": part("boxed")}).policy.runs == "sandbox"
    assert load({"a": part("boxed"), "b": part("boxed")}).policy.runs == "sandbox"
    with pytest.raises(ValueError, match=r"'b' runs in a sandbox.* 'a' judges whole groups"):
        load({"a": part("shortest"), "b": part("boxed")})


def test_a_part_gets_the_sandbox_and_a_lost_one_is_not_the_parts_verdict():
    joint = load({"a": part("says"), "b": part("boxed")})
    problem = Problem("p", "?", "yes", {})
    (verdict,) = joint.judge(problem, [Attempt("yes", sandbox=object())])
    assert verdict.parts["b"] == 1.0
    with pytest.raises(SandboxLost):
        load({"b": part("loses"), "a": part("boxed")}).judge(problem, [Attempt("yes", sandbox=object())])


def test_each_part_that_runs_something_gets_a_clean_sandbox_with_the_attempts_files():
    joint = load({"a": part("writes"), "b": part("says"), "c": part("writes")})
    box = Box()
    (verdict,) = joint.judge(Problem("p", "?"), [Attempt("yes", snapshot=b"files", sandbox=box)])
    assert verdict.reward == 3.0
    assert box.done == ["written", "reset", b"files", "written"]


def test_the_known_cases_of_parts_leave_nothing_to_each_other():
    joint = load({"a": part("writes"), "c": part("writes")})
    known, box = joint.policy.canary, Box()
    problem = Problem("p", "?", known["answer"], known["meta"])
    (verdict,) = joint.judge(problem, [Attempt(known["response"], sandbox=box)])
    assert verdict.reward == 1.0
    assert box.done == ["reset", "written", "reset", "written"]


@pytest.mark.parametrize(
    ("options", "says_"),
    [
        ({}, "parts = None; expected 1 to 20 parts"),
        ({"parts": {}}, "expected 1 to 20 parts"),
        ({"parts": [FORMAT]}, "expected 1 to 20 parts"),
        ({"parts": {str(n): FORMAT for n in range(21)}}, "expected 1 to 20 parts"),
        ({"parts": {"a": "exact_match"}}, "part 'a' is 'exact_match'; expected name = {verifier"),
        ({"parts": {"a": {"weight": 1}}}, "part 'a' is {'weight': 1}; expected"),
        ({"parts": {"a": {**RIGHT, "wieght": 1}}}, "part 'a' has no setting 'wieght'; it has: verifier, weight, gate"),
        ({"parts": {"a": {**RIGHT, "weight": -1}}}, "weight = -1; expected a number of at least 0"),
        ({"parts": {"a": {**RIGHT, "weight": "1"}}}, "weight = '1'"),
        ({"parts": {"a": {**RIGHT, "weight": True}}}, "weight = True"),
        ({"parts": {"a": {**RIGHT, "gate": 1}}}, "gate = 1; expected true or false"),
        ({"parts": {"a": {**RIGHT, "options": ["casefold"]}}}, "expected a table of names and values"),
        ({"parts": {"a": {**RIGHT, "weight": 0}}}, "no part has a weight above 0"),
        ({"parts": {"a": {"verifier": "exact_mach"}}}, "part 'a': verifier 'exact_mach' is not known; did you mean"),
        ({"parts": {"a": {"verifier": "exact_match", "options": {"case": 1}}}}, "part 'a': verifier 'exact_match' has no option"),
        ({"parts": {"a": {"verifier": "repetition", "options": {"n": 0}}}}, "part 'a': repetition: n = 0; expected"),
        ({"parts": {"a": {"verifier": "combine"}}}, "part 'a': combine: parts = None"),
        ({"parts": {"a": RIGHT}, "answer_from": "b"}, "answer_from = 'b' is no part; parts: a"),
        ({"part": {"a": RIGHT}}, "did you mean 'parts'"),
    ],
)  # fmt: skip
def test_bad_options_are_one_clear_line_when_it_is_loaded(options, says_):
    with pytest.raises(ValueError, match="combine") as raised:
        registry.load("combine", options)
    assert says_ in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_canary_asks_every_part_for_its_own_known_case():
    loaded = load(BOTH)
    known = loaded.policy.canary
    row = Problem("canary", "", known["answer"], known["meta"])
    assert loaded.judge(row, [Attempt(known["response"])])[0].reward == 1.0
    broken = load({"ok": RIGHT, "b": {"verifier": here("needs_service")}})
    row = Problem("canary", "", None, broken.policy.canary["meta"])
    assert broken.judge(row, [Attempt(KNOWN)])[0].reward is None
    json.dumps(known)


@verifier("needs_service", runs="inline", canary={"response": "up", "answer": None})
def needs_service(text: str) -> bool:
    """Its known case fails."""
    return False


def test_a_model_that_writes_the_canary_earns_nothing():
    assert judge(BOTH, KNOWN).reward == 0.0
    assert load({"a": part("says")}).policy.canary is None


def test_in_a_worker_a_kill_costs_the_attempt_and_not_its_neighbours():
    options = {"parts": {"a": part("in_worker"), "b": {"verifier": "repetition", "weight": 0.5}}}
    with VerifierPool("combine", options=options, num_workers=1, deadline_s=0.7) as pool:
        late, fine = pool.submit(Problem("p", "?"), [Attempt("sleep"), Attempt("ok")]).result(60)
    assert (late.outcome, late.reward) == ("timeout", 0.0), late.reason
    assert (fine.outcome, fine.reward, fine.parts) == ("right", 1.5, {"a": 1.0, "b": 1.0})


def test_a_class_without_parts_is_still_documented():
    assert bind(Combine, name="combine", source="here", options={"parts": {"a": RIGHT}}).doc


def test_a_run_trains_on_it_and_records_its_parts(tmp_path):
    from tests import tiny  # torch: the rest of this file does without

    recipe = tiny.write_recipe(tmp_path)
    text = recipe.read_text().replace('name = "verifiers_of_tests.py:low_first"', 'name = "combine"')
    tables = """
[verifier.options.parts.early]
verifier = "verifiers_of_tests.py:low_first"
weight = 0.75
gate = true

[verifier.options.parts.varied]
verifier = "repetition"
weight = 0.25
options = {n = 2, mode = "penalty"}
"""
    recipe.write_text(text + tables)
    status, printed = tiny.Forked(
        "train", recipe, "train.num_steps=2", "verifier.audit=off", folder=tmp_path
    ).wait()
    assert status == 0, printed
    rows = pyarrow.parquet.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet").to_pylist()
    assert len(rows) >= 16
    for row in rows:
        parts = json.loads(row["parts"])
        assert set(parts) == {"early", "varied"}
        total = 0.75 * parts["early"] + 0.25 * parts["varied"] if parts["early"] == 1 else 0.0
        assert row["reward"] == pytest.approx(total)
        assert (row["outcome"] == "right") == (total == 1.0)
    assert {json.loads(row["parts"])["early"] for row in rows} == {0.0, 1.0}
