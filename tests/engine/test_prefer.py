"""`verigrad prefer`: the reference is asked once and let go, and a run survives whatever ends it."""

import gc
import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.test_resume import assert_same, kill_when, rows, rows_or_none
from tests.tiny import Forked, model_folder, tokenizer
from verigrad.engine import prefer, reference_cache
from verigrad.engine.config import ConfigError, load
from verigrad.engine.offline import OfflineRun
from verigrad.engine.preference_batch import PairExample
from verigrad.engine.screen import Screen
from verigrad.engine.sft_rows import Example

RECIPE = """\
[train]
num_steps = 6

[run]
folder = "run"
save_every = 2

[data]
path = "pairs.jsonl"
num_eval = 8

[policy]
model = "{model}"
device = "cpu"
tokens_per_batch = 128

[optim]
lr = 1e-3

[eval]
every = 2

[prefer]
batch_size = 8
max_length = 32
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache folder of each test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VERIGRAD_CACHE", str(folder))
    return folder


def write(folder):
    pairs = [
        {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": "no " * (1 + b % 2) + str(a)}
        for a in range(8)
        for b in range(7)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "recipe.toml").write_text(RECIPE.replace("{model}", model_folder()))


def run(folder, *overrides, timeout=120):
    return Forked("prefer", "recipe.toml", *overrides, folder=folder).wait(timeout)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe and its data, in the working folder."""
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def by_hand(prompt, answer, folder=None):
    """Log-probability of an answer and its end, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder or model_folder(), dtype=torch.float32)
    before = tokenizer().encode(prompt, add_special_tokens=False)
    ids = [*before, *tokenizer().encode(answer, add_special_tokens=False), 1]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, ids[i]]) for i in range(len(before), len(ids)))


def opened(folder, *overrides):
    """The run, and what opens its task in this process."""
    cfg = load(str(folder / "recipe.toml"), overrides)
    run = OfflineRun(cfg)
    return run, lambda: prefer.PreferTask.open(cfg, run.__enter__(), Screen())


# The reference ---------------------------------------------------------------------------------------------


def test_the_references_log_probabilities_are_those_of_the_starting_model(folder):
    run, open_task = opened(folder)
    task = open_task()
    example = next(one for one in task.stream.next_batch(48) if len(one.chosen.token_ids) == 6)
    prompt, chosen = tokenizer().decode(example.chosen.token_ids).removesuffix("<eos>").split("=")
    rejected = tokenizer().decode(example.rejected.token_ids).removesuffix("<eos>").split("=")[1]
    assert example.ref_chosen == pytest.approx(by_hand(f"{prompt}=", chosen), abs=1e-4)
    assert example.ref_rejected == pytest.approx(by_hand(f"{prompt}=", rejected), abs=1e-4)
    row = task.evaluate(0)[0]
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert row["accuracy"] == 0.5
    assert row["margin"] == pytest.approx(0, abs=1e-5)
    run.__exit__(None, None, None)


def models_in_memory():
    gc.collect()
    return sum(type(x).__name__ == "Qwen2ForCausalLM" for x in gc.get_objects())


def test_no_reference_stays_in_memory_also_after_a_resume_without_a_cache(folder, cache):
    status, printed = run(folder, "train.num_steps=2")
    assert status == 0, printed
    shutil.rmtree(cache)
    before = models_in_memory()
    session, open_task = opened(folder, "train.num_steps=4")
    task = open_task()
    assert "computed for 48" in (folder / "run" / "log.txt").read_text().splitlines()[-2]
    assert models_in_memory() == before + 1
    assert task.policy.reference is None
    example = task.stream.next_batch(1)[0]  # of the starting model, not of the one that was taken up
    prompt, chosen = tokenizer().decode(example.chosen.token_ids).removesuffix("<eos>").split("=")
    assert example.ref_chosen == pytest.approx(by_hand(f"{prompt}=", chosen), abs=1e-4)
    session.__exit__(None, None, None)


@pytest.mark.parametrize("loss", ["orpo", "simpo", "cpo"])
def test_losses_without_a_reference_ask_none(folder, cache, monkeypatch, loss):
    monkeypatch.setattr(prefer, "reference_sums", None)
    session, open_task = opened(folder, f"prefer.loss={loss}")
    task = open_task()
    assert task.stream.next_batch(1)[0].ref_chosen is None
    assert np.isfinite(task.train_step(1)["loss"])
    assert not list(cache.glob("made/reference-*"))
    session.__exit__(None, None, None)


def test_it_is_computed_once_for_all_losses_of_a_data_set(folder, monkeypatch):
    asked = []

    def counted(*args, original=prefer.reference_sums, **kwargs):
        asked.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(prefer, "reference_sums", counted)
    for number, overrides in enumerate(
        (["prefer.loss=dpo"], ["prefer.loss=ipo"], ["optim.lr=1e-4", "prefer.beta=0.3"], ["lora.rank=4"])
    ):
        session, open_task = opened(folder, f"run.folder={number}", *overrides)
        open_task()
        assert len(asked) == 2  # 48 pairs and 8 held out
        session.__exit__(None, None, None)
    for overrides in (["prefer.loss=kto"], ["policy.dtype=bfloat16"], ["data.num_eval=9"]):
        known = len(asked)
        session, open_task = opened(folder, f"run.folder=of {overrides[0]}", *overrides)
        open_task()
        assert len(asked) > known, overrides
        session.__exit__(None, None, None)


def test_with_adapters_the_reference_is_the_model_without_them(folder, cache):
    overrides = ["lora.rank=4", "optim.lr=1e-2"]
    status, printed = run(folder, *overrides, "train.num_steps=2")
    assert status == 0, printed
    shutil.rmtree(cache)
    session, open_task = opened(folder, *overrides, "train.num_steps=4")
    task = open_task()
    example = task.stream.next_batch(1)[0]
    prompt, chosen = tokenizer().decode(example.chosen.token_ids).removesuffix("<eos>").split("=")
    assert example.ref_chosen == pytest.approx(by_hand(f"{prompt}=", chosen), abs=1e-4)
    assert task.evaluate(2)[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)  # the adapters did learn
    session.__exit__(None, None, None)


class Numbers:
    """Pairs whose answers are one token, which is their number."""

    fingerprint = "numbers"
    prompts = np.arange(10, dtype=np.uint64)

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return PairExample(Example([index], [True]), Example([index + 1], [True]))


def test_a_kill_loses_one_chunk_of_the_reference_at_most(monkeypatch):
    monkeypatch.setattr(reference_cache, "CHUNK", 4)
    seen, dies_at = [], [6]

    def sums(drawn):
        for one in drawn:
            if one.chosen.token_ids[0] == dies_at[0]:
                raise KeyboardInterrupt
            seen.append(one.chosen.token_ids[0])
        return [(float(one.chosen.token_ids[0]), -1.0) for one in drawn]

    told = []

    def attach(key="m"):
        return reference_cache.attach(
            Numbers(), sums, of="held_out", key=[key], progress=lambda text, share: told.append((text, share))
        )

    with pytest.raises(KeyboardInterrupt):
        attach()
    dies_at[0] = -1
    found, computed = attach()
    assert (seen, computed) == ([0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9], 6)
    assert [found[i].ref_chosen for i in range(10)] == list(range(10))
    assert attach()[1] == 0
    assert attach("other")[1] == 10
    assert told[-1] == ("reference log-probabilities of held_out", 1.0)


def test_another_tokenizer_or_library_asks_the_reference_anew(tmp_path, folder, monkeypatch):
    words = tmp_path / "words"
    words.mkdir()
    (words / "merges.txt").write_text("a b")
    (words / "weights.safetensors").write_text("no words")
    first = reference_cache.tokenizer_key(words)
    (words / "weights.safetensors").write_text("others")
    assert reference_cache.tokenizer_key(words) == first
    (words / "merges.txt").write_text("b a")
    assert reference_cache.tokenizer_key(words) != first
    log = folder / "run" / "log.txt"
    told = []
    for release in ("1", "1", "2"):
        monkeypatch.setattr(reference_cache, "version", lambda name, release=release: release)
        session, open_task = opened(folder)
        open_task()
        session.__exit__(None, None, None)
        told.append([line for line in log.read_text().splitlines() if "log-probabilities of" in line][-1])
    assert ["computed" in line for line in told] == [True, False, True]


# Runs ------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_it_ends_as_if_never_killed(folder):
    status, printed = run(folder)
    assert status == 0, printed
    metrics, evals = rows(folder / "run" / "metrics.jsonl"), rows(folder / "run" / "eval.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in evals] == [0, 2, 4, 6]
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert evals[-1]["loss_high"] < evals[0]["loss"]
    assert evals[-1]["accuracy_low"] > 0.5
    assert evals[-1]["num_examples"] == 8
    assert metrics[-1]["epoch"] == pytest.approx(1.0)
    assert "held_out accuracy after" in printed
    (folder / "run").rename(folder / "whole")
    kills = 0
    for num_rows, after in ((0, 0.0), (1, 0.02), (3, 0.0)):
        written = folder / "run" / "metrics.jsonl"
        process = Forked("prefer", "recipe.toml", folder=folder)
        kills += kill_when(
            process,
            lambda n=num_rows, m=written: len(rows_or_none(m)) >= n and m.parent.exists(),
            after=after,
        )
    assert kills >= 2
    status, printed = run(folder)
    assert status == 0, printed
    assert_same(folder / "run", folder / "whole")


def test_kto_learns_from_single_answers_and_goes_on_after_a_kill(folder):
    status, printed = run(folder, "prefer.loss=kto")
    assert status == 0, printed
    metrics, evals = rows(folder / "run" / "metrics.jsonl"), rows(folder / "run" / "eval.jsonl")
    assert metrics[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert evals[0]["num_examples"] == 16  # of 8 prompts a good answer and a bad one
    assert evals[-1]["loss_high"] < evals[0]["loss"]
    (folder / "run").rename(folder / "whole")
    written = folder / "run" / "metrics.jsonl"
    process = Forked("prefer", "recipe.toml", "prefer.loss=kto", folder=folder)
    kill_when(process, lambda: len(rows_or_none(written)) >= 3)
    status, printed = run(folder, "prefer.loss=kto")
    assert status == 0, printed
    assert_same(folder / "run", folder / "whole")


def test_sets_are_mixed_and_measured_each_by_itself(folder):
    more = [{"prompt": f"{i}*1=", "chosen": str(i), "rejected": "none"} for i in range(9)]
    (folder / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    mix = ["data.mix.more.path=more.jsonl", "data.mix.more.weight=0.5", "data.mix.more.num_eval=3"]
    status, printed = run(folder, *mix, "train.num_steps=3")
    assert status == 0, printed
    evals = rows(folder / "run" / "eval.jsonl")
    assert [(row["data"], row["num_examples"]) for row in evals[:2]] == [("held_out", 8), ("more", 3)]
    assert rows(folder / "run" / "metrics.jsonl")[-1]["epoch/more"] == pytest.approx(8 / 6)


def test_the_checkpoint_is_a_model_of_its_own_that_prefers_the_chosen(folder):
    status, printed = run(folder, "eval.every=0", "policy.dtype=bfloat16")
    assert status == 0, printed
    newest = folder / "run" / "checkpoints" / "step_000006"

    def gain(answer):
        return by_hand("1+1=", answer, newest) - by_hand("1+1=", answer)

    assert gain("2") > gain("no no 1")


@pytest.mark.parametrize(
    ("line", "overrides", "says"),
    [
        ('{"prompt": "1+1=", "chosen": "2"}', [], "pairs.jsonl line 57: has no column 'rejected'"),
        ('{"prompt": "1+1=", "chosen": "2", "rejected": "2"}', [], "that is the rejected one"),
        (json.dumps({"prompt": "1+1=", "chosen": "2" * 32, "rejected": "3"}), [],
         "37 tokens, more than prefer.max_length = 32"),
        ("", ["data.path=nowhere.jsonl"], "no file nowhere.jsonl"),
        ("", ["data.path="], "data.path is empty"),
        ("", ["prefer.loss=simpo", "prefer.label_smoothing=0.1"], "no effect with prefer.loss = 'simpo'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(folder, line, overrides, says):
    with (folder / "pairs.jsonl").open("a") as file:
        print(line, file=file)
    status, printed = run(folder, *overrides)
    assert status == 2, printed
    assert says in printed.strip().splitlines()[-1]


def test_too_small_a_batch_is_told_by_the_settings(folder):
    with pytest.raises(ConfigError, match=r"cannot hold one pair of two answers"):
        load(str(folder / "recipe.toml"), ["policy.tokens_per_batch=40"])


def test_the_table_at_the_end_holds_each_set_against_itself():
    def row(step, data, value):
        names = [f"{name}{end}" for name in ("accuracy", "loss") for end in ("", "_low", "_high")]
        return {
            "step": step, "data": data, "num_examples": 5, "margin": 10 * value, **dict.fromkeys(names, value)
        }  # fmt: skip

    evals = [row(0, "a", 0.1), row(0, "b", 0.6), row(4, "a", 0.2), row(4, "b", 0.7)]
    whole = dict(prefer.summary(evals, []))
    assert whole["a margin"] == "1.0000 -> 2.0000"
    table = {name: value.split()[0] for name, value in whole.items()}
    accuracy = {name: value for name, value in table.items() if "accuracy" in name}
    assert accuracy == {
        "a accuracy before": "0.1000",
        "a accuracy after": "0.2000",
        "b accuracy before": "0.6000",
        "b accuracy after": "0.7000",
    }


def test_intervals_take_prompts_as_units():
    values = torch.tensor([1.0, 1.0, 0.0, 1.0])
    row = prefer.interval("accuracy", values, [7, 7, 8, 9])
    assert row["accuracy"] == pytest.approx((1 + 0 + 1) / 3)
    row = prefer.interval("loss", values, [7, 7, 8, 9])
    assert row["loss"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_the_recipes_run(tmp_path, name):
    small = ["policy.options={num_steps = 3, batch_size = 4}", "data.options.num=100", "data.num_eval=10"]
    arguments = ["prefer", name, *small, "train.num_steps=2"]
    status, printed = Forked(*arguments, folder=tmp_path).wait(120)
    assert status == 0, printed
    evals = rows(tmp_path / "runs" / name / "eval.jsonl")
    assert [row["step"] for row in evals] == [0, 2]
    assert evals[-1]["loss"] < evals[0]["loss"]
