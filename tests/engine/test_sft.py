"""`verigrad sft`: the loss is the one of the reference vectors, and a run survives whatever ends it."""

import itertools
import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import vectors
from tests.engine.test_resume import assert_same, kill_when, rows, rows_or_none
from tests.tiny import Forked, config, model_folder, tokenizer
from tests.tiny_stages import write_sft
from verigrad.engine.config import Config, ConfigError, PromptsConfig, load, resolve, to_toml
from verigrad.engine.loss import merge, nll
from verigrad.engine.policy import Policy
from verigrad.engine.prompts import Prompter
from verigrad.engine.schema import Coefs, LossInputs
from verigrad.engine.sft import batches_of, held_out_losses, ratio_interval, require_positions
from verigrad.engine.sft_loss import dft
from verigrad.engine.sft_rows import Example
from verigrad.verifiers.base import Problem


def run_sft(folder, *overrides, timeout=120):
    return Forked("sft", "shown.toml", *overrides, folder=folder).wait(timeout)


# The loss --------------------------------------------------------------------------------------------------


def examples_of(vector):
    ids, mask = vector.inputs["input_ids"], vector.inputs["completion_mask"]
    bounds = [*vector.inputs["seq_starts"], len(ids)]
    return [Example(ids[a:b], [bool(m) for m in mask[a:b]]) for a, b in itertools.pairwise(bounds)]


def test_packing_and_loss_are_those_of_the_reference_vector():
    vector = vectors.load("sft_packed")
    [batch] = batches_of(examples_of(vector), 100)
    vector.check(batch.position_ids, "position_ids")
    labels = [-100, *torch.where(batch.loss_mask, batch.labels, -100)[:-1].tolist()]  # theirs: token-aligned
    vector.check(torch.tensor(labels), "labels")
    assert int(batch.loss_mask.sum()) == vector.expected["n_tokens"]

    loss, sums, grad = loss_and_gradient(nll, batch, vector.tensor("logits"))
    assert loss.item() == pytest.approx(vector.expected["loss"], abs=1e-6)
    assert merge([sums])["loss"] == pytest.approx(vector.expected["loss"], abs=1e-6)
    assert torch.allclose(grad, torch.tensor(vector.expected["grad_logits"]).double(), atol=1e-6)
    vector.check_no_bug(loss)


def loss_and_gradient(loss_fn, batch, logits):
    """The loss of a packed batch whose model gives these logits [T, V], its sums, and d loss / d logits."""
    logits = logits.requires_grad_()
    chosen = logits.log_softmax(-1).gather(-1, batch.labels[:, None])[:, 0][batch.loss_mask]
    zeros = torch.zeros_like(chosen)
    inputs = LossInputs(
        logprobs=chosen, old_logprobs=zeros, rollout_logprobs=zeros, ref_logprobs=None, entropy=None,
        advantages=zeros, weights=batch.loss_weights[batch.loss_mask].double(),
        sequence=torch.zeros(len(chosen), dtype=torch.int64),
    )  # fmt: skip
    loss, sums = loss_fn(inputs, Coefs(kl=0.0, entropy=0.0))
    loss.backward()
    return loss, sums, logits.grad


def test_dynamic_fine_tuning_is_that_of_the_reference_vector():
    vector, packed = vectors.load("sft_dft"), vectors.load("sft_packed")
    assert vector.inputs["labels"] == packed.expected["labels"]  # the same batch
    [batch] = batches_of(examples_of(packed), 100)
    loss, sums, grad = loss_and_gradient(dft, batch, vector.tensor("logits"))
    assert loss.item() == pytest.approx(vector.expected["loss"], abs=1e-6)
    assert merge([sums])["loss"] == pytest.approx(vector.expected["loss"], abs=1e-6)
    # each token's plain gradient times its probability, which is a constant
    likelihood = vector.tensor("logits").softmax(-1).gather(-1, batch.labels[:, None])
    plain = torch.tensor(packed.expected["grad_logits"]).double()
    assert torch.allclose(grad, plain * torch.where(batch.loss_mask[:, None], likelihood, 0), atol=1e-6)


