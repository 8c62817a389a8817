"""The monitor step by step: baselines, second reward, limits, the guilty, and what a checkpoint keeps."""

import contextlib
import json
import math
from concurrent.futures import Future
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from tests.tiny import config, rollout, write_recipe
from verigrad.engine import rollout_file, tripped
from verigrad.engine.config import ConfigError, load
from verigrad.engine.monitor import LIMITS, Monitor
from verigrad.engine.schema import VerifiedGroup
from verigrad.engine.scoring import Pending
from verigrad.verifiers.base import Problem, Verdict


class FakeRun:
    """What the monitor asks of a run, without a model."""

    def __init__(self, folder):
        self.folder, self.notes, self.keep_before, self.rolled_back = folder, [], None, []

    def note(self, text):
        self.notes.append(text)

    def timed(self, name):
        return contextlib.nullcontext()

    def roll_back(self, since):
        self.rolled_back.append(since)
        return since - 1 or None


class FakeSecond:
    """A second verifier that pays what `judge` says of a rollout's first sampled token."""

    def __init__(self, judge, *, group=False):
        self.judge, self.asked = judge, []
        self.pool = SimpleNamespace(verifier=SimpleNamespace(group=group))

    def submit(self, arriving):
        self.asked.append(list(arriving))
        return [Pending(position, group, Future()) for position, group in self.asked[-1]]

    def wait(self, pending):
        return [
            VerifiedGroup(
                p.group.problem, p.group.rollouts, [self.judge(r.token_ids[1]) for r in p.group.rollouts]
            )
            for p in pending
        ]

    def take_health(self):
        return {}


def scorer(runs="worker"):
    return SimpleNamespace(pool=SimpleNamespace(verifier=SimpleNamespace(policy=SimpleNamespace(runs=runs))))


def monitor(folder, *, second=None, **settings):
    if second is not None:
        settings = {"verifier": "exact_match", "num_rollouts": 8, **settings}
    cfg = config(monitor=settings)
    return Monitor(cfg, FakeRun(folder), runs_code=False, second=second)


def number(value):
    return Verdict(float(value), "right" if value >= 1 else "wrong")


def groups(*rewards, per_group=2, tokens=()):
    """One problem for every `per_group` rewards; the first sampled token is a number of its own."""
    found = []
    for at in range(0, len(rewards), per_group):
        verdicts = [
            number(r) if r is not None else Verdict.undecided("x") for r in rewards[at : at + per_group]
        ]
        rollouts = [rollout([9], [at + index + 10, *tokens]) for index in range(len(verdicts))]
        found.append(VerifiedGroup(Problem(str(at), "p", "a"), rollouts, verdicts))
    return found


def watch(one, step, given, **metrics):
    """A step as the loop does it: rollouts on disk, a look, training, the measures."""
    path = one.run.folder / "rollouts" / f"step_{step:06d}.parquet"
    rollout_file.write(path, step, given, {})
    one.look(step, given)
    return one.observe(step, given, metrics)


# Baselines -------------------------------------------------------------------------------------------------


def test_entropy_is_a_share_of_the_first_three_steps_that_had_one(tmp_path):
    one = monitor(tmp_path)
    entropies = [2.0, math.nan, 1.0, 3.0, 0.5]
    shares = [
        watch(one, step, groups(1, 0), entropy=value)["monitor/entropy_frac"]
        for step, value in enumerate(entropies, 1)
    ]
    assert shares == pytest.approx([1.0, math.nan, 1 / 1.5, 1.5, 0.25], nan_ok=True)


def test_the_reference_counts_where_there_is_one(tmp_path):
    assert "monitor/kl_ref" not in watch(monitor(tmp_path), 1, groups(1, 0), kl_ref=0.0)
    cfg = config(algorithm={"kl_coef": 0.1})
    with_one = Monitor(cfg, FakeRun(tmp_path), runs_code=False, second=None)
    assert watch(with_one, 1, groups(1, 0), kl_ref=0.7)["monitor/kl_ref"] == 0.7


def test_switched_off_it_says_nothing(tmp_path):
    assert watch(monitor(tmp_path, enabled=False), 1, groups(1, 0)) == {}


