"""The words of `verigrad eval` to models and settings, and every way in which they can be wrong."""

import subprocess
import sys

import pytest

from tests.tiny import write_recipe
from verigrad.engine import checkpoint, cli, config
from verigrad.engine.config import ConfigError
from verigrad.engine.eval_plan import Subject, model_of, plan, unique, used_tree

SETS = """
[data.evals.hard]
path = "sums.jsonl"
num_samples = 4
temperature = 1.0
verifier = "exact_match"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run of two checkpoints, a model, and data."""
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(config.to_toml(config.load(str(recipe))))
    for step in (4, 5):
        checkpoint.save(
            run / "checkpoints", step, lambda p: (p / "config.json").write_text("{}") and None, keep=2
        )
    return tmp_path


def planned(*words):
    return plan(cli.parse(["eval", *words]))


def settings(*words):
    return planned(*words)[-1].cfg


def test_a_run_brings_its_recipe_and_its_newest_checkpoint(here):
    (one,) = planned("run")
    assert (one.subject.label, one.subject.step) == ("run step 5", 5)
    assert one.subject.model == str(here / "run" / "checkpoints" / "step_000005")
    assert one.cfg.policy.model == one.subject.model
    assert (one.cfg.eval.num_samples, one.cfg.eval.temperature, one.cfg.eval.pass_k) == (2, 0.7, [1, 2])
    assert (one.cfg.data.path, one.cfg.data.num_eval) == ("sums.jsonl", 6)
    assert one.cfg.verifier.name == "verifiers_of_tests.py:low_first"


def test_another_checkpoint_is_named_by_its_step_or_its_folder(here):
    by_step, by_folder = planned("run", "--step", "4"), planned("run/checkpoints/step_000004")
    assert by_step == by_folder
    assert by_step[0].subject.label == "run step 4"


def test_a_damaged_checkpoint_is_passed_over_unless_it_is_asked_for(here):
    (here / "run" / "checkpoints" / "step_000005" / "config.json").write_text("{ }")
    assert model_of(here / "run", None)[0] == 4
    with pytest.raises(ConfigError, match=r"no whole checkpoint .*config\.json has changed"):
        model_of(here / "run", 5)


def test_a_model_alone_is_greedy_for_one_sample_and_not_for_several(here):
    one, several = (
        settings("model", "--data", "sums.jsonl"),
        settings("model", "--data", "sums.jsonl", "--n", "6"),
    )
    assert (one.eval.num_samples, one.eval.temperature, one.eval.pass_k) == (1, 0.0, [])
    assert (several.eval.num_samples, several.eval.temperature) == (6, 1.0)
    assert several.eval.pass_k == [1, 2, 4]
    assert list(several.data.evals) == ["sums"]
    assert several.data.num_eval == 0


def test_a_model_beside_a_run_is_asked_what_the_run_is_asked(here):
    model, run = planned("model", "run")
    assert model.cfg.policy.model.endswith("/model")
    assert model.cfg.model_copy(update={"policy": run.cfg.policy}) == run.cfg


def test_a_recipe_gives_all_settings(here):
    (here / "other.toml").write_text((here / "tiny.toml").read_text().replace("0.7", "0.3") + SETS)
    for reference in ("run", "model"):
        cfg = settings(reference, "--recipe", "other.toml")
        assert cfg.eval.temperature == 0.3
        assert cfg.data.evals["hard"].num_samples == 4


def test_options_are_for_every_set(here):
    (here / "other.toml").write_text((here / "tiny.toml").read_text() + SETS)
    sampling = "--n 3 --temperature 0.5 --max-tokens 5 --pass-k 3,1,3 --by kind"
    judging = "--verifier random --option p=0.5"
    cfg = settings("model", "--recipe", "other.toml", *sampling.split(), *judging.split())
    one = cfg.data.evals["hard"]
    assert (one.num_samples, one.temperature, one.verifier) == (None, None, "")
    assert (cfg.eval.num_samples, cfg.eval.temperature, cfg.eval.pass_k) == (3, 0.5, [1, 3])
    assert (cfg.verifier.name, cfg.verifier.options) == ("random", {"p": 0.5})
    assert (cfg.rollout.max_tokens, cfg.eval.by) == (5, "kind")


def test_settings_come_last_and_words_may_stand_anywhere(here):
    first, second = planned("model", "--n", "4", "run", "--data", "sums.jsonl", "eval.num_samples=8")
    assert (first.cfg.eval.num_samples, second.cfg.eval.num_samples) == (8, 8)
    assert second.cfg.eval.pass_k == [1, 2, 4, 8]


