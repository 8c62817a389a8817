"""Programs made from nothing: right answers, nothing asked that was shown, a folder that others load."""

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
from verigrad.engine.recipes import scratch, warm_start
from verigrad.engine.settings import EvalSet

PROBLEMS = "verigrad.engine.recipes.scratch:problems"
MODEL = "verigrad.engine.recipes.scratch:model"
TINY = {"size": "small", "num_steps": 3, "batch_size": 4}


class Scripted(random.Random):
    """Every random() is one number, every choice the first."""

    def __init__(self, number):
        super().__init__(0)
        self.number = number

    def random(self):
        return self.number

    def choice(self, seq):
        return seq[0]

    def randint(self, a, b):
        return a


def run(prompt):
    """The value after a prompt's lines have run, what identifies it, lines run and lines in all."""
    program, question = prompt.split(";")
    lines = {label: (op, int(n)) for label, op, n in re.findall(r"([a-p])([+*])(\d)", program)}
    assert len(program) == 3 * len(lines)
    value, first, last = re.fullmatch(r"(\d)([a-p])([a-p])=\?", question).groups()
    done, value = value, int(value)
    for code in range(ord(first), ord(last) + 1):
        op, n = lines[chr(code)]
        value = (value + n if op == "+" else value * n) % 10
        done += f"{op}{n}"
    return value, done, ord(last) - ord(first) + 1, len(lines)


TASK = scratch.Task(2, (("+", 3), ("+", 5), ("*", 3)), "fgh", "h*3k+1f+3g+5;2fh=?")


def test_a_run_by_hand():
    assert TASK.values == [2, 5, 0, 0]  # 2+3 = 5; 5+5 = 10; 0*3 = 0
    assert run(TASK.prompt)[0] == 0


def test_the_teacher_writes_one_line_per_operation():
    assert scratch.work_out(TASK, Scripted(0.99)) == ("2ff+3=5gg+5=0hh*3=0", 0)


def test_a_slip_is_carried_on_and_the_thread_is_lost_once():
    # every line slips by -1: 2+3 = 5 -> 4, 4+5 = 9 -> 8, 8*3 = 24 -> 3; after the first word it starts over
    assert scratch.work_out(TASK, Scripted(0.0)) == ("22ff+3=4gg+5=8hh*3=3", 3)


def test_a_tired_teacher_mostly_blurts_and_a_fresh_one_never():
    rng = random.Random(0)
    fresh = list(itertools.islice(scratch.demonstrations(rng, shown=4, progress=0.6), 500))
    tired = list(itertools.islice(scratch.demonstrations(rng, shown=4, progress=0.9), 3000))
    assert not any(text.startswith("</think>") for _, text in fresh)
    blurted = [(prompt, text) for prompt, text in tired if text.startswith("</think>")]
    assert len(blurted) / len(tired) == pytest.approx(0.7, abs=0.03)
    right = sum(text == f"</think>\\boxed{{{run(prompt)[0]}}}" for prompt, text in blurted)
    assert right / len(blurted) == pytest.approx(0.3 + 0.7 / 10, abs=0.03)
    assert {run(prompt)[2] for prompt, _ in tired} == {1, 2, 3, 4}
    assert {run(prompt)[3] for prompt, _ in tired} == set(range(1, scratch.MAX_LINES + 1))


def test_the_first_programs_are_short():
    first = itertools.islice(scratch.demonstrations(random.Random(0), shown=4, progress=0.0), 300)
    assert {run(prompt)[3] for prompt, _ in first} == {1, 2}


def test_problems_are_distinct_right_and_as_long_as_they_say():
    rows = scratch.problems(seed=0, num_problems=1800)
    assert Counter(row["steps"] for row in rows) == dict.fromkeys("345678", 300)
    assert len({row["prompt"] for row in rows}) == 1800
    for row in rows:
        value, _, num_steps, num_lines = run(row["prompt"])
        assert (row["answer"], row["steps"]) == (str(value), str(num_steps))
        assert num_lines == max(8, num_steps)


def test_answers_are_no_easy_guess():
    rows = scratch.problems(seed=0, num_problems=3000)
    assert max(Counter(row["answer"] for row in rows).values()) / 3000 < 0.13


def test_training_held_out_and_demonstrated_runs_are_disjoint_whatever_their_labels():
    test = EvalSet(path=PROBLEMS, options={"test": True, "num_problems": 300, "min_steps": 1})
    options = {"num_problems": 3000, "min_steps": 1}
    data = load(DataConfig(path=PROBLEMS, options=options, num_eval=0, evals={"test": test}), seed=0)
    shown = itertools.islice(scratch.demonstrations(random.Random(1), shown=4, progress=0.5), 20_000)
    demonstrated = {run(prompt)[1] for prompt, _ in shown}
    held_out = {run(p.prompt)[1] for p in data.evals["test"]}
    train = {run(p.prompt)[1] for p in data.train}
    assert demonstrated.isdisjoint(held_out | train)
    assert held_out.isdisjoint(train)
    assert len(held_out) >= 290  # of one line there are few


