"""engine/lora.py, and what policy, sampler, sync and checkpoints make of it."""

import copy
import json

import pytest
import torch

from tests.tiny import Forked, config, model_folder, random_groups, write_recipe
from verigrad.engine import lora, model_files
from verigrad.engine.aggregation import token_mean
from verigrad.engine.algorithms import build
from verigrad.engine.config import ConfigError, load
from verigrad.engine.pack import lay_out, pack
from verigrad.engine.policy import Policy
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout import Sampler
from verigrad.engine.rollout_backends import build_engine
from verigrad.engine.sync import WeightSync, WeightSyncError
from verigrad.verifiers.base import Problem

PROBLEMS = [Problem("a", "1+2=", "3"), Problem("b", "12*3=", "36")]
BACKENDS = ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)]


def settings(*, backend="transformers", tied=False, algorithm=None, **lora_settings):
    return config(
        lora={"rank": 4, **lora_settings},
        policy={"model": model_folder(tied=tied)},
        rollout={"backend": backend},
        algorithm=algorithm or {},
    )


def policy_of(cfg, *, adapter=None):
    folder = cfg.policy.model
    return Policy(
        cfg, str(adapter or folder), tokenizer=model_files.fetch(cfg).tokenizer, start_folder=folder
    )


def train(policy, cfg, *, steps=2, seed=0):
    algorithm = build(cfg)
    batches = pack(random_groups(seed=seed), token_mean, max_tokens=512)
    for _ in range(steps):
        frozen = policy.frozen(batches, with_old=False)
        policy.update(frozen, algorithm.loss, algorithm.coefs, step=1, first=True)


def logprobs(policy, **options):
    groups = random_groups(seed=1)
    batch = lay_out([rollout for group in groups for rollout in group.rollouts])
    return policy.logprobs(batch, temperature=1.0, **options)


def test_a_new_adapter_changes_nothing_and_alone_is_trained():
    cfg = settings()
    policy, plain = policy_of(cfg), policy_of(config(policy={"model": cfg.policy.model}))
    assert torch.equal(logprobs(policy), logprobs(plain))
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2  # A and B of seven linear layers in each of two blocks
    assert all("lora_" in name for name in trained)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    train(policy, cfg)
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained


def test_targets_choose_the_layers():
    policy = policy_of(settings(targets=["q_proj", "v_proj"]))
    trained = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert {name.split(".self_attn.")[1].split(".")[0] for name in trained} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("targets", [["nothing"], ["lm_head"], ["embed_tokens"], ["q_proj", "nope"]])
def test_targets_that_cannot_be_are_refused(targets):
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        policy_of(settings(targets=targets))


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_have_the_names_and_the_function_of_the_whole(tied):
    cfg = settings(tied=tied)
    policy = policy_of(cfg)
    train(policy, cfg)
    plain = policy_of(config(policy={"model": cfg.policy.model}))
    weights = dict(policy.weights())
    assert weights.keys() == {name for name, _ in plain.model.named_parameters()}
    plain.model.load_state_dict(weights, strict=not tied)
    torch.testing.assert_close(logprobs(plain), logprobs(policy), rtol=0, atol=5e-5)
    assert (logprobs(policy) - logprobs(policy_of(cfg))).abs().max() > 1e-3  # it did move


def test_the_reference_is_the_model_without_its_adapter():
    cfg = settings(algorithm={"kl_coef": 0.1})
    policy = policy_of(cfg)
    assert policy.reference is None
    start = logprobs(policy)
    train(policy, cfg)
    assert torch.equal(logprobs(policy, reference=True), start)
    assert not torch.equal(logprobs(policy), start)  # and it is switched on again


def test_a_checkpoint_holds_the_adapter_alone_and_is_taken_up_to_the_bit(tmp_path):
    cfg = settings()
    policy = policy_of(cfg)
    train(policy, cfg)
    policy.save_model(tmp_path)
    assert not (tmp_path / "config.json").exists()
    assert not list(tmp_path.glob("model*.safetensors"))
    again = policy_of(cfg, adapter=tmp_path)
    assert torch.equal(logprobs(again), logprobs(policy))
    again.load_state(copy.deepcopy(policy.state()))
    train(policy, cfg, steps=1, seed=5)
    train(again, cfg, steps=1, seed=5)
    assert torch.equal(logprobs(again), logprobs(policy))