def test_columns_on_the_command_line_are_of_the_data_there(here):
    cfg = settings("model", "--data", "sums.jsonl", "data.columns.prompt=question", "data.split=dev")
    assert cfg.data.evals["sums"].columns == {"prompt": "question"}
    assert cfg.data.evals["sums"].split == "dev"
    assert cfg.data.columns == {}


def test_data_sets_of_one_name_are_told_apart(here):
    (here / "b").mkdir()
    (here / "b" / "sums.jsonl").write_text("{}")
    names = list(settings("model", "--data", "sums.jsonl", "--data", "b/sums.jsonl").data.evals)
    assert names == ["sums", "sums_2"]


def test_fewer_problems_are_some_of_those_held_out(here):
    assert settings("run", "--num", "3").data.num_eval == 3
    assert settings("run", "--num", "900").data.num_eval == 6  # more would be training problems
    assert settings("model", "--data", "sums.jsonl", "--num", "3").data.evals["sums"].num == 3


def test_greedy_is_one_sample_at_temperature_zero(here):
    cfg = settings("run", "--greedy")
    assert (cfg.eval.num_samples, cfg.eval.temperature) == (1, 0.0)


def test_a_set_of_a_run_may_be_answered_otherwise(here):
    run = here / "run" / "config.toml"
    run.write_text(run.read_text() + SETS)
    words = [f"data.evals.hard.{one}" for one in ("num_samples=8", "temperature=0.5", "verifier=math_answer")]
    hard = settings("run", *words).data.evals["hard"]
    assert (hard.num_samples, hard.temperature, hard.verifier) == (8, 0.5, "math_answer")
    with pytest.raises(ConfigError, match=r"data\.evals\.hard\.num decides which problems"):
        settings("run", "data.evals.hard.num=30")


def test_longer_prompts_are_other_problems_only_where_they_are_skipped(here):
    assert settings("run", "rollout.max_prompt_tokens=400").rollout.max_prompt_tokens == 400
    run = here / "run" / "config.toml"
    run.write_text(run.read_text().replace('on_bad_row = "stop"', 'on_bad_row = "skip"'))
    with pytest.raises(ConfigError, match="max_prompt_tokens decides which problems a run held out"):
        settings("run", "rollout.max_prompt_tokens=400")


def test_whose_held_out_problems_are_asked(here):
    (here / "other.toml").write_text((here / "tiny.toml").read_text())

    def asked(*words):
        return [one.asked_of and one.asked_of.label for one in planned(*words)]

    assert asked("model", "run") == ["run step 5", "run step 5"]
    assert asked("model", "run", "--recipe", "other.toml") == [None, "run step 5"]
    assert asked("model", "run", "--data", "sums.jsonl") == [None, None]


def test_labels_differ_even_from_made_ones():
    made = unique([Subject(label, "x") for label in ("m", "m #2", "m", "m")])
    assert [one.label for one in made] == ["m", "m #2", "m #3", "m #4"]


def test_one_model_twice_has_two_labels(here):
    assert [one.subject.label for one in planned("run", "run", "model")] == [
        "run step 5", "run step 5 #2", "model",
    ]  # fmt: skip


