"""Recipes of stages: what each takes, what overrides reach, what is refused before anything starts."""

import pytest

from verigrad.engine.config import ConfigError
from verigrad.engine.stage_recipe import _sort_overrides, load, missing_files, to_toml

RECIPE = """\
[run]
folder = "out"
[train]
num_steps = 4
[data]
path = "org/problems"
split = "train[10:]"
columns = {prompt = "question"}
num_eval = 5
[policy]
model = "my.models:tiny"
options = {layers = 2}
tokens_per_batch = 4096
[rollout]
group_size = 4
max_tokens = 100
max_prompt_tokens = 50
[sft]
max_length = 200

[[stage]]
name = "shown"
verb = "sft"
data.columns = {prompt = "question", completion = "written"}
train.num_steps = 7

[[stage]]
name = "short"

[[stage]]
name = "long"
rollout.max_tokens = 300

[[stage]]
name = "rejection"
verb = "sample"
rollout.groups_per_step = 9

[[stage]]
name = "small"
verb = "sft"
policy.model = "org/small"
data.path = "{rejection}/samples.jsonl"
prompts.system = "Say {this} and {rejection}."
"""


@pytest.fixture
def path(tmp_path):
    return write(tmp_path, RECIPE)


def write(tmp_path, text):
    file = tmp_path / "pipe.toml"
    file.write_text(text)
    return str(file)


def stages(path, *overrides):
    return {stage.name: stage for stage in load(path, overrides).stages}


def cfgs(path, *overrides):
    return {name: stage.cfg for name, stage in stages(path, *overrides).items()}


