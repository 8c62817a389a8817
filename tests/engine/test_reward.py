"""`verigrad reward`: it learns, survives whatever ends it, and leaves models that say what it measured."""

import itertools
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.engine.test_resume import kill_when, rows, rows_or_none
from tests.tiny import Forked, config, model_folder
from tests.tiny_rewards import pairs, write_lines, write_reward, write_steps
from verigrad.engine import reward_model
from verigrad.engine.config import ConfigError, load
from verigrad.engine.reward import RewardTask
from verigrad.engine.reward_card import Card
from verigrad.engine.reward_data import Comparison, LabelledSteps
from verigrad.engine.reward_member import Member
from verigrad.engine.reward_setup import require_source
from verigrad.engine.reward_text import Text

SIDE_BY_SIDE = ("reward.members=2", "reward.split=folds", "reward.length_control=true")


def run_reward(folder, *overrides, recipe="pairs.toml", timeout=120):
    return Forked("reward", recipe, *overrides, folder=folder).wait(timeout)


def checkpoint(folder, step=6):
    return folder / "run" / "checkpoints" / f"step_{step:06d}"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("reward")
    write_reward(folder)
    status, printed = run_reward(folder)
    assert status == 0, printed
    (folder / "printed.txt").write_text(printed)
    return folder


@pytest.fixture
def fresh(tmp_path):
    write_reward(tmp_path)
    return tmp_path


# One step ---------------------------------------------------------------------------------------------------


def member(cfg, *, steps=False, seed=0):
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    card = Card(kind="steps" if steps else "pairs", eos_id=1, max_length=64, separator="}")
    return Member(cfg, model_folder(), None, tokenizer=tokenizer, card=card, seed=seed)


def comparison(one, answers, **values):
    texts = [one.reader.encoder.answer("1+1=", answer) for answer in answers]
    return Comparison(["1+1="] * len(answers), answers, texts, list(range(len(answers))), **values)


@pytest.mark.parametrize("ranking", ["pairs", "plackett_luce"])
def test_a_step_does_not_depend_on_how_rows_are_packed(ranking):
    losses, weights = [], []
    for budget in (32, 512):
        cfg = config(
            policy={"tokens_per_batch": budget}, optim={"lr": 1e-2},
            reward={"ranking": ranking, "length_control": True, "max_length": 24},
        )  # fmt: skip
        one = member(cfg)
        one.length_scale = 2.0
        examples = [
            comparison(one, ["2", "3"], margin=0.5),
            comparison(one, ["2", "3", "44"]),
            comparison(one, ["22", "1"], p_chosen=0.75),
        ]
        batches = one.batches_of(examples)
        assert len(batches) == (1 if budget == 512 else 2)
        seen = [one.step(examples, batches, step=step) for step in (1, 2)]
        losses.append([each["loss"] for each in seen])
        weights.append(one.model.score.weight.detach().clone())
        assert seen[0]["skipped_updates"] == 0
        assert float(one.length.detach()) != 0
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert torch.allclose(weights[0], weights[1], atol=1e-4)