def test_what_was_used_is_written_without_what_was_not(here):
    tree = used_tree(settings("run"))
    assert "optim" not in tree
    assert "every" not in tree["eval"]
    assert tree["verifier"]["name"] == "verifiers_of_tests.py:low_first"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("./nowhere", r"no folder ./nowhere .*correct the path"),
        ("empty", "holds neither a model .* nor a run"),
        ("tiny.toml", "is a file; expected a model's folder"),
        ("fresh", "fresh holds no checkpoint yet"),
        ("staged", "staged is the folder of a recipe of stages, .*name one of them: staged/1_a, staged/2_b"),
        ("staged/1_a", "1_a is a run of `verigrad label`, which trains no model: it leaves labels.jsonl"),
        ("no/where/x", r"no folder no/where/x \(looked from .*\); correct the path"),
        ("run --step 3", "no checkpoint of step 3; it has those of steps 4, 5"),
        ("model --step 3 --data sums.jsonl", "--step picks a checkpoint of a run"),
        ("model", "model: nothing to evaluate on; give --data"),
        ("rum", r"rum: no folder here \(looked from .*\), so a model by its name; nothing to evaluate on"),
        ("run/checkpoint", "no folder run/checkpoint .*did you mean run/checkpoints"),
        ("empty/run", "no folder empty/run .*correct the path"),
        ("model --data nosuch.jsonl", "--data nosuch.jsonl: no such file"),
        ("run --n 3 --pass-k 4", r"eval.pass_k = \[4\]: each k must be from 1 to eval.num_samples = 3"),
        ("run --n 0", "--n 0: expected at least 1"),
        ("run --num -1", "--num -1: expected at least 1"),
        ("run --n 4 --temperature 0", "has no effect at eval.temperature = 0: greedy samples"),
        ("run --temperature nan", "--temperature nan: expected 0 .greedy. or 0.01 to 2.0"),
        ("run --temperature -1", "--temperature -1: expected 0 .greedy. or 0.01 to 2.0"),
        ("run --temperature 1e9", r"--temperature 1e\+09: expected 0 .greedy. or 0.01 to 2.0"),
        (
            "run eval.temperature=50",
            "eval.temperature = 50: the samplers take 0.01 to 2.0 or 0 .greedy.; change",
        ),
        ("run rollout.stop=['']", "rollout.stop holds an empty string"),
        ("run prompts.system=hi prompts.chat=never", "prompts.system has no effect with prompts.chat"),
        ("run --greedy --n 2", "--greedy is one sample"),
        ("run --option casefold", "--option casefold: expected key=value"),
        ("run --recipe nope", "no recipe 'nope'"),
        ("run optim.lr=1", "optim.lr has no effect on an evaluation"),
        ("run rollout.top_p=0.5", "rollout.top_p has no effect on an evaluation"),
        ("run train.seed=4", "train.seed decides which problems a run held out.*use --seed"),
        ("run data.num_eval=30", "data.num_eval decides which problems a run held out.*use --num"),
        ("run data.path=sums.jsonl", "data.path decides which problems a run held out"),
        ("run data.columns.prompt=answer", "data.columns.prompt decides which problems"),
        ("run data.on_bad_row=skip", "data.on_bad_row decides which problems"),
        ("run data.evals.train.path=sums.jsonl", "data.evals.train.path decides which problems"),
        ("model run data.evals={train={path='sums.jsonl'}}", "data.evals decides which problems"),
        ("run data.colums.prompt=x", "data.colums is not a setting; did you mean data.columns"),
        ("run policy.model=x", "name the model itself"),
        ("run eval.evry=1", "run step 5: eval.evry is not a setting"),
        ("run data.path=x.jsonl --data sums.jsonl", "data.path has no effect with --data"),
        ("run data.evals.more.pth=x", "data.evals.more.pth is not a setting; did you mean path"),
        ("optim.lr=1", "name at least one model"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(here, words, says):
    (here / "empty").mkdir()
    (here / "fresh").mkdir()
    (here / "fresh" / "config.toml").write_text("")
    for name in ("1_a", "2_b"):
        (here / "staged" / name).mkdir(parents=True)
        (here / "staged" / name / "config.toml").write_text("[label]")
    with pytest.raises(ConfigError, match=says) as caught:
        planned(*words.split())
    assert "\n" not in str(caught.value)


def test_a_recipe_that_misspells_a_setting_is_refused(here):
    (here / "other.toml").write_text((here / "tiny.toml").read_text().replace("num_samples", "num_sampels"))
    with pytest.raises(
        ConfigError, match=r"eval\.num_sampels is not a setting; did you mean eval\.num_samples"
    ):
        planned("model", "--recipe", "other.toml")


def test_an_option_needs_to_know_whose_it_is(here):
    (here / "other.toml").write_text((here / "tiny.toml").read_text() + SETS)
    with pytest.raises(ConfigError, match="say --verifier, too"):
        planned("model", "--recipe", "other.toml", "--option", "p=1")


def test_a_recipe_of_written_answers_has_no_questions(here):
    (here / "other.toml").write_text('[data]\npath = "x.jsonl"\n[policy]\nmodel = "m"\n[sft]\n')
    with pytest.raises(ConfigError, match="no questions with answers; give --data"):
        planned("model", "--recipe", "other.toml")
    assert settings("model", "--recipe", "other.toml", "--data", "sums.jsonl").data.evals


def test_a_plan_needs_no_torch(here):
    code = (
        "import sys; from verigrad.engine import cli, eval_plan; eval_plan.plan(cli.parse(['eval', 'run'])); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=here).returncode == 0


@pytest.mark.parametrize(
    ("reference", "label"),
    [("models.tiny:make", "tiny:make"), ("dir/models.py:make", "models.py:make"), ("org/name", "org/name")],
)
def test_a_label_is_short(here, reference, label):
    assert planned(reference, "--data", "sums.jsonl")[0].subject.label == label
