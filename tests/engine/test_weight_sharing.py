"""engine/weight_sharing.py: where each weight stands in a fused model, and what a step does to both."""

import dataclasses

import pytest
import torch
from torch import nn

from tests.tiny import config, model_folder, tokenizer
from verigrad.engine.config import ConfigError, PromptsConfig
from verigrad.engine.policy import Policy
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout import Sampler, SamplingParams, TokenRequest
from verigrad.engine.rollout_backends import build_engine
from verigrad.engine.sync import WeightSync, WeightSyncError
from verigrad.engine.weight_sharing import Layout, NoLayout, connect, plain_linear
from verigrad.verifiers.base import Problem

LONG = "5+7=" * 45  # longer than a block of vLLM's prefix cache
PROBLEMS = [Problem("0", "1+1=", "2"), Problem("1", LONG, "12")]


class Fused(nn.Module):
    """As vLLM holds a block: q and k in one tensor, a vocabulary padded to 8 rows."""

    packed_modules_mapping = {"qk_proj": ["q_proj", "k_proj"]}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 2)
        self.embed.num_embeddings_padded = 8
        self.layer = nn.Module()
        self.layer.qk_proj = nn.Linear(2, 5)
        self.requires_grad_(False)


class Plain(nn.Module):
    """As transformers holds it: 6 tokens, q of 3 rows, k of 2."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 2)
        self.layer = nn.Module()
        self.layer.q_proj, self.layer.k_proj = nn.Linear(2, 3), nn.Linear(2, 2)


def shapes(model):
    return {name: p.shape for name, p in model.named_parameters()}


def test_weights_are_written_one_after_the_other_into_the_fused_tensor():
    fused, plain = Fused(), Plain()
    Layout(fused, shapes(plain)).write(plain.named_parameters())
    assert torch.equal(fused.layer.qk_proj.weight[:3], plain.layer.q_proj.weight)
    assert torch.equal(fused.layer.qk_proj.weight[3:], plain.layer.k_proj.weight)
    assert torch.equal(fused.layer.qk_proj.bias[3:], plain.layer.k_proj.bias)
    assert torch.equal(fused.embed.weight[:6], plain.embed.weight)


def test_shared_parameters_keep_their_values_and_carry_an_optimizer_step_over():
    fused, plain = Fused(), Plain()
    before = {name: p.clone() for name, p in plain.named_parameters()}
    Layout(fused, shapes(plain)).share(plain)
    assert all(torch.equal(p, before[name]) for name, p in plain.named_parameters())
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    plain.layer.k_proj.weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    optimizer.step()
    expected = before["layer.k_proj.weight"] - torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(fused.layer.qk_proj.weight[3:], expected)
    assert torch.equal(fused.layer.qk_proj.weight[:3], before["layer.q_proj.weight"])


def test_other_weights_than_the_shared_ones_can_still_be_written():
    fused, plain, other = Fused(), Plain(), Plain()
    layout = Layout(fused, shapes(plain))
    layout.share(plain)
    layout.write(plain.named_parameters())  # onto themselves
    layout.write(other.named_parameters())
    assert torch.equal(plain.layer.q_proj.weight, other.layer.q_proj.weight)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s.pop("layer.k_proj.bias"), "no weight 'layer.k_proj.bias'"),
        (lambda s: s.update({"layer.k_proj.weight": torch.Size([3, 2])}), r"is \(5, 2\), the trainer's"),
        (lambda s: s.update({"layer.q_proj.weight": torch.Size([3, 4])}), r"is \(5, 2\), the trainer's"),
        (lambda s: s.update({"embed.weight": torch.Size([9, 2])}), r"is \(8, 2\), the trainer's"),
        (lambda s: s.update({"extra.weight": torch.Size([1])}), "no layer 'extra'"),
        (lambda s: s.pop("embed.weight"), "embed.weight is none of the trainer's"),
    ],
)
def test_a_model_of_another_form_has_no_layout(spoil, says):
    wanted = shapes(Plain())
    spoil(wanted)
    with pytest.raises(NoLayout, match=says):
        Layout(Fused(), wanted)


def test_weights_that_are_missing_or_strange_are_refused():
    layout, plain = Layout(Fused(), shapes(Plain())), Plain()
    weights = dict(plain.named_parameters())
    del weights["embed.weight"], weights["layer.q_proj.bias"]
    with pytest.raises(NoLayout, match=r"2 weights were not sent, 'embed\.weight'"):
        layout.write(weights.items())
    with pytest.raises(NoLayout, match="'other' has no place"):
        layout.write([("other", torch.zeros(1))])


def test_another_number_type_is_not_shared():
    fused, plain = Fused().to(torch.bfloat16), Plain()
    before = plain.embed.weight.data_ptr()
    with pytest.raises(NoLayout, match=r"float32 on cpu in the trainer and torch\.bfloat16 on cpu"):
        Layout(fused, shapes(plain)).share(plain)
    assert plain.embed.weight.data_ptr() == before


def test_values_in_another_order_are_noticed():
    fused, plain = Fused(), Plain()
    layout = Layout(fused, shapes(plain))
    layout.write(plain.named_parameters())
    assert layout.holds(plain.named_parameters())
    fused.layer.qk_proj.weight.copy_(fused.layer.qk_proj.weight.roll(1, 0))
    assert not layout.holds(plain.named_parameters())


@pytest.mark.parametrize("rows", [1, 7, 128, 300])
def test_plain_products_are_right_whatever_the_rows(rows):
    x, weight, bias = torch.randn(rows, 24), torch.randn(40, 24), torch.randn(40)
    with torch.inference_mode():
        torch.testing.assert_close(plain_linear(x, weight, bias), x @ weight.T + bias)
        torch.testing.assert_close(plain_linear(x, weight, None), x @ weight.T)


def test_a_route_that_cannot_be_is_said_in_one_line():
    folder = model_folder()
    cfg = config(rollout={"backend": "transformers"})
    policy = Policy(cfg, folder, tokenizer=tokenizer(), start_folder=folder)
    engine = build_engine(cfg, folder, eos_ids=[1], seed=0)
    assert str(connect(policy, engine, "auto")).startswith("reload (the sampler is no vLLM engine")
    with pytest.raises(ConfigError, match=r"sync\.route = 'shared' cannot be here: the sampler is no vLLM"):
        connect(policy, engine, "shared")


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"rollout": {"backend": "transformers"}, "sync": {"route": "copy"}},
            "no effect with rollout.backend",
        ),
        ({"lora": {"rank": 4}, "sync": {"route": "shared"}}, "cannot be with lora.rank"),
        ({"lora": {"rank": 4, "load": "adapter"}, "sync": {"route": "copy"}}, "no effect with lora.load"),
        ({"policy": {"dtype": "bfloat16"}, "sync": {"route": "shared"}}, "cannot be with policy.dtype"),
    ],
)
def test_settings_that_contradict_are_refused(sections, says):
    from verigrad.engine.config_checks import contradictions

    assert any(says in line for line in contradictions(config(**sections)))


# -- with the real engine --------------------------------------------------------------------------------


ROUTES = [(route, tied) for tied in (False, True) for route in ("shared", "copy")]


@dataclasses.dataclass
class Joined:
    policy: Policy
    sync: WeightSync
    engine: object
    folder: str
    route: str


@pytest.fixture(scope="module", params=ROUTES, ids=lambda p: f"{p[0]}{'-tied' if p[1] else ''}")
def joined(request):
    route, tied = request.param
    folder = model_folder(tied=tied)
    cfg = config(
        sync={"route": route},
        policy={"tokens_per_batch": 2048},
        rollout={"backend": "vllm", "max_prompt_tokens": 250, "max_tokens": 20, "max_seqs": 16},
    )
    engine = build_engine(cfg, folder, eos_ids=[1], seed=0)
    policy = Policy(cfg, folder, tokenizer=tokenizer(), start_folder=folder)
    sync = WeightSync(policy, Sampler(engine, Prompter(tokenizer(), PromptsConfig())), PROBLEMS, cfg=cfg)
    assert sync.connect().route == route
    sync.push(0)
    yield Joined(policy, sync, engine, folder, route)
    engine.close()


def step(policy, size=1e-2):
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=size, fused=True)
    for p in policy.model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.vllm
def test_an_optimizer_step_reaches_the_engine_exactly(joined):
    for version in (1, 2):
        step(joined.policy)
        assert joined.sync.push(version)["canary_gap"] < 1e-5


@pytest.mark.vllm
def test_shared_weights_are_one_memory_and_copied_ones_are_not(joined):
    engines = {
        p.untyped_storage().data_ptr() for p in joined.engine.llm.apply_model(lambda m: m)[0].parameters()
    }
    ours = {p.untyped_storage().data_ptr() for p in joined.policy.model.parameters()}
    assert (ours <= engines) == (joined.route == "shared")


@pytest.mark.vllm
def test_a_checkpoint_is_taken_up_again_to_the_bit(joined, tmp_path):
    step(joined.policy)
    joined.policy.save_model(tmp_path)
    joined.sync.push(3)
    again = Policy(joined.policy.cfg, str(tmp_path), tokenizer=tokenizer(), start_folder=joined.folder)
    ours, theirs = dict(joined.policy.model.named_parameters()), dict(again.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size < 1.1 * sum(p.numel() * 4 for p in ours.values()) + 10_000


@pytest.mark.vllm
def test_a_prefix_left_in_the_cache_is_caught_by_the_canary(joined, monkeypatch):
    joined.sync.push(4)
    monkeypatch.setattr(joined.engine, "_reset_prefix_cache", lambda: None)
    joined.sync.prove()  # fills the cache with the prompts' blocks
    step(joined.policy, 0.05)
    with pytest.raises(WeightSyncError, match="trainer and sampler disagree"):
        joined.sync.push(5)
    monkeypatch.undo()
    joined.sync.push(6)


@pytest.mark.vllm
@pytest.mark.parametrize(
    "joined", [("copy", False), ("copy", True)], indirect=True, ids=["copy", "copy-tied"]
)
def test_sampling_is_what_it_is_by_vllms_own_loader_to_the_bit(joined):
    joined.sync.push(7)
    requests = [TokenRequest([5 + i % 4, 7, 9, 11], seed=i) for i in range(12)]

    def sampled():
        outputs = joined.engine.generate(requests, SamplingParams(1.0, 12))
        return {o.index: (list(o.token_ids), list(o.logprobs)) for o in outputs}

    before = sampled()
    weights = {name: w.clone() for name, w in joined.policy.weights()}
    joined.engine.lay_out(None)
    joined.engine.load_weights(weights.items())
    assert sampled() == before
