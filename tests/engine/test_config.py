"""What a recipe may say, and what it is told when it says something else."""

import pytest
import tomli_w

from verigrad.engine import config, stage_recipe
from verigrad.engine.catalogue import ROWS
from verigrad.engine.config import RECIPES, Config, ConfigError

NAMES = """
train.num_steps train.seed run.folder run.save_every eval.every policy.model data.path verifier.name
algorithm.name rollout.group_size rollout.groups_per_step rollout.max_tokens rollout.temperature
"""


def recipe(tmp_path, **sections):
    tree = {"policy": {"model": "some/model"}, "data": {"path": "rows.jsonl"}}
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    path = tmp_path / "my.toml"
    path.write_text(tomli_w.dumps(tree))
    return str(path)


@pytest.fixture
def plain(tmp_path):
    return recipe(tmp_path)


def error(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        config.load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_names_others_lean_on_exist():
    assert set(NAMES.split()) <= set(config.settings())


def test_every_setting_and_section_is_explained():
    for name, section in Config.model_fields.items():
        assert "engine/" in section.annotation.__doc__ or "verifiers/" in section.annotation.__doc__, name
        for key, setting in section.annotation.model_fields.items():
            assert setting.description, f"{name}.{key} has no docstring"
            assert len(setting.description) < 250, f"{name}.{key}"


def test_every_setting_but_the_model_and_the_data_has_a_default():
    assert Config().train.num_steps == 100
    for section in Config.model_fields.values():
        assert not [key for key, s in section.annotation.model_fields.items() if s.is_required()]


PAIRED = ("online_dpo", "online_ipo", "online_simpo")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_and_are_short(path):
    read = stage_recipe.load if "stage" in config.read_tree(path) else config.load
    assert read(path.stem) == read(str(path))
    assert len(path.read_text().splitlines()) <= 40


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    ("old", "correction"),
    [("trainer", None), ("trainer", "none"), ("trainer", "tis"), ("rollout", None), ("rollout", "none")],
)
def test_the_resolved_recipe_loads_as_itself(tmp_path, name, old, correction):
    if (name, old) == ("otb", "rollout") or (correction == "tis" and name in ("prime", *PAIRED)):
        return  # refused, see below
    algorithm = {"name": name, "old_logprobs": old} | ({"correction": correction} if correction else {})
    first = config.load(recipe(tmp_path, algorithm=algorithm, policy={"dtype": "bfloat16"}))
    again = tmp_path / "again.toml"
    again.write_text(config.to_toml(first))
    assert config.load(str(again)) == first
    assert config.differences(config.load(str(again)), first) == []


@pytest.mark.parametrize(
    "overrides",
    [
        "algorithm.kl_coef=0.1 algorithm.kl_target=0.05 algorithm.ref_sync_every=3",
        "algorithm.kl_coef=0.1 algorithm.kl_place=reward",
        "algorithm.reject=sequence_max algorithm.reject_measure=k2 algorithm.entropy_target=1",
        "algorithm.reject=token algorithm.correction=geometric_mask algorithm.correction_norm=true",
        "algorithm.advantage=gdpo algorithm.part_weights={right=1,format=0.1} algorithm.loss=vespo",
        "algorithm.loss=prime lora.rank=8 lora.load=adapter",
    ],
)
def test_a_resolved_recipe_of_many_parts_loads_as_itself(tmp_path, plain, overrides):
    first = config.load(plain, overrides.split())
    again = tmp_path / "again.toml"
    again.write_text(config.to_toml(first))
    assert config.load(str(again)) == first


def test_the_record_leaves_nothing_open(plain):
    cfg = config.load(plain)
    assert cfg.run.folder == "runs/my"
    assert (cfg.algorithm.clip_low, cfg.algorithm.clip_high, cfg.algorithm.std_eps) == (0.2, 0.28, 1e-6)
    assert cfg.algorithm.correction_high == 5.0
    assert cfg.dynamic_sampling.enabled is True
    assert (cfg.sync.max_canary_gap, cfg.sync.max_mismatch_kl) == (1e-3, 1e-3)


