"""The table and the picture at the end, also of runs in which nothing went well."""

import json
import os
import signal

import pytest
from rich.console import Console

from tests.tiny import config, rollout
from verigrad.engine import curve, summary, tripped
from verigrad.engine.interrupt import Interrupt
from verigrad.engine.run import Run
from verigrad.engine.schema import Evaluation, VerifiedGroup
from verigrad.engine.screen import Screen, printable
from verigrad.verifiers.base import Problem, Verdict


@pytest.fixture
def shown(tmp_path):
    """A function that records evaluations {step: rewards per problem} and shows the run."""

    def show(evals, rewards=()):
        with Run(config(run={"folder": str(tmp_path / "run")})) as run:
            for step, rewards_of in evals.items():
                groups = [verified(name, reward) for name, reward in rewards_of.items()]
                avg = sum(r for r in rewards_of.values() if r is not None) / len(groups)
                row = {"step": step, "data": "d", "num_problems": len(groups), "avg": avg,
                       "avg_low": avg - 0.125, "avg_high": avg + 0.125}  # fmt: skip
                run.log_eval(Evaluation(row, groups))
            for step, reward in enumerate(rewards, 1):
                run.log_step(
                    step,
                    {"reward": reward, "completion_tokens_mean": 4.0, "entropy": 1.0, "undecided_frac": 0.0},
                )
            with open(tmp_path / "out.txt", "w") as file:
                assert summary.show(run, Screen(Console(file=file, width=160))) == 0
        return (tmp_path / "out.txt").read_text()

    return show


def verified(name, reward):
    verdict = (
        Verdict.undecided("broken") if reward is None else Verdict(reward, "right" if reward else "wrong")
    )
    return VerifiedGroup(Problem(name, "q", "a"), [rollout([3], [4])], [verdict])


def test_gain_is_paired_by_problem(shown):
    before, after = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}
    out = shown({0: before, 9: after}, rewards=[0.25, 0.5])
    assert "0.500  [0.375, 0.625]  on 4 unseen problems" in out
    assert "0.750  [0.625, 0.875]" in out
    half = 1.959963984540054 * 0.5 / 2  # gains 1, 0, 0, 0: deviation 1/2, over the root of 4
    assert f"+0.250  [{0.25 - half:+.3f}, {0.25 + half:+.3f}]" in out
    assert "0.250 -> 0.500" in out


def test_undecided_problems_are_left_out_of_the_gain(shown):
    out = shown({0: {"a": 0.0, "b": None, "c": 0.0}, 3: {"a": 1.0, "b": 1.0, "c": 1.0}})
    sure = 1 - 1.959963984540054**2 / (2 + 1.959963984540054**2)  # two problems alike are little to go by
    assert f"+1.000  [{sure:+.3f}, +1.000]" in out


@pytest.mark.parametrize("after", [{"a": 1.0}, {"a": None}])
def test_one_problem_has_no_gain_to_speak_of(shown, after):
    assert "d gain" not in shown({0: {"a": 0.0}, 3: after})


def test_one_evaluation_is_no_comparison(shown):
    out = shown({0: {"a": 0.0, "b": 1.0}})
    assert "before" in out
    assert "after" not in out


def test_nothing_recorded_is_still_shown(shown):
    assert "0 steps" in shown({})


def test_what_tripped_is_in_the_table(shown, tmp_path):
    assert "TRIPPED" not in shown({})
    folder = tmp_path / "run" / tripped.FOLDER
    folder.mkdir()
    trip = {"since": 3, "sign": "proxy_gap", "limit": 0.5, "setting": "max_proxy_gap", "others": [],
            "patience": 2, "action": "warn", "num_guilty": 4, "monitor": {}}  # fmt: skip
    (folder / "step_000012.json").write_text(json.dumps({**trip, "step": 12, "value": 0.75}))
    (folder / "step_000004.json").write_text(json.dumps({**trip, "step": 4, "value": 0.625}))
    (folder / "step_000005.json").write_text("{}")
    (row,) = [line for line in shown({}).splitlines() if "TRIPPED" in line]
    said = "see tripped/: proxy_gap 0.625 is above monitor.max_proxy_gap = 0.5, since step 3; and 1 more"
    assert said in row


def test_rewards_that_were_not_finite(shown):
    assert "undefined -> 0.500" in shown({}, rewards=[float("nan"), 0.5])


