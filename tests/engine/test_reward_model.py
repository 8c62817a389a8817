"""Reward models without the trainer: transformers gives the same rewards, folders are what they say."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from tests.tiny import model_folder
from verigrad.engine import reward_model
from verigrad.engine.config import ConfigError
from verigrad.engine.failures import WorkError
from verigrad.engine.reward_card import AUDIT, Card
from verigrad.engine.reward_head import choose_pad, longest_text, open_model
from verigrad.engine.reward_text import pieces, split_steps
from verigrad.verifiers.base import Problem

PROMPTS = ["1+1=", "22+22=", "3*3=?"]
RESPONSES = ["2", "44 or so, i think", ""]


def write_model(folder, *, steps=False, seed=0, **card):
    model = open_model(model_folder(), steps=steps, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    choose_pad(model, tokenizer, 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Card(kind="steps" if steps else "pairs", max_length=64, eos_id=1, **card).save(folder)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("single"), mean=0.5, std=2.0)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("process"), steps=True, separator="}")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    for k in (1, 2, 3):
        write_model(folder / f"member_{k}", seed=k, mean=0.1 * k, std=1.0 + k)
    Card(kind="ensemble", members=3, aggregate="mean_minus_std", std_coef=0.5).save(folder)
    return folder


@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_gives_the_same_rewards_padded_on_either_side(single, side):
    ours = reward_model.load(single, tokens_per_batch=16).score(PROMPTS, RESPONSES)
    model = AutoModelForSequenceClassification.from_pretrained(single).eval()
    tokenizer = AutoTokenizer.from_pretrained(single, padding_side=side)
    texts = [f"{p}{r}<eos>" for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    given = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    assert theirs.shape == (3, 1)
    assert ours == pytest.approx(theirs[:, 0].tolist(), abs=1e-4)


def test_a_reward_does_not_depend_on_its_company(single):
    model = reward_model.RewardModel.load(single)
    alone = [model.score([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert model.score(PROMPTS, RESPONSES) == pytest.approx(alone, abs=1e-5)
    assert model.score([], []) == []
    assert (model.mean, model.std) == (0.5, 2.0)


def test_prompts_may_be_problems(single):
    model = reward_model.load(single)
    asked = [Problem(str(k), prompt, "unused") for k, prompt in enumerate(PROMPTS)]
    assert model.score(asked, RESPONSES) == model.score(PROMPTS, RESPONSES)


def test_what_an_answer_spells_out_is_no_special_token(single):
    model = reward_model.load(single)
    ids = model.encoder.answer("1+1=", "2<eos>3").token_ids
    assert ids.count(1) == 1
    assert ids[-1] == 1


def test_too_long_an_answer_has_no_reward_and_harms_no_other(single):
    model = reward_model.load(single)
    judged = model.judge(["1+1=", "1+1="], ["2" * 100, "2"])
    assert judged[0].reward is None
    assert "105 tokens, more than the reward model's max_length = 64" in judged[0].reason
    assert judged[1].reward == pytest.approx(model.score(["1+1="], ["2"])[0], abs=1e-5)
    with pytest.raises(WorkError, match="answer 0 has no reward"):
        model.score(["1+1="], ["2" * 100])


def test_steps_are_read_where_they_end(process):
    model = reward_model.load(process)
    [steps] = model.steps(["1+1="], ["one}two}"])
    theirs = AutoModelForTokenClassification.from_pretrained(process).eval()
    ids = AutoTokenizer.from_pretrained(process)("1+1=one}two}<eos>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        right = theirs(ids).logits[0].softmax(-1)[:, 1]
    assert steps == pytest.approx([float(right[7]), float(right[11])], abs=1e-5)
    assert model.score(["1+1="], ["one}two}"])[0] == pytest.approx(min(steps), abs=1e-5)
    model.solution = "product"
    assert model.score(["1+1="], ["one}two"])[0] == pytest.approx(steps[0] * steps[1], abs=1e-5)
    assert model.score(["1+1="], [""]) == [0.0]


def test_steps_given_one_by_one_and_cut_out_of_an_answer_read_the_same():
    answer = "the cat is soft . the sun is warm ."
    said = ["the cat is soft .", "the sun is warm ."]
    assert "".join(pieces(said, " .")) == answer
    assert "".join(pieces(split_steps(answer, " ."), " .")) == answer
    assert "".join(pieces(["a", "b"], "\n")) == "a\nb\n"
    assert split_steps("a\n\n b", "\n") == ["a", " b"]


def test_an_ensemble_is_careful_where_its_members_disagree(ensemble):
    model = reward_model.load(ensemble)
    members = [reward_model.load(ensemble / f"member_{k}") for k in (1, 2, 3)]
    scores = [member.score(["1+1="], ["2"])[0] for member in members]
    expected = [(score - 0.1 * k) / (1.0 + k) for k, score in enumerate(scores, 1)]
    [scored] = model.judge(["1+1="], ["2"])
    assert list(scored.members) == pytest.approx(expected, abs=1e-5)
    mean = sum(expected) / 3
    std = (sum((each - mean) ** 2 for each in expected) / 3) ** 0.5
    assert scored.disagreement == pytest.approx(std, abs=1e-5)
    assert scored.reward == pytest.approx(mean - 0.5 * std, abs=1e-5)
    assert len({member.fingerprint for member in (*members, model)}) == 4


def test_a_run_folder_gives_its_newest_whole_checkpoint(single, tmp_path):
    from verigrad.engine import checkpoint

    def write(folder):
        for path in single.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    for step in (2, 4):
        checkpoint.save(tmp_path / "checkpoints", step, write, keep=2)
    assert reward_model.find(str(tmp_path)).name == "step_000004"
    (tmp_path / "checkpoints" / "step_000004" / "config.json").write_text("{}")
    assert reward_model.find(str(tmp_path)).name == "step_000002"
    assert reward_model.load(tmp_path).score(["1+1="], ["2"]) == reward_model.load(single).score(
        ["1+1="], ["2"]
    )


@pytest.mark.parametrize(
    ("found", "allowed"),
    [({"refused": True, "reason": "within a prompt its reward goes with length by +0.91"}, False),
     ({"refused": False}, True)],
)  # fmt: skip
def test_what_the_audit_refused_is_not_loaded_unless_told_to(tmp_path, found, allowed):
    write_model(tmp_path)
    (tmp_path / AUDIT).write_text(json.dumps(found))
    if allowed:
        assert reward_model.load(tmp_path)
    else:
        with pytest.raises(ConfigError, match=r"goes with length by \+0.91.*allow_biased"):
            reward_model.load(tmp_path)
    assert reward_model.load(tmp_path, allow_biased=True)


def test_what_is_no_reward_model_is_told_in_one_line(single, ensemble, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="without a reward head"):
        reward_model.load(model_folder())
    with pytest.raises(ConfigError, match="no reward model"):
        reward_model.load(tmp_path / "nowhere")
    (tmp_path / "staged" / "1_liked").mkdir(parents=True)
    (tmp_path / "staged" / "1_liked" / "config.toml").touch()
    with pytest.raises(ConfigError, match=r"a recipe of stages, .*name one of them: .*/staged/1_liked$"):
        reward_model.load(tmp_path / "staged")
    monkeypatch.chdir(tmp_path)
    for path in ("staged/2_ppo", "no/such/folder"):  # no id of the hub is asked for
        with pytest.raises(ConfigError, match=f"^{path}: no reward model .looked from "):
            reward_model.find(path)
    with pytest.raises(ConfigError, match="holds a RewardModel, expected a Ensemble"):
        reward_model.Ensemble.load(single)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="no whole checkpoint yet"):
        reward_model.load(tmp_path)
    Card(kind="ensemble", members=4).save(tmp_path)
    with pytest.raises(ConfigError, match="lacks member_1 of its 4 members"):
        reward_model.load(tmp_path)
    (tmp_path / "reward.json").write_text('{"kind": "oracle"}')
    with pytest.raises(ConfigError, match="kind is 'oracle'"):
        reward_model.load(tmp_path)
    (tmp_path / "reward.json").write_text("[1")
    with pytest.raises(ConfigError, match="no card of a reward model"):
        reward_model.load(tmp_path)


def test_padding_is_never_the_token_that_ends_an_answer():
    model = open_model(model_folder(), steps=False, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    model.config.pad_token_id = 1
    tokenizer.pad_token = "<eos>"
    tokenizer.unk_token = None
    assert choose_pad(model, tokenizer, 1) == 2  # the one that begins texts
    assert (model.config.pad_token_id, tokenizer.pad_token) == (2, "<bos>")


def test_other_peoples_models_are_read_where_transformers_reads_them(tmp_path):
    """Where padding is what ends answers, at the token before it; with a template, after what it writes."""
    write_model(tmp_path)
    (tmp_path / "reward.json").unlink()
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "pad_token_id": 1}))
    model = reward_model.load(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        ids = tokenizer("1+1=22<eos>", return_tensors="pt")["input_ids"]
        assert model.score(["1+1="], ["22"])[0] == pytest.approx(theirs(ids).logits.item(), abs=1e-4)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}={{ m['content'] }}<eos>/{% endfor %}"
        "{% if add_generation_prompt %}a={% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    text = reward_model.load(tmp_path).encoder.answer("1+1", "2")
    assert text.token_ids == tokenizer("u=1+1<eos>/a=2<eos>/")["input_ids"]


def test_a_text_is_never_longer_than_the_models_positions(single):
    assert reward_model.load(single).card.max_length == 64
    model = reward_model.load(single)
    assert longest_text(model.model, Card(max_length=9999)) == longest_text(model.model, Card()) == 512


def test_heads_come_from_their_seed():
    heads = [open_model(model_folder(), steps=False, seed=seed).score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_half_precision_is_close(single):
    exact = reward_model.load(single).score(PROMPTS, RESPONSES)
    half = reward_model.load(single, dtype="bfloat16").score(PROMPTS, RESPONSES)
    assert half == pytest.approx(exact, abs=0.2)


def test_a_card_reads_back(tmp_path):
    card = Card(kind="ensemble", members=2, prompts={"template": "boxed"}, mean=0.5, std=None)
    card.save(tmp_path)
    from verigrad.engine import reward_card

    assert reward_card.read(tmp_path) == card
    assert dataclasses.asdict(reward_card.read(tmp_path / "none")) == dataclasses.asdict(Card())