def test_bypass_records_that_nothing_is_corrected(plain):
    cfg = config.load(plain, ["algorithm.old_logprobs=rollout"])
    assert (cfg.algorithm.correction, cfg.algorithm.correction_high) == ("none", None)


def test_sets_of_held_out_problems_load_as_themselves_and_differ_by_name(tmp_path, plain):
    one = ["data.evals.d.path=x.jsonl", "data.evals.d.num_samples=4", "data.evals.d.temperature=0.5"]
    first = config.load(plain, [*one, "data.evals.e={path = 'org/name', columns = {prompt = 'q'}}"])
    again = tmp_path / "again.toml"
    again.write_text(config.to_toml(first))
    assert config.load(str(again)) == first
    assert config.differences(config.load(plain, one), first) == [
        "data.evals.e: {'path': 'org/name', 'columns': {'prompt': 'q'}} -> None"
    ]
    (changed,) = config.differences(first, config.load(str(again), ["data.evals.e.num=2"]))
    assert changed.startswith("data.evals.e: ")
    assert "'num': 2" in changed


def test_differences_name_both_values(plain):
    ours, theirs = config.load(plain, ["train.seed=3"]), config.load(plain)
    assert config.differences(ours, theirs) == ["train.seed: 0 -> 3"]


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("train.num_steps=7", "train.num_steps", 7),
        ("optim.lr=1e-6", "optim.lr", 1e-6),
        (" optim.lr = 2e-6 ", "optim.lr", 2e-6),
        ("rollout.stop=['a', \"b\"]", "rollout.stop", ["a", "b"]),
        ("data.shuffle=false", "data.shuffle", False),
        ("data.path=x.jsonl", "data.path", "x.jsonl"),
        ('data.path="x.jsonl"', "data.path", "x.jsonl"),
        ("data.path=a=b.jsonl", "data.path", "a=b.jsonl"),
        ("data.path=dir with space/x#1.jsonl", "data.path", "dir with space/x#1.jsonl"),
        ("run.folder=2026-01-31", "run.folder", "2026-01-31"),
        ("run.folder=7", "run.folder", "7"),
        ("run.folder=007", "run.folder", "007"),
        ("run.folder=true", "run.folder", "true"),
        ("prompts.prefill=<think>", "prompts.prefill", "<think>"),
        ("verifier.options.depth=-2", "verifier.options", {"depth": -2}),
        ("verifier.options={depth = 3}", "verifier.options", {"depth": 3}),
        ("optim.betas=[0.8, 0.9]", "optim.betas", [0.8, 0.9]),
        ("data.evals.aime.path=7", "data.evals.aime", {"path": "7"}),
        ("data.evals.a-b_1={path = 'x', num = 3}", "data.evals.a-b_1", {"path": "x", "num": 3}),
    ],
)
def test_overrides(plain, override, name, value):
    assert config.flatten(config.load(plain, [override]))[name] == value