def error(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What a stage takes ----------------------------------------------------------------------------------------


def test_stages_come_in_order_in_folders_of_their_own(path):
    recipe = load(path)
    assert (recipe.name, recipe.folder) == ("pipe", "out")
    assert [stage.label for stage in recipe.stages] == [
        "1_shown",
        "2_short",
        "3_long",
        "4_rejection",
        "5_small",
    ]
    assert [stage.cfg.verb for stage in recipe.stages] == ["sft", "train", "train", "sample", "sft"]
    assert [stage.cfg.run.folder for stage in recipe.stages] == [
        f"out/{stage.label}" for stage in recipe.stages
    ]


def test_results_are_the_last_checkpoint_or_the_folder_of_samples(path):
    assert [stage.result for stage in stages(path).values()] == [
        "out/1_shown/checkpoints/step_000007",
        "out/2_short/checkpoints/step_000004",
        "out/3_long/checkpoints/step_000004",
        "out/4_rejection",
        "out/5_small/checkpoints/step_000004",
    ]


def test_a_stage_starts_from_the_one_before_that_trained(path):
    model = {name: cfg.policy.model for name, cfg in cfgs(path).items()}
    assert model["shown"] == "my.models:tiny"
    assert model["short"] == "out/1_shown/checkpoints/step_000007"
    assert model["long"] == "out/2_short/checkpoints/step_000004"
    assert model["rejection"] == "out/3_long/checkpoints/step_000004"
    assert model["small"] == "org/small"
    assert cfgs(path)["shown"].policy.options == {"layers": 2}
    assert cfgs(path)["short"].policy.options == {}  # they were the maker's


def test_after_a_stage_of_samples_the_chain_goes_on_from_the_trained_one(tmp_path):
    text = RECIPE.replace('policy.model = "org/small"\n', "")
    assert cfgs(write(tmp_path, text))["small"].policy.model == "out/3_long/checkpoints/step_000004"


def test_shared_sections_reach_those_that_read_them_and_break_no_one(path):
    ours = cfgs(path)
    assert ours["long"].rollout.max_tokens == 300
    assert ours["short"].rollout.max_tokens == ours["rejection"].rollout.max_tokens == 100
    assert ours["rejection"].rollout.groups_per_step == 9
    assert ours["short"].rollout.group_size == 4
    assert ours["shown"].sft.max_length == ours["small"].sft.max_length == 200


def test_a_stage_that_names_its_data_takes_nothing_that_describes_the_shared(path):
    data = {name: cfg.data for name, cfg in cfgs(path).items()}
    assert data["short"].split == data["shown"].split == "train[10:]"
    assert data["shown"].columns == {"prompt": "question", "completion": "written"}
    assert data["small"].path == "out/4_rejection/samples.jsonl"
    assert (data["small"].split, data["small"].columns, data["small"].num_eval) == ("train", {}, 5)


def test_only_names_of_earlier_stages_are_put_in(path):
    assert cfgs(path)["small"].prompts.system == "Say {this} and out/4_rejection."


def test_the_folder_is_named_after_the_recipe_where_none_is_given(tmp_path):
    recipe = load(write(tmp_path, RECIPE.replace('folder = "out"', "")))
    assert recipe.folder == "runs/pipe"
    assert load(str(tmp_path / "pipe.toml"), ["run.folder=else/where"]).stages[0].cfg.run.folder == (
        "else/where/1_shown"
    )


def test_the_resolved_recipe_loads_as_itself(path, tmp_path):
    recipe = load(path)
    again = tmp_path / "again.toml"
    again.write_text(to_toml(recipe))
    assert load(str(again)).stages == recipe.stages


# Overrides -------------------------------------------------------------------------------------------------


def test_an_override_reaches_every_stage_that_takes_it(path):
    ours = cfgs(path, "train.num_steps=9", "rollout.max_tokens=60", "sft.batch_size=3", "train.seed=5")
    assert [cfg.train.num_steps for cfg in ours.values() if cfg.verb != "sample"] == [9, 9, 9, 9]
    assert [ours[name].rollout.max_tokens for name in ("short", "long", "rejection")] == [60, 60, 60]
    assert ours["small"].sft.batch_size == 3
    assert {cfg.train.seed for cfg in ours.values()} == {5}


def test_an_override_of_one_stage_wins_over_one_of_all(path):
    ours = cfgs(path, "long.train.num_steps=2", "train.num_steps=9", "small.sft.batch_size=3")
    assert [ours[name].train.num_steps for name in ("shown", "short", "long")] == [9, 9, 2]
    assert (ours["shown"].sft.batch_size, ours["small"].sft.batch_size) == (32, 3)


def test_the_shared_source_is_replaced_where_no_stage_has_its_own(path):
    ours = cfgs(path, "policy.model=org/base", "policy.options={}", "data.path=x.jsonl", "data.split=train")
    assert ours["shown"].policy.model == "org/base"
    assert ours["short"].policy.model == "out/1_shown/checkpoints/step_000007"
    assert ours["small"].policy.model == "org/small"
    assert ours["shown"].data.path == ours["short"].data.path == "x.jsonl"
    assert ours["small"].data.path == "out/4_rejection/samples.jsonl"


def test_a_stages_own_source_by_override(path):
    ours = cfgs(path, "long.policy.model=org/other", "long.data.path=y.jsonl")
    assert (ours["long"].policy.model, ours["long"].data.path) == ("org/other", "y.jsonl")
    assert (ours["long"].data.split, ours["long"].data.columns) == ("train", {})
    assert ours["rejection"].policy.model == "out/3_long/checkpoints/step_000004"


@pytest.mark.parametrize(
    ("override", "near"), [("preferd.optim.lr=1", "preferred"), ("preferd.loss=ipo", "prefer")]
)
def test_a_name_between_a_stage_and_a_section_is_taken_by_what_follows_it(override, near):
    with pytest.raises(ConfigError, match=rf"did you mean {near}\?"):
        _sort_overrides({}, ["preferred"], [override])


# What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("shrt.train.num_steps=2", "shrt is neither a section nor a stage; did you mean short?"),
        ("trian.num_steps=2", "trian is neither a section nor a stage; did you mean train?"),
        ("zzz.zzz=2", "stages: shown, short, long, rejection, small"),
        ("short=2", "is not of the form short.section.key=value"),
        ("short.num_steps=2", "is not of the form section.key=value; did you mean train.num_steps=2?"),
        ("num_steps=2", "did you mean train.num_steps=2?"),
        ("train.num_stps=2", "stage shown: train.num_stps is not a setting; did you mean train.num_steps?"),
        ("short.rollout.max_token=2", "stage short: rollout.max_token is not a setting"),
        ("shown.rollout.max_tokens=2", "stage shown: [rollout] has no effect on `verigrad sft`; remove it"),
        ("rejection.optim.lr=2", "stage rejection: [optim] has no effect on `verigrad sample`"),
        ("short.sft.batch_size=2", "stage short: [sft] is for `verigrad sft`"),
        ("long.run.folder=x", "stage long: run.folder is that of the recipe"),
        ("long.rollout.top_p=0.5", "stage long: rollout.top_p = 0.5"),
        (
            "small.data.path={rejecton}/x.jsonl",
            "no earlier stage is called rejecton; did you mean {rejection}?",
        ),
        ("shown.data.path={long}/x.jsonl", "no earlier stage is called long; earlier ones: none"),
    ],
)
def test_overrides_that_reach_nothing_are_refused(path, override, says):
    message = error(path, override)
    assert message.startswith("pipe.toml: ")
    assert says in message