@pytest.fixture(scope="module")
def policy():
    cfg = config(policy={"tokens_per_batch": 512})
    return Policy(cfg, model_folder(), tokenizer=tokenizer(), start_folder=model_folder())


EXAMPLES = [
    Example([5, 6, 7, 8, 1], [False, False, True, True, True]),
    Example([9, 10, 1], [False, True, True]),
    Example([4, 11, 12, 13, 14, 1], [False, True, False, True, True, True]),  # two turns
]


def by_hand(folder, example):
    """Minus log-likelihood of the learned tokens of one example on its own, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([example.token_ids])).logits[0].log_softmax(-1)
    return -sum(
        float(logits[t - 1, example.token_ids[t]])
        for t in range(1, len(example.token_ids))
        if example.loss_mask[t]
    )


@pytest.mark.parametrize("max_tokens", [6, 9, 100])
def test_held_out_losses_do_not_depend_on_packing(policy, max_tokens):
    losses, counts = held_out_losses(policy, EXAMPLES, max_tokens=max_tokens)
    assert sorted(counts) == [2, 3, 4]
    assert sorted(losses) == pytest.approx(sorted(by_hand(model_folder(), e) for e in EXAMPLES), abs=1e-4)


def test_the_loss_of_a_step_is_the_mean_over_its_learned_tokens():
    cfg = config(policy={"tokens_per_batch": 512})
    for max_tokens in (6, 100):
        fresh = Policy(cfg, model_folder(), tokenizer=tokenizer(), start_folder=model_folder())
        expected = sum(by_hand(model_folder(), example) for example in EXAMPLES) / 9
        done = fresh.update(batches_of(EXAMPLES, max_tokens), nll, Coefs(kl=0, entropy=0), step=1, first=True)
        assert merge(done.sums)["loss"] == pytest.approx(expected, abs=1e-4)


def test_the_interval_of_a_ratio_by_hand():
    mean, low, high = ratio_interval([2.0, 6.0, 4.0], [1, 2, 1])  # 12 / 4 = 3; residuals -1, 0, 1
    half = 1.959963984540054 * math.sqrt(2 * 3 / 2) / 4
    assert (mean, low, high) == pytest.approx((3.0, 3.0 - half, 3.0 + half))
    mean, low, high = ratio_interval([2.0], [4])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_examples_longer_than_the_models_positions_are_refused(policy):
    require_positions(policy.model.config, 512, setting="sft.max_length")
    with pytest.raises(
        ConfigError, match=r"has 513 tokens, more than the 512 positions .* sft.max_length = 512"
    ):
        require_positions(policy.model.config, 513, setting="sft.max_length")


# The recipe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("rollout.max_tokens=5", "[rollout] has no effect on `verigrad sft`; remove it"),
        ("verifier.name=math_answer", "[verifier] has no effect"),
        ("algorithm.kl_coef=0.1", "[algorithm] has no effect"),
        ("sync.max_canary_gap=1", "[sync] has no effect"),
        ("dynamic_sampling.enabled=false", "[dynamic_sampling] has no effect"),
        ("train.num_minibatches=1", "train.num_minibatches has no effect"),
        ("eval.num_samples=4", "eval.num_samples has no effect"),
        (
            "eval.num_samples=4 sync.max_canary_gap=1 data.evals.a.path=x",
            "data.evals, eval.num_samples, [sync] have no effect on `verigrad sft`; remove them",
        ),
        ("sample.num_samples=4", "[sample] is for `verigrad sample` and has no effect on `verigrad sft`"),
        (
            "sft.max_length=65",
            "policy.tokens_per_batch = 64 cannot hold one example of up to sft.max_length = 65",
        ),
        ("sft.batch_sise=4", "sft.batch_sise is not a setting; did you mean sft.batch_size?"),
        ("sft.batch_size=0", "sft.batch_size = 0"),
        ("data.num_eval=0", "eval.every > 0, but data.num_eval = 0 holds nothing out"),
        ("optim.schedule=cosine optim.warmup_steps=6", "leaves no step"),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused(tmp_path, overrides, says):
    write_sft(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "shown.toml"), overrides.split(), verb="sft")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_for_sft_is_refused_by_train_and_another_way_round(tmp_path):
    write_sft(tmp_path)
    with pytest.raises(
        ConfigError, match=r"\[sft\] is for `verigrad sft` and has no effect on `verigrad train`"
    ):
        load(str(tmp_path / "shown.toml"), verb="train")
    with pytest.raises(ConfigError, match=r"\[sft\] is for `verigrad sft`"):
        load(str(tmp_path / "shown.toml"), verb="sample")


def test_the_record_holds_what_is_read_and_loads_as_itself(tmp_path):
    write_sft(tmp_path)
    cfg = load(str(tmp_path / "shown.toml"))
    assert cfg.verb == "sft"
    text = to_toml(cfg)
    assert "[rollout]" not in text
    assert "num_minibatches" not in text
    (tmp_path / "again.toml").write_text(text)
    assert load(str(tmp_path / "again.toml")) == cfg
    assert resolve(Config()).verb == "train"


# Runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("sft")
    write_sft(folder)
    status, printed = run_sft(folder)
    assert status == 0, printed
    return folder


@pytest.fixture
def fresh(tmp_path, reference):
    for path in reference.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


def test_it_learns_and_records_every_step_once(reference):
    metrics, evals = rows(reference / "run" / "metrics.jsonl"), rows(reference / "run" / "eval.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in evals] == [0, 2, 4, 6]
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 1
    assert evals[-1]["loss_high"] < evals[0]["loss_low"]
    assert evals[0]["num_examples"] == 8
    assert metrics[-1]["epoch"] == pytest.approx(6 * 8 / 56)
    assert all(16 <= row["num_tokens"] <= 24 for row in metrics)  # 8 sums of one or two digits, and their end


def test_killed_at_random_moments_it_ends_as_if_never_killed(fresh, reference):
    kills = 0
    for num_rows, after in ((0, 0.0), (1, 0.02), (3, 0.0), (5, 0.01)):
        metrics = fresh / "run" / "metrics.jsonl"
        process = Forked("sft", "shown.toml", folder=fresh)
        kills += kill_when(
            process,
            lambda n=num_rows, m=metrics: len(rows_or_none(m)) >= n and m.parent.exists(),
            after=after,
        )
    assert kills >= 3
    status, printed = run_sft(fresh)
    assert status == 0, printed
    assert_same(fresh / "run", reference / "run")


def test_dynamic_fine_tuning_learns_and_is_measured_by_the_plain_loss(fresh, reference):
    status, printed = run_sft(fresh, "sft.loss=dft")
    assert status == 0, printed
    plain, evals = rows(reference / "run" / "eval.jsonl"), rows(fresh / "run" / "eval.jsonl")
    assert evals[0] == plain[0]  # before the first step, whatever the loss
    assert evals[-1]["loss"] < evals[0]["loss"]
    assert evals[-1]["loss"] != plain[-1]["loss"]
    first = [rows(folder / "run" / "metrics.jsonl")[0]["loss"] for folder in (fresh, reference)]
    assert 0 < first[0] < first[1]  # p * -log p


MIX = ("data.mix.more.path=more.jsonl", "data.mix.more.weight=0.5", "data.mix.more.num_eval=2")


def test_a_mixture_is_learned_by_weight_and_survives_kills(fresh):
    more = [{"prompt": f"{a}*{b}=", "completion": str(a * b)} for a in range(3) for b in range(4)]
    (fresh / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    status, printed = run_sft(fresh, *MIX)
    assert status == 0, printed
    (fresh / "run").rename(fresh / "whole")
    metrics, evals = rows(fresh / "whole" / "metrics.jsonl"), rows(fresh / "whole" / "eval.jsonl")
    # 8 of 3 examples each step: 16 of `more` after 6, out of 10, and 32 of the others, out of 56
    assert metrics[-1]["epoch/more"] == pytest.approx(1.6)
    assert metrics[-1]["epoch/path"] == pytest.approx(32 / 56)
    assert metrics[-1]["epoch"] == pytest.approx(48 / 66)
    assert [(row["step"], row["data"], row["num_examples"]) for row in evals[:2]] == [
        (0, "held_out", 8),
        (0, "more", 2),
    ]
    assert [row["step"] for row in evals] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert "more loss after" in printed
    assert "held_out loss before" in printed

    for num_rows in (1, 3):
        written = fresh / "run" / "metrics.jsonl"
        process = Forked("sft", "shown.toml", *MIX, folder=fresh)
        kill_when(process, lambda n=num_rows, m=written: len(rows_or_none(m)) >= n and m.parent.exists())
    status, printed = run_sft(fresh, *MIX)
    assert status == 0, printed
    assert_same(fresh / "run", fresh / "whole")
    status, printed = run_sft(fresh, MIX[0], MIX[2], "train.num_steps=8")
    assert status == 2, printed
    assert "weight" in printed.splitlines()[-1]


def test_a_finished_run_is_shown_again(reference):
    status, printed = run_sft(reference)
    assert status == 0
    assert "already holds all 6 steps" in printed
    assert "held_out loss before" in printed


def test_the_checkpoint_is_a_model_of_its_own(reference):
    folder = reference / "run" / "checkpoints" / "step_000006"
    example = Example([*tokenizer().convert_tokens_to_ids(list("1+1=2")), 1], [False] * 4 + [True] * 2)
    assert by_hand(folder, example) < by_hand(model_folder(), example)


def test_other_data_is_another_run(fresh):
    status, printed = run_sft(fresh, "train.num_steps=2")
    assert status == 0, printed
    lines = (fresh / "shown.jsonl").read_text().splitlines(keepends=True)
    (fresh / "shown.jsonl").write_text("".join(lines[:-1]))
    status, printed = run_sft(fresh, "train.num_steps=4")
    assert status == 2, printed
    assert "Restore the run's data, or start a new run" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "1+1="}', "shown.jsonl line 65: has no column 'completion'"),
        (json.dumps({"prompt": "1+1=", "completion": "2" * 32}), "more than sft.max_length = 32"),
        ('{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}',
         "a row of 'messages' needs a chat template"),
        ("{", "shown.jsonl line 65: is not JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_one_line(fresh, line, says):
    with (fresh / "shown.jsonl").open("a") as file:
        print(line, file=file)
    status, printed = run_sft(fresh)
    assert status == 2, printed
    assert says in printed.splitlines()[-1]
    assert "Traceback" not in printed


def test_rows_that_are_skipped_are_counted(fresh):
    with (fresh / "shown.jsonl").open("a") as file:
        print(json.dumps({"prompt": "1+1="}), file=file)
    status, printed = run_sft(fresh, "data.on_bad_row=skip", "train.num_steps=1")
    assert status == 0, printed
    assert "note: 1 malformed rows skipped, the first: shown.jsonl line 65" in printed


def test_conversations_are_learned_through_the_chat_template(fresh):
    shutil.copytree(model_folder(), fresh / "chatty")
    talker = tokenizer()
    talker.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}={{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}a={% endif %}"
    )
    talker.save_pretrained(fresh / "chatty")
    with (fresh / "shown.jsonl").open("w") as file:
        for i in range(20):
            turns = [("user", f"{i}+1="), ("assistant", str(i + 1)), ("user", "and?"), ("assistant", "done")]
            print(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}), file=file)
    status, printed = run_sft(fresh, "policy.model=chatty", "data.num_eval=4", "sft.max_length=40")
    assert status == 0, printed
    metrics = rows(fresh / "run" / "metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 1
    assert all(8 * (1 + 1 + 4 + 1) <= row["num_tokens"] <= 8 * (2 + 1 + 4 + 1) for row in metrics)
    asked = Problem("", "1+1=")
    again = Prompter(AutoTokenizer.from_pretrained(fresh / "run/checkpoints/step_000006"), PromptsConfig())
    assert again.text_for(asked) == "u=1+1=<eos>a="  # the checkpoint keeps the template


@pytest.mark.slow
def test_adapters_are_trained_and_taken_up_again(fresh):
    lora = ["lora.rank=4", "optim.lr=1e-2", "eval.every=6"]
    assert run_sft(fresh, *lora, "train.num_steps=4")[0] == 0
    status, printed = run_sft(fresh, *lora)
    assert status == 0, printed
    assert "resuming after step 4" in printed
    metrics = rows(fresh / "run" / "metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