def test_the_last_override_wins(plain):
    assert config.load(plain, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize("override", ["train.seed", "seed=1", "=1", "train.=1", ".seed=1", "train"])
def test_what_is_no_override(plain, override):
    assert f"override {override!r} is not of the form section.key=value" in error(plain, override)


def test_an_override_below_a_value(plain):
    assert "model is a value, not a section" in error(plain, "policy.model.size=3")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rollout.group_sise=4", "rollout.group_sise is not a setting; did you mean rollout.group_size?"),
        ("rolout.group_size=4", "rolout is not a setting; did you mean [rollout]?"),
        ("train.lr=1", "train.lr is not a setting; did you mean optim.lr?"),
        ("policy.max_tokens=1", "policy.max_tokens is not a setting; did you mean rollout.max_tokens?"),
        ("train.zzz=1", "train.zzz is not a setting; [train] holds num_steps, seed,"),
        ("zzz.a=1", "zzz is not a setting; sections: train, run, data"),
        ("train.num_steps=-3", "train.num_steps = -3: input should be greater than or equal to 1"),
        ("train.num_steps=many", "train.num_steps = 'many': input should be a valid integer"),
        ("train.num_steps=true", "train.num_steps = True: true and false fit no setting of this kind"),
        ("optim.lr=true", "optim.lr = True: true and false fit no setting of this kind"),
        ("optim.lr=nan", "optim.lr = nan: input should be a finite number"),
        ("rollout.temperature=0", "rollout.temperature = 0: input should be greater than 0"),
        ("optim.betas=[0.9, 1.5]", "optim.betas.1 = 1.5: input should be less than 1"),
        ("rollout.backend=sglang", "rollout.backend = 'sglang': input should be 'auto', 'vllm' or"),
        ("algorithm.name=dpo", "algorithm.name = 'dpo' is not known; did you mean"),
        ("algorithm.name=xyz", "algorithm.name = 'xyz' is not known; expected one of grpo, dr_grpo"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(plain, override, says):
    message = error(plain, override)
    assert message.startswith("my.toml: ")
    assert says in message


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("policy.model=''", "policy.model is empty; set"),
        ("data.path=''", "data.path is empty; set"),
        ("data.num_eval=0", "holds nothing out; set data.num_eval"),
        ("rollout.group_size=1", "set rollout.group_size >= 2, or algorithm.name = 'ppo'"),
        (
            "algorithm.name=ppo_batch_norm rollout.group_size=1 dynamic_sampling.enabled=true",
            "set dynamic_sampling.enabled = false",
        ),
        ("rollout.top_p=0.9", "train with top_p = 1 and top_k = 0"),
        ("rollout.top_k=20", "train with top_p = 1 and top_k = 0"),
        ("rollout.stop=['a','']", "rollout.stop holds an empty string"),
        ("train.num_minibatches=5", "make the first a multiple of the second"),
        ("policy.tokens_per_batch=2000", "cannot hold one rollout of up to"),
        ("algorithm.overlong_buffer_tokens=1024", "must be less than rollout.max_tokens = 1024; lower it"),
        ("optim.schedule=cosine optim.warmup_steps=100", "leaves no step for optim.schedule = 'cosine'"),
        ("algorithm.correction_low=1.5", "must lie on both sides of 1"),
        ("algorithm.correction_high=0.9", "must lie on both sides of 1"),
        ("algorithm.correction=tis algorithm.correction_high=0.5", "set it to at least 1"),
        ("algorithm.overlong_filter=true algorithm.overlong_buffer_tokens=10", "choose one"),
        ("eval.pass_k=[1,4]", "eval.pass_k = [4]: each k must be from 1 to eval.num_samples = 1"),
        ("eval.pass_k=[0]", "eval.pass_k = [0]"),
        ("eval.num_samples=4", "has no effect at eval.temperature = 0"),
        ("eval.every=0 eval.temperature=0.5", "eval.temperature has no effect with eval.every = 0"),
        (
            "algorithm.name=rloo algorithm.std_eps=1e-4",
            "algorithm.std_eps has no effect: advantage 'leave_one",
        ),
        ("algorithm.ratio_cap=3", "advantage 'group_norm' and loss 'clip' do not take it; remove it"),
        ("algorithm.part_weights={a=1}", "algorithm.part_weights has no effect with advantage 'group_norm'"),
        (
            "algorithm.name=pkpo algorithm.pass_k=9",
            "algorithm.pass_k = 9 is more than rollout.group_size = 8",
        ),
        (
            "algorithm.name=pass_at_k rollout.group_size=4",
            "one right answer in a group then gives every",
        ),
        ("algorithm.name=pass_at_k rollout.group_size=2", "algorithm.pass_k = 4 is more than rollout.group_"),
        ("algorithm.clip_low=1.5 train.num_minibatches=2", "asks for a negative ratio"),
        ("algorithm.name=dppo algorithm.clip_high=2 train.num_minibatches=2", "set them to at most 1"),
        ("algorithm.name=cispo algorithm.ratio_cap=0.5 train.num_minibatches=2", "on both sides of 1"),
        ("algorithm.name=sapo algorithm.tau_pos=2", "algorithm.tau_pos has no effect with train.num_min"),
        ("algorithm.name=prime algorithm.correction=tis", "loss 'prime': its ratio is already taken against"),
        ("algorithm.correction=none algorithm.correction_norm=true", "correction_norm has no effect"),
        ("algorithm.correction=sequence_tis algorithm.correction_low=0.1", "correction_low has no effect"),
        ("algorithm.correction=geometric_mask algorithm.correction_low=1.1", "lie on both sides of 1"),
        ("algorithm.name=pkpo algorithm.overlong_buffer_tokens=9", "reads only right or wrong; set it to 0"),
        ("algorithm.reject_high=3", "algorithm.reject_high has no effect with reject = 'none'"),
        ("algorithm.reject_measure=k2", "algorithm.reject_measure has no effect with reject = 'none'"),
        ("algorithm.reject=token algorithm.reject_low=2", "must lie on both sides of 1"),
        ("algorithm.reject=token algorithm.reject_measure=k3 algorithm.reject_low=0.1", "no effect with rej"),
        ("algorithm.reject=token algorithm.old_logprobs=rollout", "set old_logprobs = 'trainer'"),
        ("algorithm.name=otb algorithm.old_logprobs=rollout", "set old_logprobs = 'trainer'"),
        ("algorithm.top_entropy_frac=0.2 algorithm.old_logprobs=rollout", "set old_logprobs = 'trainer'"),
        ("algorithm.kl_target=0.1", "algorithm.kl_target has no effect with kl_coef = 0"),
        ("algorithm.kl_place=reward", "algorithm.kl_place has no effect with kl_coef = 0"),
        ("algorithm.ref_sync_every=5", "algorithm.ref_sync_every has no effect with kl_coef = 0"),
        ("algorithm.kl_coef=0.1 algorithm.kl_estimator=k1", "an expected gradient of exactly 0"),
        (
            "algorithm.kl_coef=0.1 algorithm.kl_place=reward algorithm.kl_estimator=k3_ratio",
            "in the gradient",
        ),
        ("algorithm.kl_coef=0.1 algorithm.kl_horizon=100", "kl_horizon has no effect without kl_target"),
        ("algorithm.kl_coef=0.1 algorithm.ref_sync_mix=0.5", "no effect with ref_sync_every = 0"),
        ("algorithm.entropy_delta=0.1", "entropy_delta has no effect without entropy_target"),
        ("algorithm.entropy_target=1 algorithm.entropy_coef=2", "above 1"),
        ("algorithm.loss=clipp", "algorithm.loss = 'clipp' is not known; did you mean 'clip'?"),
        (
            "algorithm.aggregation=tokens",
            "algorithm.aggregation = 'tokens' is not known; did you mean 'token_",
        ),
        ("algorithm.old_logprobs=rollout algorithm.correction=tis", "remove one of the two"),
        ("algorithm.old_logprobs=rollout algorithm.correction=icepop", "remove one of the two"),
        ("algorithm.old_logprobs=rollout algorithm.correction_low=0.1", "remove one of the two"),
        ("algorithm.correction=tis algorithm.correction_low=0.1", "no effect with correction = 'tis'"),
        ("algorithm.correction=none algorithm.correction_high=3", "no effect with correction = 'none'"),
        (
            "algorithm.name=gspo algorithm.advantage=optimal_token_baseline",
            "loss 'gspo' needs one advantage per rollout, and advantage 'optimal_token_baseline' may give",
        ),
        ("algorithm.name=reinforce_pp algorithm.loss=gmpo", "algorithm.loss = 'gspo_token' or another loss"),
        (
            "algorithm.loss=sequence_clip algorithm.kl_coef=0.1 algorithm.kl_place=reward",
            "one advantage per rollout, and algorithm.kl_place = 'reward' may give each token its own",
        ),
        (
            "algorithm.loss=luspo algorithm.advantage=reinforce_pp algorithm.gamma=0.9",
            "advantage 'reinforce_pp' and algorithm.gamma = 0.9 may give",
        ),
        ("algorithm.off_policy_delta=0.1", "off_policy_delta has no effect with train.num_minibatches = 1"),
        ("algorithm.name=prime algorithm.off_policy_delta=0.1", "off_policy_delta has no effect with train."),
        ("algorithm.old_logprobs=rollout algorithm.correction_norm=true", "algorithm.correction_norm has no"),
        (
            "algorithm.old_logprobs=rollout algorithm.correction=none algorithm.correction_norm=true",
            "algorithm.correction_norm has no effect with algorithm.old_logprobs = 'rollout'",
        ),
        (
            "algorithm.old_logprobs=rollout algorithm.correction=none algorithm.correction_high=2",
            "algorithm.correction_high has no effect with algorithm.old_logprobs = 'rollout'",
        ),
        (
            "algorithm.name=prime algorithm.correction=none algorithm.correction_norm=true",
            "algorithm.correction_norm has no effect with loss 'prime'",
        ),
        ("algorithm.clip_high=0.3", "algorithm.clip_high has no effect with train.num_minibatches = 1"),
        ("algorithm.clip_low=0.1", "algorithm.clip_low has no effect with train.num_minibatches = 1"),
        ("algorithm.kl_estimator=k2", "algorithm.kl_estimator has no effect with kl_coef = 0"),
        ("dynamic_sampling.enabled=false dynamic_sampling.oversample=2", "oversample has no effect"),
        ("algorithm.name=grpo dynamic_sampling.oversample=2", "oversample has no effect"),
        ("rollout.backend=transformers rollout.kv_cache_gb=2", "rollout.kv_cache_gb has no effect with"),
        ("policy.device=cpu rollout.sleep=false", "rollout.sleep has no effect with policy.device = 'cpu'"),
        ("policy.device=cuda rollout.kv_cache_gb=2", "no effect with policy.device = 'cuda'"),
        ("prompts.system=Think. prompts.chat=never", "prompts.system has no effect with prompts.chat"),
        ("data.options={n=1}", "data.options are for makers"),
        ("policy.options={n=1}", "policy.options are for makers"),
        ("data.split=test", "data.split has no effect"),
        ("data.eval_split=train", "data.eval_split has no effect without data.eval_path"),
        ("data.evals.d.path=x.csv data.evals.d.split=dev", "data.evals.d.split has no effect"),
        ("data.evals.d.path=x.csv data.evals.d.options={n=1}", "data.evals.d.options are for makers"),
        (
            "data.evals.d.path=x.csv data.evals.d.num_samples=2",
            "data.evals.d.num_samples = 2 has no effect at",
        ),
        (
            "data.evals.d.path=x.csv data.evals.d.num_samples=2 data.evals.d.temperature=1 eval.pass_k=[4]",
            "each k must be from 1 to data.evals.d.num_samples = 2",
        ),
        ("data.evals.d.path=x.csv data.evals.d.temprature=1", "did you mean temperature?"),
        ("data.evals.d.num=1", "data.evals.d.path is missing; set it"),
        ("data.evals.a/b.path=x.csv", "may hold only letters, digits, _ and -"),
        ("data.eval_split=train data.eval_path=x.csv", "data.eval_split has no effect: data.eval_path"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(plain, overrides, says):
    assert says in error(plain, *overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "algorithm.name=ppo rollout.group_size=1",
        "algorithm.clip_high=0.3 train.num_minibatches=2",
        "algorithm.clip_high=0.3 algorithm.old_logprobs=rollout",
        "algorithm.clip_high=0.28",
        "algorithm.old_logprobs=rollout algorithm.correction=none",
        "algorithm.off_policy_delta=0.1 train.num_minibatches=2",
        "algorithm.off_policy_delta=0.1 algorithm.old_logprobs=rollout",
        "algorithm.loss=gspo algorithm.kl_coef=0.1",
        "algorithm.loss=gspo_token algorithm.advantage=reinforce_pp algorithm.gamma=0.9",
        "algorithm.loss=vespo algorithm.kl_coef=0.1 algorithm.kl_place=reward",
        "algorithm.kl_estimator=k2 algorithm.kl_coef=0.1",
        "algorithm.name=grpo dynamic_sampling.enabled=true dynamic_sampling.oversample=2",
        "data.path=org/name data.split=test",
        "data.path=my.rows:sums data.options={n=1}",
        "policy.model=my.models:tiny policy.options={n=1}",
        "data.num_eval=0 eval.every=0",
        "data.num_eval=0 data.eval_path=x.jsonl",
        "data.num_eval=0 data.evals.d.path=x.jsonl",
        "data.evals.d.path=x.jsonl data.evals.d.num_samples=4 data.evals.d.temperature=1 eval.pass_k=[4]",
        "eval.num_samples=4 eval.temperature=1 eval.pass_k=[1,4]",
        "optim.warmup_steps=100",
    ],
)
def test_what_is_not_a_contradiction(plain, overrides):
    config.load(plain, overrides.split())


def test_all_that_is_wrong_is_said_at_once(plain):
    message = error(plain, "rollout.group_sise=4", "train.num_steps=0")
    assert "rollout.group_size" in message
    assert "train.num_steps = 0" in message


def test_no_such_recipe(tmp_path):
    assert "did you mean quickstart?" in error("quikstart")
    assert "shipped recipes: " in error("zzz")
    assert f"no file {tmp_path}/none.toml (looked from " in error(str(tmp_path / "none.toml"))
    (tmp_path / "my_labels.toml").touch()
    assert "correct the path" in error(str(tmp_path / "none.toml"))  # the folder in common is no likeness
    assert f"did you mean {tmp_path}/my_labels.toml?" in error(str(tmp_path / "my_lables.toml"))


def test_a_file_that_is_not_toml(tmp_path):
    (tmp_path / "bad.toml").write_text("[train\nx")
    assert "bad.toml: not a TOML file: " in error(str(tmp_path / "bad.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "not a TOML file" in error(str(tmp_path / "bytes.toml"))


def test_a_section_that_is_a_value(tmp_path):
    (tmp_path / "flat.toml").write_text("run = 3\ntrain = 5\n")
    message = error(str(tmp_path / "flat.toml"))
    assert "train = 5" in message
    assert "run = 3" in message


def test_batch_algebra_by_hand(plain):
    overrides = "rollout.group_size=8 rollout.groups_per_step=6 train.num_minibatches=3 train.num_steps=10"
    sizes = "rollout.max_prompt_tokens=100 rollout.max_tokens=150 policy.tokens_per_batch=600"
    lines = dict(config.batch_algebra(config.load(plain, [*overrides.split(), *sizes.split()])))
    assert lines["rollouts per step"] == "6 groups x 8 = 48"
    assert lines["optimizer steps"] == "10 steps x 3 = 30, each over 16 rollouts"
    assert lines["tokens per optimizer step"] == "at most 16 x 250 = 4,000"
    assert lines["packed passes per optimizer step"] == "at most 8 of 600 tokens"  # two rollouts in each
    assert lines["groups sampled per step"] == "6 to 18 (dynamic sampling)"
    assert lines["rollouts in the run"] == "at least 480"


def test_the_algebra_caps_sampling_as_the_loop_does(plain):
    from verigrad.engine.dynamic_sampling import sampling_cap

    cfg = config.load(plain, ["dynamic_sampling.oversample=1.0001", "rollout.groups_per_step=4"])
    assert dict(config.batch_algebra(cfg))["groups sampled per step"].startswith("4 to 5 ")
    assert sampling_cap(4, oversample=1.0001) == 5