# The second reward -----------------------------------------------------------------------------------------


def test_the_gap_is_what_the_reward_gained_more_than_the_second(tmp_path):
    truth = {"now": 0.5}
    one = monitor(
        tmp_path, second=FakeSecond(lambda token: Verdict(truth["now"], "partial")), max_proxy_gap=9
    )
    gaps = []
    for step, (reward, truth["now"]) in enumerate(
        [(0.4, 0.3), (0.5, 0.3), (0.6, 0.3), (0.9, 0.3), (0.9, 0.7), (1.0, 0.1)], 1
    ):
        seen = watch(one, step, groups(*[reward] * 16))
        gaps.append(seen["monitor/proxy_gap"])
        assert (seen["monitor/first_reward"], seen["monitor/second_reward"]) == pytest.approx(
            (reward, truth["now"])
        )
    # first - second of the first three: 0.1, 0.2, 0.3, so 0.2 is where it started
    assert gaps == pytest.approx([math.nan, math.nan, 0.1, 0.4, 0.0, 0.7], nan_ok=True)


def test_the_drop_counts_while_the_reward_has_not_fallen(tmp_path):
    truth = {}
    one = monitor(
        tmp_path, second=FakeSecond(lambda token: Verdict(truth["now"], "partial")), max_proxy_gap=9
    )
    drops = []
    steps = [(0.3, 0.3), (0.3, 0.3), (0.3, 0.3), (0.6, 0.9), (0.6, 0.0), (0.6, 0.0), (0.0, 0.0), (0.0, 0.0)]
    for step, (reward, truth["now"]) in enumerate(steps, 1):
        drops.append(watch(one, step, groups(*[reward] * 16))["monitor/second_drop"])
    # means of three looks: second .3 .5 .4 .3 0 0, reward .3 .4 .5 .6 .4 .2; best (.4, .5) at step 4
    assert drops == pytest.approx([math.nan, math.nan, 0, 0, 0.1, 0.2, 0.5, 0], nan_ok=True)


def test_a_look_is_seeded_every_so_often_and_of_the_decided(tmp_path):
    asked = []
    for _ in range(2):
        second = FakeSecond(lambda token: number(1))
        one = monitor(tmp_path, second=second, every=2)
        rewards = [1, 0, None, 1, 0, 1, 1, None] * 3
        keys = [set(watch(one, step, groups(*rewards))) for step in (1, 2, 3, 4)]
        assert [("monitor/second_reward" in found) for found in keys] == [False, True, False, True]
        asked.append([[r.token_ids[1] for _, group in look for r in group.rollouts] for look in second.asked])
    first, later = asked[0]
    assert asked[0] == asked[1]
    assert first != later
    assert len(set(first)) == 8
    assert all(rewards[token - 10] is not None for token in first + later)


def test_a_verifier_of_whole_groups_is_given_whole_groups(tmp_path):
    second = FakeSecond(lambda token: number(1), group=True)
    one = monitor(tmp_path, second=second)
    seen = watch(one, 1, groups(*[1, None, 0, 0] * 5, per_group=4))
    assert [len(group.rollouts) for _, group in second.asked[0]] == [4, 4]
    assert seen["monitor/first_reward"] == pytest.approx(1 / 3)  # what the first left undecided is no 0


def test_a_second_reward_that_fails_is_no_reward(tmp_path):
    state = {"down": False}
    second = FakeSecond(lambda token: Verdict.undecided("no answer") if state["down"] else number(1))
    one = monitor(tmp_path, second=second)
    for step in (1, 2, 3):
        watch(one, step, groups(*[1] * 16))
    state["down"] = True
    for step in (4, 5, 6, 7):
        seen = watch(one, step, groups(*[1] * 16))
        assert seen["monitor/second_undecided_frac"] == 1
        assert "monitor/proxy_gap" not in seen
    assert one.trip is None
    assert len(one.run.notes) == 1
    assert "8 of 8 undecided; the first reason was: no answer" in one.run.notes[0]
    state["down"] = False
    assert watch(one, 8, groups(*[1] * 16))["monitor/proxy_gap"] == 0


# Limits ----------------------------------------------------------------------------------------------------