def test_a_picture_with_gaps(tmp_path):
    metrics = [{"step": s, "reward": None, "completion_tokens_mean": 1.0, "entropy": None} for s in (1, 2)]
    evals = [{"step": 0, "data": "d", "avg": None, "avg_low": None, "avg_high": None}]
    judge = curve.Judge.of("exact_match", {})
    curve.draw(
        tmp_path / "curve.png", metrics, evals, title="a $title_ of $ signs", paid_by=judge, judged_by={}
    )
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def panels(tmp_path, monkeypatch):
    """A function that draws and tells of each panel its label, its lines by their names, and its limits."""

    def shown(draw, *words, **more):
        seen = []
        monkeypatch.setattr(curve, "_write", lambda figure, path: seen.append(figure))
        draw(tmp_path / "x.png", *words, title="t", **more)
        return [
            (axis.get_ylabel(), [line.get_label() for line in axis.get_lines()], axis.get_ylim())
            for axis in seen[0].axes
        ]

    return shown


PAID = [
    {"step": s, "reward": r, "completion_tokens_mean": 1.0, "entropy": 1.0} for s, r in ((1, -0.5), (2, 2.0))
]
HELD = [
    {"step": s, "data": d, "avg": 0.5, "avg_low": 0.4, "avg_high": 0.6} for d in ("a", "b") for s in (0, 2)
]


def test_rewards_of_two_judges_are_two_panels_that_name_them(panels):
    learned = curve.Judge.of("reward_model", {"model": "runs/m"})
    true = curve.Judge.of("verigrad.engine.recipes.small_talk:true_reward", {})
    first, second, last, _entropy = panels(
        curve.draw, PAID, HELD, paid_by=learned, judged_by={"a": true, "b": true}
    )
    assert first[:2] == (
        "reward (1 is right)",
        ["a, by small_talk:true_reward, 95% interval", "b, by small_talk:true_reward, 95% interval"],
    )
    assert first[2] == (-0.02, 1.02)
    assert second[:2] == ("reward", ["training, by reward_model"])
    assert second[2][0] < -0.5
    assert second[2][1] > 2
    assert last[0] == "completion tokens (mean)"


def test_rewards_of_one_judge_share_a_panel(panels):
    judge = curve.Judge.of("my/file.py:check", {"strict": True})
    first, _tokens, _entropy = panels(curve.draw, [], HELD[:2], paid_by=judge, judged_by={"a": judge})
    assert first[1] == ["training, by file.py:check", "a, by file.py:check, 95% interval"]
    other = curve.Judge.of("my/file.py:check", {})
    first, second, *_ = panels(curve.draw, PAID, HELD[:2], paid_by=judge, judged_by={"a": other})
    assert first[1] == ["a, by file.py:check, other options, 95% interval"]
    assert second[1] == ["training, by file.py:check"]


def test_a_run_on_data_that_is_there_draws_accuracy_and_loss(panels):
    metrics = [{"step": 1, "loss": 0.7, "accuracy": 0.5}, {"step": 2, "loss": None, "accuracy": 1.0}]
    evals = [
        {"step": 0, "data": "held_out", "loss": 0.7, "accuracy": 0.5, "loss_low": 0.6, "loss_high": 0.8},
        {"step": 1, "data": "other"},
    ]
    accuracy, loss = panels(curve.draw_offline, metrics, evals)
    assert accuracy == ("accuracy", ["training", "held_out"], (-0.02, 1.02))
    assert loss[:2] == ("loss", ["training", "held_out, 95% interval"])
    (loss,) = panels(curve.draw_offline, [{"step": 1, "loss": 0.7}], [])
    assert loss[:2] == ("loss", ["training"])
    assert len(panels(curve.draw_offline, [], [])) == 1


def test_the_table_of_a_run_draws_who_judges_what(shown, monkeypatch):
    drawn = {}
    monkeypatch.setattr(curve, "draw", lambda *words, **more: drawn.update(more))
    shown({0: {"a": 0.0}})
    assert drawn["paid_by"] == drawn["judged_by"]["d"]


def test_a_long_note_stays_one_line(tmp_path):
    with open(tmp_path / "out.txt", "w") as file:
        Screen(Console(file=file, width=40)).say("[bold]word[/] " * 20)
    assert (tmp_path / "out.txt").read_text().count("\n") == 1
    assert "[bold]word[/]" in (tmp_path / "out.txt").read_text()


def test_what_a_model_wrote_cannot_drive_the_terminal():
    assert printable("a\x1b[2J\ud800\tb\n\u00e9") == "a\ufffd[2J\ufffd\tb\n\u00e9"


def test_the_second_interrupt_ends_at_once():

    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_steps_on_a_file_are_about_twenty_lines(tmp_path):
    row = json.loads(
        '{"reward": 0.5, "kept_frac": 1, "undecided_frac": 0, "entropy": 1, "completion_tokens_mean": 3, '
        '"tokens_per_s": 9}'
    )
    with open(tmp_path / "out.txt", "w") as file, Screen(Console(file=file, width=120)) as screen:
        for step in range(1, 401):
            screen.step({**row, "step": step}, 400)
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert 18 <= len(lines) <= 23
    assert "step 400/400" in lines[-1]
