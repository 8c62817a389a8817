"""Verdicts taken from memory: only what is fit for it, only for the very same question, never a loophole."""

import pytest

from verigrad.verifiers import registry
from verigrad.verifiers.base import Attempt, Problem, Verdict
from verigrad.verifiers.isolation import VerifierPool
from verigrad.verifiers.verdict_cache import VerdictCache, cacheable, repeatable

COUNTING = '''
import os, pathlib, time
from verigrad.verifiers.base import Verdict, verifier

def called(text, meta):
    """A line in the log for every call; returns how many there were."""
    with open(meta["log"], "a") as file:
        file.write(text + "\\n")
    return len(pathlib.Path(meta["log"]).read_text().splitlines())

@verifier("counting", version="3", deadline_s=5.0, canary={"response": "right", "answer": None})
def counting(text, answer, meta, strict=False):
    """Does what the text says, after a moment, and counts its calls."""
    if "log" not in meta:
        return True
    time.sleep(0.05)
    number = called(text, meta)
    if text == "undecided":
        return None
    if text == "raise":
        raise OSError("the disk is gone")
    if text == "unparseable":
        return Verdict.wrong("no answer", outcome="unparseable")
    if text == "partial":
        return Verdict(0.5, "partial", parts={"a": 0.5}, extracted="half", reason=str(number))
    if text == "flaky":
        return None if number == 1 else True
    return text == meta.get("wanted", "right")

@verifier("sleeper", deadline_s=0.5, canary={"response": "known", "answer": None})
def sleeper(text, meta):
    """Never done in time."""
    if text == "known":
        return True
    called(text, meta)
    time.sleep(60)

@verifier("placed", deadline_s=5.0)
def placed(text, meta, index):
    """Looks at its place."""
    return called(text, meta) > 0 and index == 0

@verifier("seeded", deadline_s=5.0)
def seeded(text, meta, seed):
    """Looks at the seed."""
    return called(text, meta) > 0

@verifier("moody", deadline_s=5.0, cache=False)
def moody(text, meta):
    """Says itself that it is no function of what it sees."""
    return called(text, meta) % 2 == 1

@verifier("siblings", deadline_s=5.0)
def siblings(texts, metas):
    """Sees the group."""
    return [called(text, meta) > 0 for text, meta in zip(texts, metas)]

@verifier("inline", runs="inline")
def inline(text):
    """As cheap as a look into the cache."""
    return True

@verifier("control", control=True)
def control(text):
    """Knows nothing."""
    return True

@verifier("told", cache=True)
def told(text, index):
    """Asks for its place and does not judge by it."""
    return True
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "counting.py"
    path.write_text(COUNTING)
    return path


@pytest.fixture
def pool(plugin, request):
    def build(name="counting", **settings):
        built = VerifierPool(f"{plugin}:{name}", **{"num_workers": 1, "cache": True, **settings})
        request.addfinalizer(built.close)
        return built

    return build


@pytest.fixture
def problem(tmp_path):
    def build(*, prompt="?", answer=None, name="p", **meta):
        return Problem(name, prompt, answer, {"log": str(tmp_path / "calls"), **meta})

    return build


@pytest.fixture
def calls(tmp_path):
    return lambda: (tmp_path / "calls").read_text().splitlines()


def judge(pool, problem, *texts):
    return pool.submit(problem, [Attempt(text) for text in texts]).result(60)


def test_right_wrong_and_partial_are_remembered_whole(pool, problem, calls):
    one = pool()
    first = judge(one, problem(), "right", "wrong", "partial")
    again = judge(one, problem(), "partial", "right", "wrong")
    assert [verdict.outcome for verdict in again] == ["partial", "right", "wrong"]
    assert (again[0].reward, again[0].parts, again[0].extracted) == (0.5, {"a": 0.5}, "half")
    assert again[0].reason == first[2].reason
    assert again[0].seconds == 0.0 < first[2].seconds
    assert calls() == ["right", "wrong", "partial"]
    assert one.take_stats().metrics()["cache_hit_frac"] == 0.5


@pytest.mark.parametrize("text", ["undecided", "raise", "unparseable"])
def test_nothing_else_is_remembered(pool, problem, calls, text):
    one = pool()
    judge(one, problem(), text)
    judge(one, problem(), text)
    assert calls() == [text, text]


def test_a_timeout_is_not_remembered(pool, problem, calls):
    one = pool("sleeper")
    assert [judge(one, problem(), "slow")[0].outcome for _ in range(2)] == ["timeout", "timeout"]
    assert len(calls()) == 4  # each is tried twice


def test_an_undecided_check_is_asked_again_and_then_decided(pool, problem):
    one = pool()
    assert judge(one, problem(), "flaky")[0].outcome == "error"
    assert judge(one, problem(), "flaky")[0].outcome == "right"


def test_equal_attempts_of_one_batch_are_judged_once(pool, problem, calls):
    verdicts = judge(pool(num_workers=2), problem(), *["right"] * 12, "wrong")
    assert [verdict.reward for verdict in verdicts] == [1.0] * 12 + [0.0]
    assert sorted(calls()) == ["right", "wrong"]


def test_what_waited_for_an_undecided_one_is_judged_by_itself(pool, problem, calls):
    verdicts = judge(pool(), problem(), *["flaky"] * 4)
    assert [verdict.outcome for verdict in verdicts] == ["error", "right", "right", "right"]
    assert len(calls()) == 4


@pytest.mark.parametrize(
    "change", [{"wanted": "wrong"}, {"prompt": "another?"}, {"answer": 5}, {"name": "q"}, {"more": 1}]
)
def test_the_same_text_about_anything_else_is_judged_anew(pool, problem, calls, change):
    one = pool()
    assert judge(one, problem(), "wrong")[0].outcome == "wrong"
    judge(one, problem(**change), "wrong")
    assert calls() == ["wrong", "wrong"]


def test_two_problems_of_one_name_do_not_share_verdicts(pool, problem):
    one = pool()
    assert judge(one, problem(wanted="right"), "right")[0].outcome == "right"
    assert judge(one, problem(wanted="other"), "right")[0].outcome == "wrong"


def test_numbers_and_their_text_are_different_answers(plugin):
    loaded = registry.load(f"{plugin}:counting")
    cache = VerdictCache(loaded, {}, seed=0)
    problems = [{"answer": answer} for answer in (5, "5", 5.0, True, None, [5], {"5": 5})]
    assert len({cache.keys(problem, [Attempt("x")])[0] for problem in problems}) == len(problems)


def test_every_part_of_the_key_counts(plugin):
    loaded, other = registry.load(f"{plugin}:counting"), registry.load(f"{plugin}:placed")
    strict = registry.load(f"{plugin}:counting", {"strict": True})
    row = {"id": "p", "prompt": "?", "answer": None, "meta": {}}
    keys = [
        VerdictCache(verifier, options, seed=seed).keys(row, [attempt])[0]
        for verifier, options, seed, attempt in [
            (loaded, {}, 0, Attempt("x")),
            (loaded, {}, 0, Attempt("x", truncated=True)),
            (loaded, {}, 0, Attempt("xcut")),
            (loaded, {}, 0, Attempt("\ud800")),
            (loaded, {}, 0, Attempt("?")),
            (loaded, {}, 1, Attempt("x")),
            (strict, {"strict": True}, 0, Attempt("x")),
            (other, {}, 0, Attempt("x")),
        ]
    ]
    assert len(set(keys)) == len(keys)
    assert None not in keys


def test_attempts_of_agents_are_never_remembered(plugin):
    cache = VerdictCache(registry.load(f"{plugin}:counting"), {}, seed=0)
    agents = [Attempt("x", transcript=[{"role": "user", "content": "?"}]), Attempt("x", snapshot=b"")]
    assert cache.keys({"id": "p"}, agents) == [None, None]


@pytest.mark.parametrize("name", ["placed", "seeded", "moody", "siblings"])
def test_verifiers_that_see_more_than_the_text_are_always_asked(pool, problem, calls, name):
    one = pool(name)
    judge(one, problem(), "x", "x")
    judge(one, problem(), "x", "x")
    assert len(calls()) == 4


def test_who_is_remembered(plugin):
    def load(name):
        return registry.load(f"{plugin}:{name}")

    assert cacheable(load("counting"))
    assert cacheable(load("told"))
    assert not cacheable(load("control"))
    assert repeatable(load("inline"))
    assert not cacheable(load("inline"))
    assert not cacheable(registry.load("random"))
    assert cacheable(registry.load("math_answer"))
    right = {"verifier": f"{plugin}:counting"}
    assert cacheable(registry.load("combine", {"parts": {"a": right}}))
    assert not repeatable(registry.load("combine", {"parts": {"a": right, "b": {"verifier": "random"}}}))


def test_without_the_setting_everything_is_judged(pool, problem, calls):
    judge(pool(cache=False), problem(), *["right"] * 3)
    assert calls() == ["right"] * 3


def test_the_oldest_verdicts_make_room(plugin):
    cache = VerdictCache(registry.load(f"{plugin}:counting"), {}, seed=0, max_entries=2)
    cache.put(b"a", Verdict.right())
    cache.put(b"b", Verdict.right())
    assert cache.get(b"a") is not None
    cache.put(b"c", Verdict.right())
    assert (cache.get(b"b"), len(cache)) == (None, 2)
    assert not cache.put(b"d", Verdict.right("x" * 10**6))


def test_a_pool_that_is_closed_leaves_no_follower_waiting(pool, problem):
    one = pool()
    futures = [one.submit(problem(), [Attempt("right")] * 3) for _ in range(50)]
    one.close()
    assert all(future.done() for future in futures)
