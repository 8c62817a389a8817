"""A verifier's health: metrics of a step by hand, and a run that pauses instead of training on the rest."""

import json

import pytest

from tests.tiny import config, run_cli, write_recipe
from verigrad.engine.config import ConfigError, load
from verigrad.engine.screen import Screen
from verigrad.engine.settings import VerifierConfig
from verigrad.engine.verifier_health import VerifierHealth, as_metrics
from verigrad.verifiers.base import Verdict
from verigrad.verifiers.pool_stats import PoolStats

LOST = Verdict.undecided("the sandbox died")
OUTAGE = '''
import pathlib
from verigrad.verifiers.base import verifier

@verifier("outage", runs="inline")
def outage(text):
    """Fails for as long as a file lies there."""
    if pathlib.Path("outage").exists():
        raise ConnectionError("the judge is unreachable")
    return text[:1] in "0123456789+-*/=()?., abc"
'''


def health(**limits):
    return VerifierHealth("code", VerifierConfig(**limits))


def test_only_steps_in_a_row_count():
    watch = health(steady_undecided_frac=0.25, steady_undecided_steps=2)
    above, at = [LOST, Verdict.right(), Verdict.wrong()], [LOST, *[Verdict.right()] * 3]
    watch.observe(above)
    watch.observe(at)  # exactly the limit is borne
    watch.observe(above)
    assert (watch.steps_in_row, watch.must_pause) == (1, False)
    watch.observe(above)
    assert watch.must_pause


def test_the_message_says_who_how_many_why_and_what_to_do():
    watch = health(steady_undecided_frac=0.1, steady_undecided_steps=1)
    watch.observe([LOST, LOST, Verdict.undecided("a\nb"), *[Verdict.right()] * 5])
    said = str(watch.paused(step=7, saved=True))
    for words in ("'code'", "10%", "1 steps in a row", "3 of 8", "2 x the sandbox died", "1 x a b",
                  "saved after step 7", "same command"):  # fmt: skip
        assert words in said
    assert "\n" not in said
    assert "NOT saved" in str(watch.paused(step=7, saved=False))


def test_shares_latencies_and_the_slowest_by_hand():
    stats = PoolStats()
    for number, verdict in enumerate([Verdict(1.0, "right", seconds=0.3), Verdict(0.0, "wrong", seconds=0.1),
                                      Verdict(0.0, "timeout", seconds=2.0), LOST]):  # fmt: skip
        stats.add([verdict], sample=f"sample {number}")
    stats.count([Verdict(0.5, "partial")], cached=True)
    metrics = as_metrics(stats)
    names = ("right", "wrong", "partial", "unparseable")
    assert [metrics[f"verify/{name}_frac"] for name in names] == [0.2, 0.2, 0.2, 0.0]
    assert (metrics["verify/timeout_frac"], metrics["verify/undecided_frac"]) == (0.2, 0.2)
    assert metrics["verify/cache_hit_frac"] == 0.2
    assert metrics["verify/p50_s"] == pytest.approx(0.2)  # of 0, 0.1, 0.3 and 2.0: what was cached took none
    assert (metrics["verify/p99_s"], metrics["verify/slowest_s"]) == (2.0, 2.0)
    assert stats.slowest == (2.0, "sample 2")
    assert sum(value for name, value in metrics.items() if name.endswith("_frac")) == pytest.approx(1.2)


def test_the_slowest_sample_is_named_once():
    watch, notes = health(), []
    for seconds in (0.4, 1.2, 1.5, 3.0):
        stats = PoolStats()
        stats.add([Verdict(1.0, "right", seconds=seconds)], sample=f"problem {seconds}")
        watch.metrics(stats, note=notes.append)
    assert [note.split(", ")[1] for note in notes] == ["problem 1.2", "problem 3.0"]


@pytest.fixture
def folder(tmp_path):
    recipe = write_recipe(tmp_path, verifier="low_first")
    (tmp_path / "outage.py").write_text(OUTAGE)
    recipe.write_text(recipe.read_text().replace("verifiers_of_tests.py:low_first", "outage.py:outage"))
    return tmp_path


def test_a_run_pauses_saved_and_the_same_command_goes_on(folder):
    command = ("train", "tiny.toml", "verifier.max_undecided_frac=1.0", "verifier.steady_undecided_steps=2",
               "eval.every=0", "run.save_every=100", "verifier.audit=off")  # fmt: skip
    recipe = (folder / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(recipe.partition("[eval]")[0])

    def steps():
        return [
            json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
        ]

    (folder / "outage").touch()
    status, _, said = run_cli(*command, folder=folder)
    assert status == 1, said
    assert "paused: verifier 'outage.py:outage'" in said
    assert " x ConnectionError: the judge is unreachable. The run is saved after step 2" in said
    assert said.count("paused") == 1
    assert steps() == [1, 2]
    assert (folder / "run" / "checkpoints" / "step_000002").is_dir()
    status, _, said = run_cli(*command, folder=folder)  # not mended: one more step is enough to know
    assert (status, steps()) == (1, [1, 2, 3])
    assert "3 steps in a row" in said
    (folder / "outage").unlink()
    status, _, said = run_cli(*command, folder=folder)
    assert (status, steps()) == (0, [1, 2, 3, 4, 5]), said
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["verify/undecided_frac"] for row in rows] == [1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("verifier", "says"),
    [
        (
            {"steady_undecided_frac": 0.6, "max_undecided_frac": 0.5},
            "steady_undecided_frac = 0.6 has no effect",
        ),
        ({"steady_undecided_frac": 1.0, "steady_undecided_steps": 3}, "steady_undecided_steps has no effect"),
    ],
)
def test_limits_without_effect_are_refused(tmp_path, verifier, says):
    recipe = write_recipe(tmp_path)
    words = [f"verifier.{name}={value}" for name, value in verifier.items()]
    with pytest.raises(ConfigError, match=says):
        load(str(recipe), words)


def test_the_screen_tells_trouble_in_words(capsys):
    row = {"step": 1, "reward": 0.5, "kept_frac": 1.0, "undecided_frac": 0.1, "entropy": 1.0,
           "completion_tokens_mean": 3.0, "tokens_per_s": 9.0, "verify/timeout_frac": 0.25,
           "verify/restarts": 4.0}  # fmt: skip
    Screen().step(row, 10)
    said = capsys.readouterr().out
    for words in ("UNDECIDED 10%", "TIMED OUT 25%", "4 verifier workers killed"):
        assert words in said
    Screen().step({**row, "verify/timeout_frac": 0.0, "verify/restarts": 0.0, "undecided_frac": 0.0}, 10)
    assert "TIMED" not in capsys.readouterr().out


def test_the_default_limits_pause_before_a_run_is_spoilt():
    limits = config().verifier
    assert limits.steady_undecided_frac < limits.max_undecided_frac