def test_a_shared_setting_that_no_stage_reads_is_refused(tmp_path):
    only = RECIPE.split("[[stage]]")[0] + '[[stage]]\nname = "a"\nverb = "sft"\n'
    assert "rollout.group_size has no effect on any stage (sft); remove it" in error(write(tmp_path, only))
    trains = (
        RECIPE.replace('verb = "sft"', "")
        .replace('verb = "sample"', "")
        .split('[[stage]]\nname = "small"')[0]
    )
    assert "sft.max_length has no effect on any stage" in error(write(tmp_path, trains))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "shown"', "", "stage 1 has the name None"),
        ('name = "shown"', 'name = "../x"', "stage 1 has the name '../x'"),
        ('name = "shown"', "name = 7", "stage 1 has the name 7"),
        ('name = "shown"', 'name = "rollout"', "as a section has; give it another"),
        ('name = "shown"', 'name = "short"', "stage 2 has the name 'short', as another stage has"),
        ('verb = "sample"', 'verb = "eval"', "stage rejection: verb = 'eval'; expected train, sft, sample"),
        (
            "rollout.max_tokens = 300",
            "rolout.max_tokens = 300",
            "stage long: rolout is not a setting; did you mean [rollout]?",
        ),
        ("rollout.max_tokens = 300", "rollout = 300", "rollout = 300: expected a section, a table [rollout]"),
        ("[train]\nnum_steps = 4", "train = 4", "train = 4: expected a section"),
        ("rollout.max_tokens = 300", 'run.folder = "x"', "run.folder is that of the recipe"),
        ('folder = "out"', "folder = 7", "run.folder = 7 is no text"),
        ("[train]", "[trian]\nx = 1\n[train]", "trian is not a setting; did you mean [train]?"),
        ("{rejection}/samples", "{long}", "data.path"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, old, new, says):
    text = RECIPE.replace(old, new, 1)
    if old.startswith("{"):
        text = RECIPE.replace("{rejection}/samples.jsonl", "{nobody}")
    if old.startswith("[train]\nnum"):
        text = "train = 4\n" + RECIPE.replace("[train]\nnum_steps = 4\n", "")
    assert says in error(write(tmp_path, text))


@pytest.mark.parametrize("text", ["stage = 3\n", "stage = []\n", "[stage]\nname = 'x'\n"])
def test_a_stage_that_is_no_list_of_tables(tmp_path, text):
    assert "write each stage as [[stage]]" in error(write(tmp_path, text))


def test_a_mixture_may_take_what_earlier_stages_made(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mixed = ["small.data.mix.old.path=seen.jsonl", "small.data.mix.new.path={rejection}/{short}.jsonl"]
    recipe = load(path, mixed)
    made = {stage.name: stage.result for stage in recipe.stages}
    sets = recipe.stages[-1].cfg.data.mix
    assert sets["new"].path == f"{made['rejection']}/{made['short']}.jsonl"
    assert [line.split(" (looked")[0] for line in missing_files(recipe)] == [
        "stage small: data.mix.old.path = 'seen.jsonl': no such file"
    ]
    near = error(path, "small.data.mix.new.path={rejecton}/x.jsonl")
    assert "data.mix.new.path = '{rejecton}/x.jsonl': no earlier stage is called rejecton" in near


def test_a_stage_with_data_of_its_own_takes_no_mixture_of_the_others(tmp_path):
    shared = RECIPE.replace("[data]", '[data]\nmix = {more = {path = "org/more"}}\nweight = 2.0', 1)
    recipe = load(write(tmp_path, shared))
    mixes = {stage.name: (dict(stage.cfg.data.mix), stage.cfg.data.weight) for stage in recipe.stages}
    assert list(mixes["shown"][0]) == ["more"]
    assert mixes["small"] == ({}, 1.0)  # it names data.path


def test_files_that_no_stage_makes_are_looked_for_before_the_first_starts(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(missing_files(load(path))) == []
    files = [
        "data.path=no.jsonl",
        "data.split=train",
        "small.policy.model=./nowhere",
        "long.data.eval_path=no.csv",
    ]
    found = list(missing_files(load(path, files)))
    assert [line.split(" (looked")[0] for line in found] == [
        "stage shown: data.path = 'no.jsonl': no such file",
        "stage short: data.path = 'no.jsonl': no such file",
        "stage long: data.path = 'no.jsonl': no such file",
        "stage long: data.eval_path = 'no.csv': no such file",
        "stage rejection: data.path = 'no.jsonl': no such file",
        "stage small: policy.model = './nowhere': no such folder",
    ]
    (tmp_path / "no.jsonl").touch()
    assert len(list(missing_files(load(path, files)))) == 2