def test_an_adapter_folder_is_a_model_for_whoever_asks(tmp_path):
    cfg = settings()
    policy = policy_of(cfg)
    train(policy, cfg)
    policy.save_model(tmp_path)
    whole = config(policy={"model": str(tmp_path)})
    files = model_files.fetch(whole)
    merged = Policy(whole, files.folder, tokenizer=files.tokenizer, start_folder=files.folder)
    torch.testing.assert_close(logprobs(merged), logprobs(policy), rtol=0, atol=5e-5)
    assert model_files.fetch(whole).folder == files.folder  # made once


def test_an_adapter_of_another_model_is_refused(tmp_path):
    policy_of(settings(targets=["q_proj"])).save_model(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="no adapter that can be read"):
        policy_of(settings(), adapter=tmp_path)
    with pytest.raises(ConfigError, match="does not go on"):
        model_files.fetch(config(policy={"model": str(tmp_path)}))
    policy_of(settings(rank=8)).save_model(tmp_path)
    with pytest.raises(ConfigError, match="of another model or rank"):
        policy_of(settings(rank=4), adapter=tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="does not go on"):
        model_files.fetch(config(policy={"model": str(tmp_path)}))
    (tmp_path / lora.ADAPTER_CONFIG).write_text("[1]")
    with pytest.raises(ConfigError, match="is no adapter's config"):
        model_files.fetch(config(policy={"model": str(tmp_path)}))
    (tmp_path / lora.ADAPTER_CONFIG).write_text(json.dumps({"r": 4}))
    with pytest.raises(ConfigError, match="base_model_name_or_path"):
        model_files.fetch(config(policy={"model": str(tmp_path)}))


@pytest.mark.parametrize("load", ["merged", "adapter"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_version_reaches_the_sampler_and_the_canary_proves_it(backend, load):
    cfg = settings(backend=backend, load=load)
    policy, files = policy_of(cfg), model_files.fetch(cfg)
    engine = build_engine(cfg, cfg.policy.model, eos_ids=files.eos_ids, seed=0)
    try:
        sampler = Sampler(engine, Prompter(files.tokenizer, cfg.prompts))
        sync = WeightSync(policy, sampler, PROBLEMS, cfg=cfg)
        for version in range(4):  # more than vLLM has room for at once
            assert sync.push(version)["canary_gap"] < 3e-5
            train(policy, cfg, seed=version)
        with pytest.raises(WeightSyncError, match="disagree"):
            sync.prove()  # the last training was not pushed
    finally:
        engine.close()


@pytest.mark.parametrize("load", ["merged", "adapter"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, load):
    runs = {}
    for name, steps in (("whole", [5]), ("halves", [2, 5])):
        folder = tmp_path / name
        folder.mkdir()
        recipe = write_recipe(folder)
        for num_steps in steps:
            settings = ["lora.rank=4", f"lora.load={load}", f"train.num_steps={num_steps}"]
            status, printed = Forked("train", recipe.name, *settings, folder=folder).wait()
            assert status == 0, printed
        rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
        runs[name] = [
            {
                k: v
                for k, v in row.items()
                if "seconds" not in k and k != "tokens_per_s" and not k.startswith("verify/")
            }
            for row in rows
        ]
        assert not list((folder / "run/checkpoints").glob("*/model*.safetensors"))
    assert runs["whole"] == runs["halves"]
    assert any(row["loss"] for row in runs["whole"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lora.alpha=8"], "lora.alpha has no effect with lora.rank = 0"),
        (["lora.rank=4", "algorithm.kl_coef=0.1", "algorithm.ref_sync_every=2"], "cannot move"),
        (["lora.rank=-1"], "lora.rank = -1"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path, overrides, says):
    with pytest.raises(ConfigError, match=says):
        load(str(write_recipe(tmp_path)), overrides)


@pytest.mark.vllm
def test_a_rank_beyond_vllm_is_refused():
    from verigrad.engine.rollout_vllm import adapter_settings

    with pytest.raises(ConfigError, match="more than the 512"):
        adapter_settings(settings(rank=513, load="adapter"))
    assert adapter_settings(settings(rank=9, load="adapter"))["max_lora_rank"] == 16
