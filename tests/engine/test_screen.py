"""What a person sees, on a terminal and in a log."""

import io
import math
import re

from rich.console import Console

from tests.tiny import rollout
from verigrad.engine.schema import VerifiedGroup
from verigrad.engine.screen import Screen, name_of_score
from verigrad.verifiers.base import Problem, Verdict

ROW = {
    "reward": 0.5,
    "kept_frac": 0.25,
    "undecided_frac": 0.0,
    "entropy": 0.1,
    "completion_tokens_mean": 30.0,
    "tokens_per_s": 1234.0,
}


def shown(act, *, terminal):
    file = io.StringIO()
    console = Console(file=file, width=150, force_terminal=terminal, highlight=False)
    with Screen(console) as screen:
        act(screen)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def prepare(screen):
    for step in range(1, 101):
        screen.progress(f"warm start {step}/100, loss {1 / step:.2f}", step / 100)
    for step in range(1, 41):
        screen.step({**ROW, "step": step}, 40)
    screen.summary([("reward", "0.1 -> 0.9")], title="run")


def test_a_preparation_is_one_bar_whatever_it_says():
    def one_frame(screen):
        for step in range(1, 6):
            screen.progress(f"warm start {step}/10, loss {1 / step:.2f}", step / 10)
        assert len(screen._bar.tasks) == 1
        screen.progress("warm start 10/10", 1.0)
        assert not screen._bar.tasks

    shown(one_frame, terminal=True)


def test_the_bar_names_reward_kept_groups_entropy_speed_and_time_left():
    text = shown(prepare, terminal=True)
    assert "reward 0.500  kept 25%  entropy 0.100  length 30  1,234 tok/s" in text
    assert "left 0:00:00" in text


def test_the_table_comes_last_on_a_terminal():
    assert "step 40/40" not in shown(prepare, terminal=True).split("0.1 -> 0.9")[1]


def test_a_log_has_few_lines():
    lines = shown(prepare, terminal=False).splitlines()
    assert 15 < len([line for line in lines if line.startswith("step ")]) <= 22
    assert len([line for line in lines if line.startswith("warm start")]) <= 6


def test_what_a_model_wrote_cannot_speak_markup_or_drive_the_terminal():
    wrote = rollout([1], [2])
    wrote = type(wrote)(wrote.token_ids, wrote.loss_mask, wrote.logprobs, wrote.policy_versions,
                        "[red]x[/red] \x1b[2J", "stop", 0)  # fmt: skip
    group = VerifiedGroup(Problem("p", "[bold]q", "a"), [wrote], [Verdict.wrong("no")])
    text = shown(lambda screen: screen.samples([group]), terminal=False)
    assert "[red]x[/red] \N{REPLACEMENT CHARACTER}[2J" in text
    assert "[bold]q" in text


def test_undecided_verdicts_and_idle_steps_are_named():
    def act(screen):
        screen.step({**ROW, "step": 1, "undecided_frac": 0.29, "entropy": math.nan, "reward": math.nan}, 1)

    text = shown(act, terminal=False)
    assert "reward undefined" in text
    assert "UNDECIDED 29%" in text
    assert "nothing to train on" in text


def test_a_mean_of_partial_rewards_is_not_called_accuracy():
    assert name_of_score([0.0, 1.0]) == "accuracy"
    assert name_of_score([0.0, 0.5]) == name_of_score([7.0]) == "mean reward"