def test_beyond_a_limit_for_patience_steps_in_a_row(tmp_path):
    one = monitor(tmp_path, min_entropy_frac=0.5, patience=2, max_answer_share=1)
    for step, entropy in enumerate([1, 1, 1, 0.4, 0.5, 0.4, math.nan], 1):
        watch(one, step, groups(1, 0), entropy=entropy)
        assert one.trip is None, step  # 0.5 is at the limit, and nothing measured neither adds nor ends
    watch(one, 8, groups(1, 0), entropy=0.3)
    assert (one.trip.sign, one.trip.since, one.trip.step) == ("entropy_frac", 6, 8)
    said = str(one.ended(saved=True))
    for words in ("paused: entropy_frac 0.3 is below monitor.min_entropy_frac = 0.5, since step 6",
                  "saved after step 8", "tripped/step_000008.parquet", "monitor.action=warn"):  # fmt: skip
        assert words in said
    assert "\n" not in said
    assert "NOT saved" in str(one.ended(saved=False))


def test_a_warning_is_given_once_a_row_and_the_run_goes_on(tmp_path):
    one = monitor(tmp_path, max_repetition=0.5, action="warn")
    loop, fine = groups(1, 0, tokens=[5] * 20), groups(1, 0, tokens=range(20))
    for step, given in enumerate([loop, loop, loop, loop, fine, loop, loop], 1):
        watch(one, step, given)
    assert one.trip is None
    assert [note.split(" is above")[0] for note in one.run.notes] == [
        "sign of reward hacking: repetition 0.889"
    ] * 2
    assert sorted(path.name for path in (tmp_path / "tripped").iterdir()) == [
        "step_000002.json", "step_000002.parquet", "step_000007.json", "step_000007.parquet",
    ]  # fmt: skip
    record = json.loads((tmp_path / "tripped" / "step_000007.json").read_text())
    assert (record["since"], record["setting"], record["action"]) == (6, "max_repetition", "warn")


def test_the_proxy_gap_is_named_first_and_the_overpaid_are_guilty(tmp_path):
    def truth(token):
        return number(token % 2) if hacked else number(1)

    hacked = False
    one = monitor(tmp_path, second=FakeSecond(truth), patience=1, max_repetition=0.5, action="rollback")
    for step in (1, 2, 3):
        watch(one, step, groups(*[1] * 16))
    hacked = True
    watch(one, 4, groups(*[1] * 16, tokens=[5] * 20))
    assert (one.trip.sign, list(one.trip.others), one.trip.since) == ("proxy_gap", ["repetition"], 4)
    rows = pq.read_table(tmp_path / "tripped" / "step_000004.parquet").to_pylist()
    assert rows
    assert all((row["reward"], row["second_reward"]) == (1.0, 0.0) for row in rows)
    assert all(row["token_ids"][1] % 2 == 0 for row in rows)  # those the second verifier refuses
    assert {row["why"] for row in rows} == {"paid 1, second reward 0"}
    assert {row["sign"] for row in rows} == {"proxy_gap"}
    said = str(one.ended(saved=True))
    assert "rolled back: proxy_gap" in said
    assert "the newest checkpoint is that of step 3, later ones put aside" in said
    assert one.run.rolled_back == [4]


def test_while_a_sign_is_beyond_its_limit_an_older_checkpoint_is_kept(tmp_path):
    one = monitor(tmp_path, max_repetition=0.5, patience=3, action="rollback")
    loop, fine = groups(1, 0, tokens=[5] * 20), groups(1, 0, tokens=range(20))
    kept = []
    for step, given in enumerate([fine, loop, loop, fine, loop], 1):
        watch(one, step, given)
        kept.append(one.run.keep_before)
    assert kept == [None, 2, 2, None, 5]