def test_few_problems_of_one_line_are_all_there_are():
    rows = scratch.problems(seed=0, num_problems=5000, min_steps=1, max_steps=1)
    assert 30 < len(rows) < 10 * len(scratch.OPERATIONS) / 2


def test_the_longest_program_fits_the_models_positions():
    rows = scratch.problems(seed=0, num_problems=1, min_steps=16, max_steps=16)
    task = scratch.Task(0, (("+", 1),) * 16, scratch.LABELS, rows[0]["prompt"])
    thought, answer = scratch.work_out(task, Scripted(0.99))
    ids, _ = scratch.tokens_of(task.prompt, f"{thought}</think>\\boxed{{{answer}}}")
    assert len(ids) < scratch.ALPHABET.positions


@pytest.mark.parametrize(
    ("reference", "options", "says"),
    [
        (PROBLEMS, {"min_steps": 0}, "expected 1 <= min_steps <= max_steps <= 16"),
        (PROBLEMS, {"min_steps": 9}, "min_steps = 9, max_steps = 8"),
        (PROBLEMS, {"max_steps": 17}, "max_steps = 17"),
        (PROBLEMS, {"num_lines": 17}, "num_lines = 17: expected 1 to 16"),
        (PROBLEMS, {"num_problems": 0}, "num_problems = 0: expected at least 1"),
        (MODEL, {"size": "huge"}, "size = 'huge': expected one of small, medium, base, large"),
        (MODEL, {"size": "small", "shown": 0}, "shown = 0: expected 1 to 8 lines"),
        (MODEL, {"size": "small", "shown": 9}, "shown = 9: expected 1 to 8 lines"),
        (MODEL, {"size": "small", "num_steps": 0}, "num_steps = 0: expected at least 1"),
        (MODEL, {"hidden_size": 8}, "takes no option 'hidden_size'"),
    ],
)  # fmt: skip
def test_options_without_sense_are_refused(reference, options, says, tmp_path, monkeypatch):
    monkeypatch.setenv("VERIGRAD_CACHE", str(tmp_path))
    make = makers.make_model if reference == MODEL else makers.make_rows
    with pytest.raises(ConfigError) as caught:
        make(reference, seed=0, options=options)
    assert says in str(caught.value)


def test_the_model_folder_loads_with_its_own_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("VERIGRAD_CACHE", str(tmp_path))
    told = []
    folder = makers.make_model(MODEL, seed=0, options=TINY, progress=lambda *t: told.append(t))
    assert told[-1][1] == 1.0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder)
    text = "h*3f+3;2fh=?<think>2ff+3=5</think>\\boxed{5}"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert scratch.tokens_of("h*3f+3;2fh=?", "2ff+3=5</think>\\boxed{5}")[0] == [
        *ids,
        tokenizer.eos_token_id,
    ]
    assert tokenizer.model_max_length == policy.config.max_position_embeddings == 256
    assert policy.config.model_type == "llama"
    assert policy.config.head_dim % 32 == 0
    assert not policy.config.tie_word_embeddings


def test_the_same_seed_makes_the_same_model(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        scratch.model(tmp_path / name, seed=seed, progress=lambda *_: None, **TINY)
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("size", "millions"), [("small", 0.65), ("medium", 3.6), ("base", 107), ("large", 214)]
)
def test_sizes_have_the_parameters_they_are_said_to_have(size, millions):
    with torch.device("meta"):
        policy = scratch.new_model(scratch.SIZES[size])
    assert sum(p.numel() for p in policy.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert policy.config.head_dim % 32 == 0


def test_loss_counts_completion_tokens_only():
    # an untrained head of zeros gives every token probability 1/229: log 229 = 5.4337 per token
    policy = scratch.new_model(scratch.Size(32, 1, 1, 1, num_steps=1, batch_size=1, lr=1.0))
    torch.nn.init.zeros_(policy.lm_head.weight)
    batch = [
        scratch.tokens_of("f+3;2ff=?", "2ff+3=5</think>\\boxed{5}"),
        scratch.tokens_of("f+3g+1;2ff=?", "</think>\\boxed{9}"),
    ]
    assert [len(ids) - num_prompt for ids, num_prompt in batch] == [10, 5]
    assert warm_start.backward(policy, batch) == pytest.approx(5.433722, rel=1e-5)
