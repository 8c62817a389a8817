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
    curve.draw(tmp_path / "curve.png", metrics, evals, title="a $title_ of $ signs")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


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
