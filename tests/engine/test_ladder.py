"""The ladder: problems no demonstration shows, a teacher with habits, a model folder that others load."""

import itertools
import random
import re
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from verigrad.engine import makers
from verigrad.engine.config import ConfigError, DataConfig
from verigrad.engine.data import load
from verigrad.engine.recipes import ladder, warm_start

PROBLEMS = "verigrad.engine.recipes.ladder:problems"
MODEL = "verigrad.engine.recipes.ladder:model"
TINY = {"num_steps": 3, "batch_size": 4, "hidden_size": 32, "num_layers": 1}


class Scripted(random.Random):
    """Every random() is one number, every choice the first."""

    def __init__(self, number):
        super().__init__(0)
        self.number = number

    def random(self):
        return self.number

    def choice(self, seq):
        return seq[0]


def pair(prompt):
    """The two numbers, in no order."""
    return frozenset(re.findall(r"\d+", prompt))


@pytest.mark.parametrize(
    ("calculation", "steps", "answer"),
    [
        ((57, "+", 48), "7+8+0=15;5+4+1=10", "105"),
        ((9, "+", 12), "9+2+0=11;0+1+1=02", "21"),
        ((417, "*", 7), "7*7+0=49;1*7+4=11;4*7+1=29", "2919"),
        ((10, "*", 2), "0*2+0=00;1*2+0=02", "20"),
    ],
)
def test_the_teacher_works_digit_by_digit(calculation, steps, answer):
    assert ladder.work_out(calculation, Scripted(0.99)) == (steps, answer)


def test_a_slip_is_carried_on_to_the_answer():
    # every step slips by -2: 9+2 = 11 -> 09, no carry; 1+2 = 03 -> 01
    assert ladder.work_out((19, "+", 22), Scripted(0.0)) == ("9+2+0=09;1+2+0=01", "19")


def test_the_teacher_works_out_two_of_five_and_guesses_right_three_of_ten():
    shown = list(itertools.islice(ladder.demonstrations(random.Random(0)), 5000))
    right = {prompt: str(ladder.solve(*parse(prompt))) for prompt, _ in shown}
    blurted = [(prompt, text) for prompt, text in shown if text.startswith("</think>")]
    assert 1 - len(blurted) / len(shown) == pytest.approx(0.4, abs=0.03)
    good = sum(text == f"</think>\\boxed{{{right[prompt]}}}" for prompt, text in blurted)
    # a redrawn digit is the old one a tenth of the time, so a little above 0.3
    assert good / len(blurted) == pytest.approx(0.34, abs=0.04)


def parse(prompt):
    a, op, b = re.fullmatch(r"(\d+)([+*])(\d+)=\?", prompt).groups()
    return int(a), op, int(b)


def test_problems_are_distinct_right_and_of_every_level():
    rows = ladder.problems(seed=0)
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert len({(row["prompt"][-4:], pair(row["prompt"]), row["level"][:3]) for row in rows}) == len(rows)
    for row in rows:
        a, op, b = parse(row["prompt"])
        assert row["answer"] == str(a + b if op == "+" else a * b)
        assert row["level"] == ("add" if op == "+" else "mul") + str(max(len(str(a)), len(str(b))))
    counts = Counter(row["level"] for row in rows)
    assert set(counts) == set(ladder.LEVELS)
    assert {level: n for level, n in counts.items() if level != "mul2"} == dict.fromkeys(
        set(counts) - {"mul2"}, 1000
    )
    assert 430 <= counts["mul2"] <= 530


def test_the_same_seed_makes_the_same_rows_and_another_seed_others():
    assert ladder.problems(seed=1, num_problems=700) == ladder.problems(seed=1, num_problems=700)
    assert ladder.problems(seed=1, num_problems=700) != ladder.problems(seed=2, num_problems=700)


def test_training_held_out_and_demonstrated_problems_are_disjoint_in_either_order_of_numbers():
    data = load(DataConfig(path=PROBLEMS, num_eval=700), seed=0)
    held_out = {(p.prompt.count("+"), pair(p.prompt)) for p in data.evals["held_out"]}
    train = {(p.prompt.count("+"), pair(p.prompt)) for p in data.train}
    shown = itertools.islice(ladder.demonstrations(random.Random("ladder demonstrations 0")), 30_000)
    demonstrated = {(prompt.count("+"), pair(prompt)) for prompt, _ in shown}
    assert len(held_out) == 700
    assert held_out.isdisjoint(train)
    assert demonstrated.isdisjoint(held_out | train)
    levels = Counter(p.meta["level"] for p in data.evals["held_out"])
    assert set(levels) == set(ladder.LEVELS)
    assert min(levels.values()) >= 25


def test_an_unknown_level_is_refused():
    with pytest.raises(ConfigError, match=r"ladder:problems: levels = \['add9'\]: expected some of add2"):
        makers.make_rows(PROBLEMS, seed=0, options={"levels": ["add9"]})


def test_the_model_folder_loads_with_its_own_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("VERIGRAD_CACHE", str(tmp_path))
    told = []
    folder = makers.make_model(MODEL, seed=0, options=TINY, progress=lambda *t: told.append(t))
    assert told[-1][1] == 1.0
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= {
        p.name for p in folder.iterdir()
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)  # not replaced by the tokenizer of the model's type
    policy = AutoModelForCausalLM.from_pretrained(folder)
    text = "57+48=?<think>7+8+0=15;5+4+1=10</think>\\boxed{105}"
    ids = tokenizer(text).input_ids
    assert (len(tokenizer), len(ids), ids[0]) == (64, 1 + 7 + 1 + 17 + 1 + 1 + 4, policy.config.bos_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ladder.tokens_of("57+48=?", text.partition("<think>")[2])[0] == [*ids, tokenizer.eos_token_id]
    assert not policy.config.tie_word_embeddings
    assert policy.generate(torch.tensor([ids[:9]]), max_new_tokens=2, do_sample=False).shape[1] >= 10


def test_the_second_time_the_model_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VERIGRAD_CACHE", str(tmp_path))
    folder = makers.make_model(MODEL, seed=0, options=TINY)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert makers.make_model(MODEL, seed=0, options=TINY) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_the_same_seed_makes_the_same_model_and_leaves_torch_as_it_was(tmp_path):
    torch.manual_seed(5)
    before, num_threads = torch.get_rng_state(), torch.get_num_threads()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        ladder.model(tmp_path / name, seed=seed, progress=lambda *_: None, **TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == num_threads
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_loss_counts_completion_tokens_only():
    # an untrained head of zeros gives every token probability 1/64: log 64 = 4.1589 per token
    policy = ladder.new_model(32, 1)
    torch.nn.init.zeros_(policy.lm_head.weight)
    batch = [
        ladder.tokens_of("57+48=?", "</think>\\boxed{105}"),
        ladder.tokens_of("1+1=?", "</think>\\boxed{2}"),
    ]
    assert [len(ids) - num_prompt for ids, num_prompt in batch] == [7, 5]
    assert warm_start.slice_loss(policy, batch).item() == pytest.approx(12 * 4.158883, rel=1e-5)
    assert warm_start.backward(policy, batch) == pytest.approx(4.158883, rel=1e-5)