@pytest.mark.parametrize(
    ("sign", "settings", "given", "why"),
    [
        ("repetition", {"max_repetition": 0.3}, groups(1, 1, tokens=[5] * 8), "67% of its 4-grams repeat"),
        (
            "answer_share",
            {"max_answer_share": 0.5},
            [VerifiedGroup(Problem(n, "p", "a"), [rollout([9], [3])], [Verdict(1.0, "right", extracted="7")])
             for n in "abcd"],
            "answers '7', as most paid rollouts do",
        ),
        (
            "length_corr",
            {"max_length_corr": 0.5, "max_repetition": 1.0},
            [VerifiedGroup(Problem("a", "p", "a"), [rollout([9], [1] * n) for n in (9, 3) * 8],
                           [number(1), number(0)] * 8)],
            "9 tokens, paid 1",
        ),
        (
            "tamper_frac",
            {"max_tamper_frac": 0.1},
            [VerifiedGroup(Problem("a", "p", "a"), [rollout([9], [1])] * 2,
                           [Verdict.wrong("the tests were tampered with"), number(1)])],
            "the verifier says: the tests were tampered with",
        ),
    ],
)  # fmt: skip
def test_who_is_guilty_of_what(tmp_path, sign, settings, given, why):
    one = monitor(tmp_path, **{"max_answer_share": 1.0, "patience": 1, **settings})
    watch(one, 1, given)
    assert one.trip.sign == sign
    rows = pq.read_table(tmp_path / "tripped" / "step_000001.parquet").to_pylist()
    assert 0 < len(rows) <= 32
    assert {row["why"] for row in rows} == {why}


def test_every_limit_has_a_sign_and_suspects():
    from verigrad.engine.monitor import SUSPECTS
    from verigrad.engine.settings import MonitorConfig

    limits = {name for name in MonitorConfig.model_fields if name.startswith(("max_", "min_"))}
    assert set(LIMITS.values()) == limits
    assert set(SUSPECTS) == set(LIMITS)
    assert set(tripped.OF_SECOND) <= limits


# Checkpoints -----------------------------------------------------------------------------------------------


def test_taken_up_anywhere_it_goes_on_as_it_would_have(tmp_path):
    entropies = [2.0, 1.0, 3.0, 1.0, 0.5, 0.3, 0.2]

    def play(cut):
        second = FakeSecond(lambda token: number(token % 3 == 0))
        made = {"second": second, "min_entropy_frac": 0.4, "patience": 2, "max_proxy_gap": 9}
        one, seen = monitor(tmp_path, **made), []
        for step, entropy in enumerate(entropies, 1):
            if step == cut:
                kept = json.loads(json.dumps(one.state()))
                one = monitor(tmp_path, **made)
                one.load_state(kept)
            seen.append(watch(one, step, groups(*[1, 0] * 8), entropy=entropy))
            if one.trip:
                return seen, one.trip
        return seen, None

    whole = play(cut=0)
    assert whole[1] is not None
    for cut in range(2, len(entropies) + 1):
        assert repr(play(cut)) == repr(whole), cut


def test_another_second_verifier_starts_its_looks_anew(tmp_path):
    one = monitor(tmp_path, second=FakeSecond(lambda token: number(1)))
    for step in (1, 2, 3, 4):
        watch(one, step, groups(*[1] * 16))
    other = monitor(tmp_path, second=FakeSecond(lambda token: number(0)), verifier="math_answer")
    other.load_state(one.state())
    assert "another one" in other.run.notes[0]
    assert math.isnan(watch(other, 5, groups(*[1] * 16))["monitor/proxy_gap"])
    fresh = monitor(tmp_path)
    fresh.load_state({})  # a checkpoint from before there was a monitor
    assert fresh.state() == monitor(tmp_path).state()


# Settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["enabled=false", "patience=3"], "monitor.patience has no effect with monitor.enabled = false"),
        (["max_proxy_gap=0.5"], "monitor.max_proxy_gap has no effect without monitor.verifier"),
        (["every=5"], "monitor.every has no effect without monitor.verifier"),
        (["verifier=verifiers_of_tests.py:low_first"], "is the verifier that pays"),
        (["max_kl=0.1"], "monitor.max_kl = 0.1 needs a reference"),
        (["action=stop"], "monitor.action"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, words, says):
    recipe = write_recipe(tmp_path)
    with pytest.raises(ConfigError, match=says) as refused:
        load(str(recipe), [f"monitor.{word}" for word in words])
    assert "\n" not in str(refused.value)