def test_the_loss_of_a_step_by_hand():
    cfg = config(reward={"center_coef": 0.1, "max_length": 64})
    one = member(cfg)
    examples = [comparison(one, ["2", "3"]), comparison(one, ["2", "33", "444"])]
    with torch.no_grad():
        first, second = (each.double() for each in one.read(examples))
    nll = [-torch.nn.functional.logsigmoid(a - b) for a, b in itertools.combinations(second, 2)]
    expected = -torch.nn.functional.logsigmoid(first[0] - first[1]) + sum(nll) / 3
    expected = expected / 2 + 0.1 * ((first.sum()) ** 2 + (2 * second.mean()) ** 2) / 2
    seen = one.step(examples, one.batches_of(examples), step=1)
    assert seen["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_a_loss_that_is_not_finite_leaves_everything_as_it_is():
    one = member(config(reward={"length_control": True}))
    examples = [comparison(one, ["2", "3"], margin=float("inf"))]
    before = one.model.score.weight.detach().clone()
    assert one.step(examples, one.batches_of(examples), step=1)["skipped_updates"] == 1
    assert torch.equal(one.model.score.weight, before)
    assert float(one.length.detach()) == 0


def test_steps_weigh_the_same_whatever_their_answer():
    one = member(config(), steps=True)
    encode = one.reader.encoder.steps
    examples = [
        LabelledSteps("1+1=", ["a", "b", "c"], encode("1+1=", ["a", "b", "c"]), [1.0, 0.0, 0.5]),
        LabelledSteps("1+1=", ["d"], encode("1+1=", ["d"]), [0.0]),
    ]
    with torch.no_grad():
        probs = [float(p) for each in one.read(examples) for p in each]
    wanted = [1.0, 0.0, 0.5, 0.0]
    expected = (
        -sum(
            w * torch.tensor(p).log() + (1 - w) * torch.tensor(1 - p).log()
            for w, p in zip(wanted, probs, strict=True)
        )
        / 4
    )
    assert one.step(examples, one.batches_of(examples), step=1)["loss"] == pytest.approx(
        float(expected), abs=1e-4
    )


# Runs -------------------------------------------------------------------------------------------------------


def test_it_learns_and_is_measured(reference):
    metrics, evals = rows(reference / "run" / "metrics.jsonl"), rows(reference / "run" / "eval.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in evals] == [0, 2, 4, 6]
    assert evals[-1]["accuracy"] > 0.9
    assert evals[-1]["loss"] < evals[0]["loss"]
    assert evals[-1]["num_rows"] == 8
    assert "held_out accuracy after" in (reference / "printed.txt").read_text()


def test_the_folder_says_what_was_measured(reference):
    folder = checkpoint(reference)
    model = reward_model.load(folder, allow_biased=True)
    rewards = model.score(["1+1=", "2+3="], ["2", "6?"])
    assert rewards[0] > rewards[1]
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("1+1=2<eos>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert rewards[0] == pytest.approx(theirs(ids).logits.item(), abs=1e-4)
    evaluated = rows(reference / "run" / "eval.jsonl")[-1]
    assert model.mean == pytest.approx(evaluated["reward_mean"], abs=1e-5)
    assert model.std == pytest.approx(evaluated["reward_std"], abs=1e-5)


def test_the_audit_refuses_what_leans_on_length(reference):
    """The rejected answers are all longer: whatever tells them apart goes with length."""
    found = json.loads((checkpoint(reference) / "audit.json").read_text())
    assert found["length_corr_within"] < -0.5
    assert found["refused"]
    assert "audit: REFUSED" in (reference / "printed.txt").read_text()
    with pytest.raises(ConfigError, match="refused by its audit"):
        reward_model.load(reference / "run")


def test_killed_at_random_moments_it_ends_as_if_never_killed(fresh, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    write_reward(whole)
    status, printed = run_reward(whole, *SIDE_BY_SIDE)
    assert status == 0, printed
    kills = 0
    for num_rows, after in ((1, 0.02), (3, 0.0), (5, 0.01)):
        metrics = fresh / "run" / "metrics.jsonl"
        process = Forked("reward", "pairs.toml", *SIDE_BY_SIDE, folder=fresh)
        kills += kill_when(
            process,
            lambda n=num_rows, m=metrics: len(rows_or_none(m)) >= n and m.parent.exists(),
            after=after,
        )
    assert kills >= 2
    status, printed = run_reward(fresh, *SIDE_BY_SIDE)
    assert status == 0, printed
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert rows(fresh / "run" / name) == rows(whole / "run" / name)
    for part in ("member_1/model.safetensors", "member_2/model.safetensors", "reward.json", "audit.json"):
        assert (checkpoint(fresh) / part).read_bytes() == (checkpoint(whole) / part).read_bytes()

    evals = rows(whole / "run" / "eval.jsonl")
    assert [row["data"] for row in evals[-2:]] == ["held_out", "out_of_fold"]
    assert 0 < evals[-1]["num_rows"] <= 56
    assert evals[-2]["disagreement"] > 0
    assert {"accuracy_member_1", "accuracy_member_2"} <= set(evals[-2])
    assert "length_coef" in rows(whole / "run" / "metrics.jsonl")[-1]
    model = reward_model.load(whole / "run", allow_biased=True)
    assert isinstance(model, reward_model.Ensemble)
    assert model.std > 0
    [scored] = model.judge(["1+1="], ["2"])
    assert len(scored.members) == 2


def test_folds_of_members_of_different_scales_are_pooled_in_standard_deviations():
    """Rewards of 14 and 10 (mean 10, deviation 2) beside 0.2 and -0.2 (mean 0, deviation 0.1)."""

    def of(rewards, mean, std):
        reader = SimpleNamespace(card=Card(mean=mean, std=std))
        return SimpleNamespace(reader=reader, read=lambda drawn: [torch.tensor(rewards) for _ in drawn])

    class Some(list):
        prompts = np.arange(1)

    texts = [Text([1] * n, [n - 1], n) for n in (2, 1)]
    data = SimpleNamespace(subset=lambda fold: (Some([Comparison(["p"] * 2, ["a", "b"], texts, [0, 1])]), []))
    members = [of([14.0, 10.0], 10.0, 2.0), of([0.2, -0.2], 0.0, 0.1)]
    for how in ("mean", "mean_minus_std", "min"):
        cfg = config(reward={"members": 2, "split": "folds", "aggregate": how})
        folds = [np.array([0])] * 2
        task = RewardTask(cfg, None, data, members, [], folds, Card(), None, {})
        row = task.measure_folds()
        assert row["reward_mean"] == pytest.approx((2 + 0 + 2 - 2) / 4)
        assert row["reward_std"] == pytest.approx(np.std([2, 0, 2, -2]))
        losses = [math.log1p(math.exp(-gap)) for gap in (4.0, 0.4)]  # as they were trained
        assert row["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_adapters_are_merged_and_resumed(fresh):
    settings = ("lora.rank=2", "optim.lr=1e-2", "run.save_every=3")
    status, printed = run_reward(fresh, *settings)
    assert status == 0, printed
    (fresh / "run").rename(fresh / "whole")
    process = Forked("reward", "pairs.toml", *settings, folder=fresh)
    kill_when(process, lambda: len(rows_or_none(fresh / "run" / "metrics.jsonl")) >= 4)
    status, printed = run_reward(fresh, *settings)
    assert status == 0, printed
    assert rows(fresh / "run" / "metrics.jsonl") == rows(fresh / "whole" / "metrics.jsonl")
    evals = rows(fresh / "run" / "eval.jsonl")
    assert evals[-1]["loss"] < evals[0]["loss"]
    model = reward_model.load(fresh / "run", allow_biased=True)
    assert model.mean == pytest.approx(evals[-1]["reward_mean"], abs=1e-4)  # merged, they say the same
    assert not (checkpoint(fresh) / "adapter_config.json").exists()


def test_steps_are_learned(tmp_path):
    write_steps(tmp_path)
    status, printed = run_reward(tmp_path, "train.num_steps=12", "optim.lr=5e-3", recipe="steps.toml")
    assert status == 0, printed
    evals = rows(tmp_path / "run" / "eval.jsonl")
    assert evals[-1]["num_steps"] == 16
    assert evals[-1]["loss"] < evals[0]["loss"]
    model = reward_model.ProcessRewardModel.load(tmp_path / "run", allow_biased=True)
    [steps] = model.steps(["1*2="], ["1, 2}2"])
    assert len(steps) == 2
    assert steps[0] > 0.5


def test_rankings_margins_and_annotators(fresh):
    made = [
        {"prompt": f"{a}-{b}=", "responses": [str(a), f"{b}?", "x"], "ranks": [0, 1, 1]}
        for a in range(4) for b in range(4)
    ]  # fmt: skip
    write_lines(fresh / "pairs.jsonl", made)
    status, printed = run_reward(
        fresh, "reward.ranking=plackett_luce", "data.num_eval=4", "train.num_steps=2"
    )
    assert status == 0, printed
    shutil.rmtree(fresh / "run")
    voted = [
        {
            **row,
            "annotator": name,
            **({"chosen": row["rejected"], "rejected": row["chosen"]} if wrong else {}),
        }
        for number, row in enumerate(pairs())
        for name, wrong in (("ann", False), ("bob", False), ("eve", number % 4 == 0))
    ]
    write_lines(fresh / "pairs.jsonl", voted)
    status, printed = run_reward(fresh, "reward.votes=share", "train.num_steps=2")
    assert status == 0, printed
    assert "Krippendorff's alpha" in printed
    assert "eve 75%" in printed
    found = json.loads((checkpoint(fresh, 2) / "audit.json").read_text())
    assert found["agreement"]["num_pairs"] == 64
    assert rows(fresh / "run" / "eval.jsonl")[-1]["num_rows"] == 8


def test_categories_of_a_benchmark_file(fresh):
    bench = [
        {"prompt": f"{a}+9=", "chosen": str(a + 9), "rejected": "0????????", "subset": "sums"}
        for a in range(4)
    ] + [
        {"prompt": f"{a}+8=", "chosen": ["1"], "rejected": [f"{k}????????" for k in "234"], "subset": "best"}
        for a in range(3)
    ]
    write_lines(fresh / "bench.jsonl", bench)
    status, printed = run_reward(fresh, "data.evals.bench.path=bench.jsonl", "eval.by=subset")
    assert status == 0, printed
    row = rows(fresh / "run" / "eval.jsonl")[-1]
    assert (row["data"], row["num_rows"]) == ("bench", 7)
    assert {name: one["num_rows"] for name, one in row["by"].items()} == {"best": 3, "sums": 4}
    assert row["accuracy"] > 0.5
    assert "  sums" in printed


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("reward.kind=steps reward.members=3", "reward.members is for reward.kind = 'pairs'"),
        ("reward.solution=product", "reward.solution is for reward.kind = 'steps'"),
        ("reward.split=folds", "reward.split has no effect on one model"),
        ("reward.members=2 reward.aggregate=min reward.std_coef=2", "reward.std_coef has no effect"),
        ("data.evals.a.path=x.jsonl data.evals.a.num_samples=4", "data.evals.a.num_samples has no effect"),
        ("prompts.prefill=hm", "prompts.prefill has no effect"),
        ("reward.max_length=999", "policy.tokens_per_batch = 256 cannot hold"),
        ("eval.num_samples=4", "eval.num_samples has no effect"),
        ("reward.kind=steps reward.step_separator=", "reward.step_separator is empty"),
        ("reward.ranking=plackett_luce reward.margin_column=by", "reward.margin_column = 'by' is for pairs"),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused(fresh, overrides, says):
    with pytest.raises(ConfigError) as caught:
        load(str(fresh / "pairs.toml"), overrides.split(), verb="reward")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pairs_per_problem_is_for_runs(fresh, monkeypatch):
    monkeypatch.chdir(fresh)
    cfg = load("pairs.toml", ["reward.pairs_per_problem=2"], verb="reward")
    with pytest.raises(ConfigError) as caught:
        require_source(cfg)
    assert str(caught.value).startswith(
        "reward.pairs_per_problem = 2 has no effect: data.path = 'pairs.jsonl'"
    )
    assert "\n" not in str(caught.value)
    (fresh / "old" / "rollouts").mkdir(parents=True)
    mixed = ["reward.pairs_per_problem=2", "data.mix.old.path=old"]
    require_source(load("pairs.toml", mixed, verb="reward"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "1+1=", "chosen": "2"}', "pairs.jsonl line 65: has no column 'rejected'"),
        ('{"prompt": "1+1=", "chosen": "2", "rejected": "2"}', "which prefers nothing"),
        ("{", "pairs.jsonl line 65: is not JSON"),
        (json.dumps({"prompt": "1+1=", "chosen": "2" * 40, "rejected": "3"}), "max_length = 32"),
    ],
)
def test_a_bad_row_is_one_line(fresh, line, says):
    with (fresh / "pairs.jsonl").open("a") as file:
        print(line, file=file)
    status, printed = run_reward(fresh)
    assert status == 2, printed
    assert says in printed.splitlines()[-1]
